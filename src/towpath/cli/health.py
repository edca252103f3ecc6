# SPDX-License-Identifier: Apache-2.0
"""How health is shown beside a backend."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from towpath.api.documents import Check

STANDING = ("health", "since", "last error")
"""Columns of `standing`."""
SOON = timedelta(days=14)
"""So long before a certificate ends it is told where nothing else is wrong."""


def standing(check: Check | None) -> tuple[object, ...]:
    """What is known of a backend; None: it isn't checked."""
    if check is None:
        return (None,) * len(STANDING)
    return check.state, check.since, check.error or _certificate(check.certificate_expires)


def _certificate(expires: str | None) -> str | None:
    if expires is None:
        return None
    left = datetime.fromisoformat(expires) - datetime.now(UTC)
    if left > SOON:
        return None
    return f"certificate {'ends' if left > timedelta() else 'ended'} {expires}"
