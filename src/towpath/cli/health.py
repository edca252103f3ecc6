# SPDX-License-Identifier: Apache-2.0
"""How health is shown beside a backend."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from towpath.api.documents import Check

STANDING = ("health", "since", "last error")
"""Columns of `standing`."""


def standing(check: Check | None) -> tuple[object, ...]:
    """What is known of a backend; None: it isn't checked."""
    if check is None:
        return (None,) * len(STANDING)
    return check.state, check.since, check.error
