# SPDX-License-Identifier: Apache-2.0
"""Captures: filters, the chain of programs that record, rings, files."""
