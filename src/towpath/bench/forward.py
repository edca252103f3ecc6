# SPDX-License-Identifier: Apache-2.0
"""Packets a second from clients through a node to backends, by several ways of forwarding.

More is offered than any way can forward. The node has a CPU of its own, which is then busy all the
time; clients send from another one.
"""

from __future__ import annotations

import os
import statistics
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

from towpath.bench.errors import BenchError
from towpath.bench.forward_network import forward_network
from towpath.bench.forward_node import Seen, node
from towpath.bench.forward_ways import BASELINE, TOWPATH, WAYS, Way
from towpath.bench.forward_world import Cpus, Sample, World, world
from towpath.kernel.bpf import probe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

RUNS, SECONDS, BACKENDS, FLOWS = 9, 0.5, 10, 10_000
_PASSES, _ROUNDS = 50, 2  # of all flows in a pass
_GAP = 10_000  # nanoseconds, for flows that are new
_FIRST_RUN = 300_000
_STRAY = 0.001  # share of packets that may be of flows that are not known yet
_MIN_SHARE, _MAX_SHARE = 0.5, 2.0  # of a backend, as a multiple of its fair share
_MANY = 50  # flows, and packets, to a backend, from which on shares can be expected to be even


@dataclass(frozen=True, slots=True)
class Spread:
    """Of the runs, or the turns."""

    p50: float
    min: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float], digits: int = 1) -> Self:
        """Sum up; there is at least one."""
        found = statistics.median(values), min(values), max(values)
        return cls(*(round(each, digits) for each in found))


@dataclass(frozen=True, slots=True)
class Pace:
    """One way's packets. ``cpu_ns``: of the node for one that arrives; ``busy``: its share of time.

    ``ratio``: packets a second as a multiple of the baseline's in the same turn.
    """

    name: str
    packets_per_second: Spread
    offered_per_second: float
    cpu_ns: Spread | None
    busy: float | None
    ratio: Spread | None
    runs: int


@dataclass(frozen=True, slots=True)
class ForwardReport:
    """``cpus``: where who worked."""

    kernel: str
    backends: int
    flows: int
    cpus: Cpus
    ways: tuple[Pace, ...]

    def as_json(self) -> dict[str, Any]:
        """As ``towpath bench forward --json`` prints it."""
        return asdict(self) | {"ways": [asdict(way) for way in self.ways]}


def measure(
    ways: Iterable[Way] = WAYS,
    *,
    backends: int = BACKENDS,
    flows: int = FLOWS,
    runs: int = RUNS,
    seconds: float = SECONDS,
    apart: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> ForwardReport:
    """Send packets by each way in turn, ``runs`` times for about ``seconds`` each.

    ``apart``: backends take packets on the clients' CPU, not on the node's. ``progress`` is told
    what is being done. Nothing is left behind. BenchError: a way doesn't forward as it should, or
    something that it needs is missing. KernelError: something can't be made.
    """
    samples: dict[Way, list[Sample]] = {way: [] for way in ways}
    cpus = _cpus(apart=apart)
    with ExitStack() as undo:
        progress("networks")
        sites = _sites(undo, samples, backends, flows, cpus, apart=apart)
        for turn in range(runs):
            for way, taken in samples.items():
                progress(f"run {turn + 1} of {runs}, {way.name}")
                taken.append(sites[way.by].run(way, seconds))
    base = next((taken for way, taken in samples.items() if way.name == BASELINE), None)
    paces = tuple(_pace(way, taken, base) for way, taken in samples.items())
    return ForwardReport(os.uname().release, backends, flows, cpus, paces)


def _cpus(*, apart: bool) -> Cpus:
    if not probe.live_frames():
        raise BenchError("this kernel sends no live frames in test runs; Linux 5.18 and newer do")
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) == 1:
        raise BenchError("only one CPU may be used: clients need one, and the node another")
    first, last = allowed[0], allowed[-1]
    return Cpus(first, last, first if apart else last)


class _Site:
    """A node that forwards by one means, in a network of its own."""

    def __init__(self, world: World, ask: Callable[[], Seen], flows: int, cpus: Cpus) -> None:
        self._world = world
        self._ask = ask
        self._flows = flows
        self._cpus = cpus
        self._rates: dict[Way, float] = {}

    def run(self, way: Way, seconds: float) -> Sample:
        """Send for so long, by flows that are known. BenchError: they aren't, or arrive wrong."""
        self._settle(way)
        if way not in self._rates:
            self._send(way, _FIRST_RUN)
        return self._send(way, max(int(self._rates[way] * seconds), self._flows))

    def _settle(self, way: Way) -> None:
        """Send until nothing is new to the node; where packets come back, both ways."""
        packets = _ROUNDS * self._flows
        for _ in range(_PASSES):
            before = self._ask().flows
            sample = self._world.send(
                way, self._flows, packets, self._cpus, gap=_GAP, answered=way.translated
            )
            _check_arrivals(way, sample)
            came = sample.answered if way.translated else sample.total
            fresh = self._ask().flows - before
            if fresh <= _STRAY * sample.total and came > packets // 2:
                # Not of packets that come faster than they are taken: those that get through are of
                # some flows again and again.
                _check_shares(way, sample, self._flows)
                return
        raise BenchError(
            f"{way.name}: after {_PASSES} rounds there are still flows it doesn't know"
        )

    def _send(self, way: Way, packets: int) -> Sample:
        before = self._ask()
        sample = self._world.send(way, self._flows, packets, self._cpus)
        after = self._ask()
        _check_arrivals(way, sample)
        _check_node(way, sample, before, after)
        self._rates[way] = sample.sent / sample.seconds
        return sample


def _sites(
    undo: ExitStack,
    ways: Iterable[Way],
    backends: int,
    flows: int,
    cpus: Cpus,
    *,
    apart: bool,
) -> dict[str, _Site]:
    made: dict[str, _Site] = {}
    for by in dict.fromkeys(way.by for way in ways):
        network = undo.enter_context(forward_network(backends))
        around = undo.enter_context(world(network, cpus, apart=apart))
        ask = undo.enter_context(node(by, network, flows, around.redirect))
        made[by] = _Site(around, ask, flows, cpus)
    return made


def _check_arrivals(way: Way, sample: Sample) -> None:
    if sample.wrong or sample.unknown:
        raise BenchError(
            f"{way.name}: {sample.wrong} packets arrived at backends, and {sample.unknown} at"
            " clients, that are not as they should be"
        )
    if not sample.total:
        raise BenchError(f"{way.name}: no packet arrives")


def _check_shares(way: Way, sample: Sample, flows: int) -> None:
    if not way.balanced or min(flows, sample.total) < _MANY * len(sample.arrived):
        return
    fair = sample.total / len(sample.arrived)
    least, most = min(sample.arrived), max(sample.arrived)
    if least < _MIN_SHARE * fair or most > _MAX_SHARE * fair:
        raise BenchError(f"{way.name}: of backends one had {least} packets and another {most}")


def _check_node(way: Way, sample: Sample, before: Seen, after: Seen) -> None:
    """BenchError: the node says that packets went another way than this one."""
    stack, redirected = after.stack - before.stack, after.redirected - before.redirected
    if way.stack != (stack >= sample.total) or (stack and not way.stack):
        raise BenchError(f"{way.name}: the kernel's stack forwarded {stack} of {sample.total}")
    if way.by == TOWPATH and redirected < sample.total:
        raise BenchError(f"{way.name}: Towpath redirected {redirected} of {sample.total}")
    strangers = after.flows - before.flows + after.elsewhere - before.elsewhere
    if strangers > _STRAY * sample.total:
        raise BenchError(f"{way.name}: {strangers} of {sample.total} packets were of new flows")


def _pace(way: Way, samples: Sequence[Sample], base: Sequence[Sample] | None) -> Pace:
    rates = [each.total / each.seconds for each in samples]
    ratios = [
        rate * other.seconds / other.total for rate, other in zip(rates, base or (), strict=False)
    ]
    used = [(each, each.cpu) for each in samples if each.cpu is not None]
    work = [1e9 * cpu / each.total for each, cpu in used]
    busy = [cpu / each.seconds for each, cpu in used]
    return Pace(
        way.name,
        Spread.of(rates),
        round(statistics.median(each.sent / each.seconds for each in samples), 1),
        Spread.of(work) if work else None,
        round(statistics.median(busy), 2) if busy else None,
        Spread.of(ratios, 2) if ratios else None,
        len(samples),
    )
