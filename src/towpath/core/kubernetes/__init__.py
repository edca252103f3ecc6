# SPDX-License-Identifier: Apache-2.0
"""What the objects of a cluster mean: pure, from what was told to services that are wished for."""
