# SPDX-License-Identifier: Apache-2.0
"""What is decided without looking at the world: tables, hashes, plans."""
