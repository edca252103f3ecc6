# SPDX-License-Identifier: Apache-2.0
"""What keeps others' leavings from being taken out."""

from __future__ import annotations

from towpath.errors import Error


class CleanupError(Error):
    """Something would be lost, or there is nothing to do: what, and what to do about it."""
