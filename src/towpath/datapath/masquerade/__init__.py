# SPDX-License-Identifier: Apache-2.0
"""Masquerade: its program, its tables, and how both follow the node."""
