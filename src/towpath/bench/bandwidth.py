# SPDX-License-Identifier: Apache-2.0
"""Limits of pods: how exactly they are kept, what small requests wait, how they are shared."""

from __future__ import annotations

import os
import statistics
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from towpath.bench.bandwidth_cost import MANY, measure_cost, set_many
from towpath.bench.bandwidth_fair import FLOWS, fairness_of, separate
from towpath.bench.bandwidth_stamps import own_pace
from towpath.bench.bandwidth_traffic import Bulk, Sink, achieved, latencies, traffic
from towpath.bench.bandwidth_ways import DIRECT, NONE, WAYS, Limited, limited
from towpath.bench.bandwidth_world import world

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from towpath.bench.bandwidth_cost import Cost, Set
    from towpath.bench.bandwidth_fair import Fairness, Separate
    from towpath.bench.bandwidth_stamps import OwnPace
    from towpath.bench.bandwidth_world import World

PARTS = ("cost", "accuracy", "latency", "fairness", "stamps")

RATES = (10_000_000, 20_000_000, 50_000_000, 100_000_000)
BULKS = (
    *(Bulk(flows, control) for control in ("cubic", "bbr") for flows in (1, 2, 8)),
    Bulk(offered=0.9),
    Bulk(offered=1.2),
)
OVERLOAD = Bulk(offered=10)
"""At the lowest of RATES only, unless it is asked for."""
LATENCY_BULK = Bulk(2)
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
    began: int | None
    """Packets that were dropped in the first seconds, which don't count, of all runs."""
    dropped: int | None
    """Packets after these; None: the way doesn't tell."""
    runs: int


@dataclass(frozen=True, slots=True)
class Latency:
    """Small requests while bulk fills the limit. Milliseconds."""

    way: str
    rate: int
    traffic: str
    p50: float
    p99: float
    requests: int
    runs: int


@dataclass(slots=True)
class BandwidthReport:
    """All of it; what wasn't asked for is empty, or None."""

    cost: Cost | None = None
    set: Set | None = None
    accuracy: list[Accuracy] = field(default_factory=list)
    latency: list[Latency] = field(default_factory=list)
    separate: tuple[Separate, ...] = ()
    fairness: list[Fairness] = field(default_factory=list)
    stamps: OwnPace | None = None

    def as_json(self) -> dict[str, Any]:
        """As ``towpath bench bandwidth --json`` prints it."""
        return {"kernel": os.uname().release} | {k: v for k, v in asdict(self).items() if v}


def measure_bandwidth(
    *,
    parts: Sequence[str] = PARTS,
    rates: Sequence[int] = RATES,
    bulks: Sequence[Bulk] = (),
    ways: Sequence[str] = WAYS,
    plugins: Mapping[str, Path] = NONE,
    runs: int = RUNS,
    seconds: float = SECONDS,
    progress: Callable[[str], None] = lambda _: None,
) -> BandwidthReport:
    """Measure; nothing is left behind. BenchError: it can't be. KernelError.

    ``plugins``: binaries of the CNI bandwidth plugin, by the names of further ways. ``parts``: of
    PARTS, those that are wanted. ``bulks``: for accuracy; none: BULKS, and OVERLOAD at the lowest
    of RATES.
    """
    found = BandwidthReport()
    if "cost" in parts:
        found.cost = measure_cost(progress=progress)
        progress(f"{MANY} limits")
        found.set = set_many()
    with world() as here, ExitStack() as undo:
        sink = Sink(here.remote, undo)
        for rate in rates if "accuracy" in parts else ():
            for bulk in bulks or (BULKS if rate > min(RATES) else (*BULKS, OVERLOAD)):
                progress(f"{DIRECT} {rate // 1_000_000}M {bulk.name}")
                each = accuracy_of(here, sink, DIRECT, rate, bulk, runs, seconds)
                found.accuracy.append(each)
        for rate in rates if "latency" in parts else ():
            every = (*ways, *plugins)
            found.latency += latencies_of(here, every, rate, runs, seconds, plugins, progress)
        if "fairness" in parts:
            _share(found, here, sink, max(rates), seconds, progress)
        if "stamps" in parts:
            progress("a socket's own pace")
            found.stamps = own_pace(here, seconds)
    return found


def _share(
    found: BandwidthReport,
    here: World,
    sink: Sink,
    rate: int,
    seconds: float,
    progress: Callable[[str], None],
) -> None:
    """Have two pods share a rate, and not share two."""
    progress("two pods")
    found.separate = separate(here, sink, rate, seconds)
    for flows in FLOWS:
        for small in (0, flows // 2):
            progress(f"{flows} flows, {small} of them small")
            found.fairness.append(fairness_of(here, sink, rate, flows, small, seconds))


def accuracy_of(
    here: World, sink: Sink, way: str, rate: int, bulk: Bulk, runs: int, seconds: float
) -> Accuracy:
    """Run it so many times, each with a limit that has just begun."""
    errors: list[float] = []
    began: int | None = 0
    dropped: int | None = 0
    target = rate * min(bulk.offered or 1, 1)
    for _ in range(runs):
        with limited(here, way, rate) as limit, traffic(here, bulk, rate):
            time.sleep(WARM)
            before = _dropped(limit)
            got = achieved(sink, bulk, seconds, 0)
            after = _dropped(limit)
        errors.append(100 * (got / target - 1))
        began = _sum(began, before)
        dropped = _sum(dropped, after and after - (before or 0))
    worst = max(errors, key=abs)
    return Accuracy(
        way,
        rate,
        bulk.name,
        round(statistics.median(errors), 2),
        round(worst, 2),
        began,
        dropped,
        runs,
    )


def _dropped(limit: Limited) -> int | None:
    """Packets that a limit has dropped so far, None if it doesn't tell."""
    found = limit.aggregate
    if found is None:
        return None
    return sum(n for name, n in found.verdicts.items() if name.startswith("drop"))


def _sum(so_far: int | None, more: int | None) -> int | None:
    return None if so_far is None or more is None else so_far + more


def latencies_of(
    here: World,
    ways: Sequence[str],
    rate: int,
    runs: int,
    seconds: float,
    plugins: Mapping[str, Path],
    progress: Callable[[str], None],
) -> list[Latency]:
    """Ask while bulk goes on, by the ways in turn, so often."""
    taken: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(runs):
        for way in ways:
            progress(f"{way} {rate // 1_000_000}M latency")
            taken[way] += _asked(here, way, rate, LATENCY_BULK, seconds, plugins)
    return [_latency(way, rate, LATENCY_BULK, each, runs) for way, each in taken.items()]


def latency_of(here: World, way: str, rate: int, bulk: Bulk, seconds: float) -> Latency:
    """Ask while the bulk goes on."""
    return _latency(way, rate, bulk, _asked(here, way, rate, bulk, seconds, NONE), 1)


def _asked(
    here: World, way: str, rate: int, bulk: Bulk, seconds: float, plugins: Mapping[str, Path]
) -> list[float]:
    with limited(here, way, rate, plugins), traffic(here, bulk, rate):
        latencies(here, WARM)
        return latencies(here, seconds)


def _latency(way: str, rate: int, bulk: Bulk, taken: Sequence[float], runs: int) -> Latency:
    found = sorted(taken)
    p50, p99 = (round(1000 * found[int(len(found) * share)], 3) for share in (0.5, 0.99))
    return Latency(way, rate, bulk.name, p50, p99, len(found), runs)
