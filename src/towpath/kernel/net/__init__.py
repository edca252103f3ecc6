# SPDX-License-Identifier: Apache-2.0
"""The kernel's network configuration: devices, addresses, rules, namespaces, by netlink."""
