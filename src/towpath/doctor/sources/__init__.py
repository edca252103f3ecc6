# SPDX-License-Identifier: Apache-2.0
"""What the places that services come from need of a node."""
