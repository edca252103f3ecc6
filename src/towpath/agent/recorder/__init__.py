# SPDX-License-Identifier: Apache-2.0
"""Captures that clients of the API read."""
