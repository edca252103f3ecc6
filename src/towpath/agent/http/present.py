# SPDX-License-Identifier: Apache-2.0
"""What the agent knows of backends, as the API's documents."""

from __future__ import annotations

from typing import TYPE_CHECKING

from towpath.api import documents
from towpath.core.lb.counted import moment

if TYPE_CHECKING:
    from towpath.agent.health.registry import Record


def check(record: Record) -> documents.Check:
    """What is known of a backend that is checked."""
    target, standing = record.target, record.standing
    return documents.Check(
        service=documents.ServiceName(target.service, *target.key),
        backend=target.backend,
        type=target.health.type,
        state=standing.state,
        since=moment(standing.since),
        error=standing.error,
        checked=None if standing.checked is None else moment(standing.checked),
        passed=record.passed,
        failed=record.failed,
        unmade=record.unmade,
        certificate_expires=None if record.expires is None else moment(record.expires),
    )
