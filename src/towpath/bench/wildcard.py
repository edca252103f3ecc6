# SPDX-License-Identifier: Apache-2.0
"""Wildcard look-ups, timed inside the kernel, and changes, timed from Python.

Before anything is timed, all ways of looking up have to find the same rules for all packets.
"""

from __future__ import annotations

import os
import random
import statistics
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from towpath.bench.cpu import on_one_cpu
from towpath.bench.errors import BenchError
from towpath.bench.flavours import FLAVOURS
from towpath.bench.report import Timing
from towpath.bench.rulesets import generate, matching_packets, random_packets
from towpath.bench.wildcard_rig import WAYS, Cost, WildcardRig, rules_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from towpath.wildcard import Rule

    Array = np.ndarray[Any, Any]

SIZES = (1_000, 10_000, 100_000)
TRACES = ("matching", "local", "random")
"""Packets in rules, each another one; those with locality; packets of anything."""
RUNS = 9
_QUERIES = 1 << 16
_CHECKED = 1 << 11  # packets whose way is followed to know what it costs
_MAX_NANOSECONDS = 1e8  # nanoseconds that one run of a slow way may take
_CHANGES = 10_000
_SEED = 1


@dataclass(frozen=True, slots=True)
class Lookups:
    """One way of looking up packets of one kind: nanoseconds each, the floor included."""

    way: str
    trace: str
    timing: Timing
    cost: Cost | None
    """Of the table's own way only."""


@dataclass(frozen=True, slots=True)
class Changes:
    """Rules deleted and inserted by single calls, in a table that is full."""

    per_second: float
    p50_us: float
    p99_us: float
    most_us: float


@dataclass(frozen=True, slots=True)
class SetReport:
    """One set of rules."""

    flavour: str
    version: int
    rules: int
    masks: int
    """That a search by masks has; 0 where it isn't done."""
    load_seconds: float
    bytes_per_rule: float
    tuples: int
    longest_run: int
    floor_ns: float
    lookups: tuple[Lookups, ...]
    changes: Changes


@dataclass(frozen=True, slots=True)
class WildcardReport:
    """All sets, in order."""

    kernel: str
    sets: tuple[SetReport, ...]

    def as_json(self) -> dict[str, Any]:
        """As ``towpath bench wildcard --json`` prints it."""
        return asdict(self)


def measure(
    flavours: Iterable[str] = tuple(FLAVOURS),
    sizes: Iterable[int] = SIZES,
    *,
    version: int = 4,
    runs: int = RUNS,
    others: bool = True,
    progress: Callable[[str], None] = lambda _: None,
) -> WildcardReport:
    """Time sets of rules; ``progress`` is told which one begins.

    ``others``: the other ways too, which there are for IPv4. BenchError: two ways don't find
    the same. KernelError: a program can't be loaded.
    """
    others = others and version == 4  # noqa: PLR2004
    sets = []
    for flavour in flavours:
        for size in sizes:
            progress(f"{flavour}, {size} rules")
            with on_one_cpu():
                sets.append(_measure_set(flavour, size, version, runs, others=others))
    return WildcardReport(os.uname().release, tuple(sets))


def _measure_set(flavour: str, size: int, version: int, runs: int, *, others: bool) -> SetReport:
    generated = generate(FLAVOURS[flavour], size, seed=_SEED, version=version)
    rules = rules_of(generated, version)
    with WildcardRig(version, size, _QUERIES, others=others) as rig:
        numbers, seconds = rig.fill(rules)
        masks = rig.fill_others() if others else 0
        lookups = [
            each
            for trace, packets in _traces(generated, version)
            for each in _measure_trace(rig, trace, packets, runs, others=others)
        ]
        floor = statistics.median(rig.time("floor", _QUERIES) for _ in range(runs))
        filled = rig.table.statistics()
        family = filled.ipv4 if version == 4 else filled.ipv6  # noqa: PLR2004
        changes = _measure_changes(rig, numbers, rules)
        return SetReport(
            flavour,
            version,
            size,
            masks,
            round(seconds, 3),
            round(rig.bytes / size, 1),
            family.tuples,
            family.longest_run,
            round(floor, 2),
            tuple(lookups),
            changes,
        )


def _traces(generated: Array, version: int) -> Iterator[tuple[str, Array]]:
    yield "matching", matching_packets(generated, _QUERIES, seed=_SEED)
    yield "local", matching_packets(generated, _QUERIES, seed=_SEED, locality=True)
    yield "random", random_packets(_QUERIES, seed=_SEED, version=version)


def _measure_trace(
    rig: WildcardRig, trace: str, packets: Array, runs: int, *, others: bool
) -> Iterator[Lookups]:
    """Time each way; what disturbs the machine for a while disturbs a few runs of each."""
    rig.ask(packets)
    ways = WAYS if others else WAYS[:1]
    _check_agreement(rig, ways)
    counts = {way: _lookups_in_a_run(rig, way) for way in ways}
    samples: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(runs):
        for way in ways:
            samples[way].append(rig.time(way, counts[way]))
    for way in ways:
        cost = rig.cost(packets[:_CHECKED]) if way == WAYS[0] else None
        yield Lookups(way, trace, Timing.of(way, samples[way]), cost)


def _lookups_in_a_run(rig: WildcardRig, way: str) -> int:
    """As many as there are packets, or as take no longer than a person waits."""
    one = rig.time(way, rig.batch)
    return max(rig.batch, min(_QUERIES, int(_MAX_NANOSECONDS / one)))


def _check_agreement(rig: WildcardRig, ways: Iterable[str]) -> None:
    """BenchError: a way finds another rule than the model, or than the first way."""
    first, *rest = ways
    found = rig.answers(first, _QUERIES)
    for way in rest:
        checked = min(_QUERIES, _lookups_in_a_run(rig, way))
        other = rig.answers(way, checked)
        if not np.array_equal(found[:checked], other[:checked]):
            at = int(np.flatnonzero(found[:checked] != other[:checked])[0])
            raise BenchError(
                f"packet {at}: {first} finds rule {found[at]}, {way} finds {other[at]}"
            )


def _measure_changes(rig: WildcardRig, numbers: list[int], rules: list[Rule]) -> Changes:
    chance = random.Random(_SEED)  # noqa: S311 -- not a secret
    there = list(zip(numbers, rules, strict=True))
    taken = []
    for _ in range(_CHANGES // 2):
        at = chance.randrange(len(there))
        number, rule = there[at]
        start = time.perf_counter_ns()
        rig.table.delete(number)
        middle = time.perf_counter_ns()
        there[at] = rig.table.insert(rule), rule
        taken += [middle - start, time.perf_counter_ns() - middle]
    taken.sort()
    microseconds = [round(ns / 1000, 1) for ns in taken]
    return Changes(
        round(len(taken) / (sum(taken) / 1e9)),
        microseconds[len(taken) // 2],
        microseconds[len(taken) * 99 // 100],
        microseconds[-1],
    )
