# SPDX-License-Identifier: Apache-2.0
"""What can go wrong with a Kubernetes of one's own."""

from __future__ import annotations


class KubernetesError(Exception):
    """A part of it can't be had, doesn't start, or refuses what it was told."""
