# SPDX-License-Identifier: Apache-2.0
"""Backends on this node: who they are, and the programs that translate for them."""
