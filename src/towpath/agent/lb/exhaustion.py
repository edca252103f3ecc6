# SPDX-License-Identifier: Apache-2.0
"""Says in the log when new flows are refused for want of a port to translate them to.

The program counts, nobody tells; so the count is looked at every few seconds, and what
has grown is logged at most once a minute.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

log = logging.getLogger(__name__)

INTERVAL = 5.0  # seconds between looks
QUIET = 60.0  # seconds between lines

# By verdict: what it means, and what to do.
REFUSALS = {
    "drop_nat_ports": "no port of snat.ports was free; add addresses to snat, or widen snat.ports",
    "drop_nat_rate": "more new flows came at once than are translated; this may be a flood",
}


@dataclass
class Refusal:
    """What has been seen and said of one verdict."""

    counted: int
    told: int
    at: float | None = None


class ExhaustionWatch:
    """Looks at verdicts. ``clock`` counts seconds."""

    def __init__(self, verdicts: Mapping[str, int], clock: Callable[[], float]) -> None:
        self._clock = clock
        self._seen = {
            name: Refusal(verdicts.get(name, 0), verdicts.get(name, 0)) for name in REFUSALS
        }

    def look(self, verdicts: Mapping[str, int]) -> None:
        """Log what was refused since the last line about it, if that is a minute ago."""
        now = self._clock()
        for name, reason in REFUSALS.items():
            refusal = self._seen[name]
            refusal.counted = verdicts.get(name, 0)
            more = refusal.counted - refusal.told
            if more <= 0 or (refusal.at is not None and now - refusal.at < QUIET):
                continue
            refusal.told, refusal.at = refusal.counted, now
            log.warning("snat: %d packets of new flows dropped: %s", more, reason)
