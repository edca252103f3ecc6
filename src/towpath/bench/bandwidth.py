# SPDX-License-Identifier: Apache-2.0
"""How exactly a pod's limit is kept, and what small requests wait beside it; other ways too."""

from __future__ import annotations

import os
import statistics
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from towpath.bench.bandwidth_traffic import Bulk, Sink, achieved, latencies, traffic
from towpath.bench.bandwidth_world import DIRECT, WAYS, limited, world

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from towpath.bench.bandwidth_world import World

RATES = (10_000_000, 20_000_000, 50_000_000, 100_000_000)
BULKS = (
    *(Bulk(flows, control) for control in ("cubic", "bbr") for flows in (1, 2, 8)),
    Bulk(offered=0.9),
    Bulk(offered=1.2),
)
OVERLOAD = Bulk(offered=10)
"""At the lowest rate only."""
SECONDS, WARM, RUNS = 10.0, 2.0, 3


@dataclass(frozen=True, slots=True)
class Accuracy:
    """One kind of traffic at one limit. Errors: of what was achieved, in percent of the limit.

    Of UDP that offers less than the limit: of what was offered.
    """

    way: str
    rate: int
    traffic: str
    median: float
    worst: float
    dropped: int | None
    """Packets, of all runs; None: the way doesn't tell."""


@dataclass(frozen=True, slots=True)
class Latency:
    """Small requests while bulk fills the limit. Milliseconds."""

    way: str
    rate: int
    traffic: str
    p50: float
    p99: float
    requests: int


@dataclass(frozen=True, slots=True)
class BandwidthReport:
    """All of it."""

    accuracy: tuple[Accuracy, ...]
    latency: tuple[Latency, ...]

    def as_json(self) -> dict[str, Any]:
        """As ``towpath bench bandwidth --json`` prints it."""
        return {
            "kernel": os.uname().release,
            "accuracy": [asdict(each) for each in self.accuracy],
            "latency": [asdict(each) for each in self.latency],
        }


def measure_bandwidth(
    *,
    rates: Sequence[int] = RATES,
    bulks: Sequence[Bulk] = BULKS,
    ways: Sequence[str] = WAYS,
    runs: int = RUNS,
    seconds: float = SECONDS,
    progress: Callable[[str], None] = lambda _: None,
) -> BandwidthReport:
    """Measure; nothing is left behind. BenchError: it can't be. KernelError."""
    accuracy, latency = [], []
    with world() as here, ExitStack() as undo:
        sink = Sink(here.remote, undo)
        for rate in rates:
            more = (OVERLOAD,) if rate == min(rates) and BULKS[0] in bulks else ()
            for bulk in (*bulks, *more):
                progress(f"{DIRECT} {rate // 1_000_000}M {bulk.name}")
                accuracy.append(accuracy_of(here, sink, DIRECT, rate, bulk, runs, seconds))
            for way in ways:
                progress(f"{way} {rate // 1_000_000}M latency")
                latency.append(latency_of(here, way, rate, Bulk(2), seconds))
    return BandwidthReport(tuple(accuracy), tuple(latency))


def accuracy_of(
    here: World, sink: Sink, way: str, rate: int, bulk: Bulk, runs: int, seconds: float
) -> Accuracy:
    """Run it so many times, each with a limit that has just begun."""
    errors: list[float] = []
    dropped = 0
    target = rate * min(bulk.offered or 1, 1)
    for _ in range(runs):
        with limited(way, rate) as limit, traffic(here, bulk, rate):
            got = achieved(sink, bulk, seconds, WARM)
            found = limit.aggregate
        errors.append(100 * (got / target - 1))
        if found is not None:
            dropped += sum(n for name, n in found.verdicts.items() if name.startswith("drop"))
    worst = max(errors, key=abs)
    return Accuracy(
        way,
        rate,
        bulk.name,
        round(statistics.median(errors), 2),
        round(worst, 2),
        dropped if found is not None else None,
    )


def latency_of(here: World, way: str, rate: int, bulk: Bulk, seconds: float) -> Latency:
    """Ask while the bulk goes on."""
    with limited(way, rate), traffic(here, bulk, rate):
        latencies(here, WARM)
        found = latencies(here, seconds)
    p50, p99 = (round(1000 * found[int(len(found) * share)], 3) for share in (0.5, 0.99))
    return Latency(way, rate, bulk.name, p50, p99, len(found))
