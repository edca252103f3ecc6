# SPDX-License-Identifier: Apache-2.0
"""The results of a benchmark."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Sequence

_DIGITS = 2


@dataclass(frozen=True, slots=True)
class Timing:
    """One scenario: nanoseconds per packet, the wrapper's own included.

    Each run is the mean of thousands of packets; ``p50_ns``, ``min_ns`` and ``max_ns`` are of
    the runs.
    """

    name: str
    p50_ns: float
    min_ns: float
    max_ns: float
    runs: int

    @classmethod
    def of(cls, name: str, samples: Sequence[float]) -> Self:
        """Sum up the runs of one scenario, of which there is at least one."""
        return cls(
            name,
            round(statistics.median(samples), _DIGITS),
            round(min(samples), _DIGITS),
            round(max(samples), _DIGITS),
            len(samples),
        )


@dataclass(frozen=True, slots=True)
class Report:
    """``floor_ns``: what the wrapper takes around a program that does nothing, per packet.

    It is in every scenario's figures; subtract it before dividing one by another.
    """

    kernel: str
    floor_ns: float
    scenarios: tuple[Timing, ...]

    def as_json(self) -> dict[str, Any]:
        """As ``towpath bench lb --json`` prints it."""
        return asdict(self) | {"scenarios": [asdict(timing) for timing in self.scenarios]}
