# SPDX-License-Identifier: Apache-2.0
"""The kernel boundary: the only package that knows ctypes, file descriptors, libbpf and netlink."""
