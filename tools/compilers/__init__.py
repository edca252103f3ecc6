# SPDX-License-Identifier: Apache-2.0
"""Compiles Towpath with the oldest and the newest clang that users may have."""
