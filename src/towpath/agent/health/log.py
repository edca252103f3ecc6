# SPDX-License-Identifier: Apache-2.0
"""What the log says of health checks: each change once."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from towpath.core.health import none_up

if TYPE_CHECKING:
    from collections.abc import Iterable

    from towpath.agent.health.target import Target
    from towpath.core.health import Down, Standing
    from towpath.model import Service

log = logging.getLogger(__name__)


def log_change(target: Target, standing: Standing) -> None:
    """A backend gets flows from now on, or gets none any more."""
    if standing.state.serves:
        log.info("service %s: backend %s is up", target.service, target.backend)
    else:
        log.warning(
            "service %s: backend %s is down: %s", target.service, target.backend, standing.error
        )


def log_services(services: Iterable[Service], before: Down, after: Down) -> None:
    """All backends of a service have come to be down, or one is up again."""
    for service in services:
        was, now = none_up(service, before), none_up(service, after)
        if now and not was and service.health:
            kind = service.health.on_all_failed
            log.error("service %s: no backend is up; on_all_failed: %s", service.name, kind)
        elif was and not now:
            log.info("service %s: a backend is up again", service.name)
