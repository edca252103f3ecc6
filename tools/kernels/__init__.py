# SPDX-License-Identifier: Apache-2.0
"""Runs Towpath's tests inside other kernels, booted in QEMU."""
