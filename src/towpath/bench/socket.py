# SPDX-License-Identifier: Apache-2.0
"""connect() to a service: by no program, by programs at the socket, by kube-proxy's rules, IPVS."""

from __future__ import annotations

import os
import statistics
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from towpath.bench.errors import BenchError
from towpath.bench.forward import Spread
from towpath.bench.socket_ipvs import carried, lacking, load_ipvs
from towpath.bench.socket_rules import kube_proxy, load
from towpath.bench.socket_stale import Moved, measure_stale
from towpath.bench.socket_world import BACKENDS, FIRST_VIP, PORT, Worker, world
from towpath.datapath.lb.contents import Contents
from towpath.datapath.maps.shared import SharedMaps
from towpath.datapath.socket.balancer import SocketBalancer
from towpath.datapath.socket.trial import Question, ask
from towpath.kernel.bpf.stats import Runs, counting_runs
from towpath.kernel.cgroup import mount_point
from towpath.kernel.net.netns import in_netns
from towpath.model.service import Backend, Protocol, Service
from towpath.model.settings import Limits

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence
    from pathlib import Path

    from towpath.datapath.address import Address

NONE, TOWPATH, NFTABLES, IPVS = "none", "towpath", "nftables", "ipvs"
SERVICES = (10, 1000, 10_000)
RUNS, CONNECTIONS, REQUESTS = 9, 300, 2_000
PARTS = CONNECT, PROGRAMS, STALE = "connect", "programs", "stale"
_TABLE = 251
_FAMILIES = {4: "IPv4", 6: "IPv6"}
_REPEAT, _MANY = 100_000, 1_000_000
_WARM = 100
_TURNS = 15


@dataclass(frozen=True, slots=True)
class Connect:
    """What connect() takes to be established, and what can be had a second."""

    way: str
    services: int
    family: str
    p50_ns: float
    spread: Spread
    """Of the medians of the runs."""
    connections_per_second: float
    requests_per_second: float
    """Over an established connection."""


@dataclass(frozen=True, slots=True)
class SocketReport:
    """All of it. Ratios are of the same run, turn by turn."""

    connect: tuple[Connect, ...]
    added: dict[str, dict[str, dict[str, Spread]]]
    """By another way, family and number of services: what Towpath adds to connect(), as a part of
    what the other way adds. Without those where that adds nothing that could be measured."""
    left_out: dict[str, str]
    """Ways that can't be measured here, and why."""
    connections: dict[str, Spread]
    requests: dict[str, Spread]
    """Towpath's, as a multiple of no program's, by family."""
    decision_ns: dict[str, float]
    """By family: the decision alone."""
    hooks: dict[str, Runs]
    """Programs at connect() of UDP, as the kernel counts."""
    udp: Moved | None

    def as_json(self) -> dict[str, Any]:
        """As ``towpath bench socket --json`` prints it."""
        ratios: dict[str, Any] = {}
        for way, families in self.added.items():
            numbers = next(iter(families.values()))
            ratios[f"added_ratio_to_{way}"] = {
                number: max(each[number].p50 for each in families.values())
                for number in numbers
                if all(number in each for each in families.values())
            }
        return {
            "kernel": os.uname().release,
            "connect": [asdict(each) for each in self.connect],
            **ratios,
            "added_ratio_by_family": _plain(self.added.get(NFTABLES, {})),
            "added_ratio_to_ipvs_by_family": _plain(self.added.get(IPVS, {})),
            "left_out": self.left_out,
            "connections_ratio_to_none": {k: asdict(v) for k, v in self.connections.items()},
            "requests_ratio_to_none": {k: asdict(v) for k, v in self.requests.items()},
            "decision_ns": self.decision_ns,
            "hooks": {name: each._asdict() for name, each in self.hooks.items()},
            "udp": self.udp and self.udp._asdict(),
        }


def measure_socket(
    *,
    services: Sequence[int] = SERVICES,
    runs: int = RUNS,
    connections: int = CONNECTIONS,
    parts: Collection[str] = PARTS,
    progress: Callable[[str], None] = lambda _: None,
) -> SocketReport:
    """Connect in turn by all ways; nothing is left behind. Of other parts nothing is told.

    BenchError: something doesn't do what it should. KernelError: something can't be made.
    """
    samples, left_out = _Samples(), dict[str, str]()
    decision, hooks = dict[str, float](), dict[str, Runs]()
    if CONNECT in parts:
        with _ways(services, progress) as (ways, left_out):
            _measure_connect(ways, samples, runs, connections, progress)
    if PROGRAMS in parts:
        progress("the programs")
        with _one_way(max(services)) as way:
            decision = {_FAMILIES[version]: _decide(way, version) for version in _FAMILIES}
            hooks = _count_hooks(way)
    moved = None
    if STALE in parts:
        progress("stale sockets")
        moved = measure_stale()
    return samples.report(services, left_out, decision, hooks, moved)


def _measure_connect(
    ways: Sequence[_Way],
    samples: _Samples,
    runs: int,
    connections: int,
    progress: Callable[[str], None],
) -> None:
    progress("whether all of them connect")
    for way in ways:
        _check_backends(way)
    for run in range(-1, runs):
        progress(f"run {max(run, 0) + 1} of {runs}")
        # The first one warms up.
        found = _run(ways, connections if run >= 0 else min(connections, _WARM))
        if run >= 0:
            samples.add(found)
    for way in ways:
        _check_carried(way)


def _plain(added: dict[str, dict[str, Spread]]) -> dict[str, Any]:
    return {
        family: {number: asdict(each) for number, each in found.items()}
        for family, found in added.items()
    }


# ---- Ways ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Way:
    name: str
    number: int
    """Of services."""
    worker: Worker
    sockets: SocketBalancer | None = None
    carried: Callable[[], int] | None = None
    """Counts connections that have gone this way; None: nothing counts them."""

    def __str__(self) -> str:
        """As messages say it."""
        return f"{self.name}, {self.number} services"

    def target(self, version: int) -> Address:
        """What is connected to."""
        if self.name == NONE:
            return BACKENDS[version][0]
        return FIRST_VIP[version] + self.number // 2


@contextmanager
def _ways(
    services: Sequence[int], progress: Callable[[str], None]
) -> Iterator[tuple[list[_Way], dict[str, str]]]:
    """Ways, and those that can't be had here with the reason."""
    with ExitStack() as undo:
        plain = undo.enter_context(world())
        ways = [_Way(NONE, 0, undo.enter_context(Worker(plain.pod)))]
        reason = lacking(plain.node)
        for number in services:
            progress(f"setting up {number} services")
            ways.append(undo.enter_context(_at_sockets(number, plain.pod)))
            ways.append(undo.enter_context(_translating(NFTABLES, number)))
            if not reason:
                ways.append(undo.enter_context(_translating(IPVS, number)))
        yield ways, {IPVS: reason} if reason else {}


@contextmanager
def _at_sockets(number: int, pod: int) -> Iterator[_Way]:
    """Programs at the sockets of a process in a pod."""
    with _cgroup() as cgroup, _balancing(number, cgroup) as sockets, Worker(pod, cgroup) as worker:
        yield _Way(TOWPATH, number, worker, sockets, partial(_balanced, sockets))


@contextmanager
def _one_way(number: int) -> Iterator[_Way]:
    """The same in a pod of its own."""
    with world() as plain, _at_sockets(number, plain.pod) as way:
        yield way


@contextmanager
def _translating(name: str, number: int) -> Iterator[_Way]:
    """A node that translates packets."""
    with world() as translated:
        for version, backends in BACKENDS.items():
            vips = [FIRST_VIP[version] + n for n in range(number)]
            if name == IPVS:
                load_ipvs(translated.node, vips, PORT, backends)
            else:
                with in_netns(translated.node):
                    load(kube_proxy(vips, PORT, backends))
        counted = partial(carried, translated.node) if name == IPVS else None
        with Worker(translated.pod) as worker:
            yield _Way(name, number, worker, carried=counted)


def _balanced(sockets: SocketBalancer) -> int:
    return sockets.verdicts()["connect"]["balanced"]


def _check_backends(way: _Way) -> None:
    """Whoever answers is a backend, which says so itself. BenchError."""
    for version, backends in BACKENDS.items():
        asked = way.target(version)
        answer = way.worker.ask("served_by", address=str(asked), port=PORT)["backend"]
        if answer not in map(str, backends):
            raise BenchError(f"{way}: {asked} is answered by {answer}, which is no backend")


def _check_carried(way: _Way) -> None:
    """All connections have gone this way, by its own count. BenchError."""
    if way.carried is None:
        return
    made, found = way.worker.ask("connected")["connections"], way.carried()
    if found < made:
        raise BenchError(f"{way}: {made} connections, of which it has carried {found}")


@contextmanager
def _cgroup() -> Iterator[Path]:
    root, number = mount_point(), 0
    while (path := root / f"towpath-bench-{os.getpid()}-{number}").exists():
        number += 1
    path.mkdir()
    try:
        yield path
    finally:
        path.rmdir()


@contextmanager
def _balancing(number: int, cgroup: Path) -> Iterator[SocketBalancer]:
    total = 2 * number + 2
    limits = replace(
        Limits(),
        services=total,
        backends=3 * total + 16,
        table_slots=total * (_TABLE + 16),
        flows=1024,
        nat_flows=1024,
        clients=1024,
    )
    with closing(SharedMaps(limits)) as tables:
        contents = Contents(tables)
        contents.apply(_services(number))
        with SocketBalancer(tables, contents, cgroup) as sockets:
            yield sockets


def _services(number: int) -> Iterator[Service]:
    for version, addresses in BACKENDS.items():
        backends = tuple(map(Backend, addresses))
        for n in range(number):
            vip = FIRST_VIP[version] + n
            yield Service(f"s{version}-{n}", vip, PORT, Protocol.TCP, backends, table_size=_TABLE)
        # For what is measured by UDP, which sends nothing.
        vip = FIRST_VIP[version] + number // 2
        yield Service(f"u{version}", vip, PORT, Protocol.UDP, backends, table_size=_TABLE)


# ---- Measured ------------------------------------------------------------------------------------


_Key = tuple[str, int, int]
"""A way, its number of services, and an IP version."""


@dataclass(frozen=True, slots=True)
class _Taken:
    """What one way's turns of a run have found."""

    connect: list[float] = field(default_factory=list)
    rate: list[float] = field(default_factory=list)
    requests: list[float] = field(default_factory=list)


class _Samples:
    """The medians of each run."""

    def __init__(self) -> None:
        self.connect: dict[_Key, list[float]] = {}
        self.rate: dict[_Key, list[float]] = {}
        self.requests: dict[_Key, list[float]] = {}

    def add(self, found: dict[_Key, _Taken]) -> None:
        """Take a run's medians."""
        for key, taken in found.items():
            for where, values in ((self.connect, taken.connect), (self.rate, taken.rate)):
                where.setdefault(key, []).append(statistics.median(values))
            self.requests.setdefault(key, []).append(statistics.median(taken.requests))

    def report(
        self,
        services: Sequence[int],
        left_out: dict[str, str],
        decision: dict[str, float],
        hooks: dict[str, Runs],
        moved: Moved | None,
    ) -> SocketReport:
        largest = max(services)
        return SocketReport(
            connect=tuple(self._connect(key) for key in self.connect),
            added={
                other: {
                    family: self._added(other, services, version)
                    for version, family in _FAMILIES.items()
                }
                for other in (NFTABLES, IPVS)
                if self.connect and other not in left_out
            },
            left_out=left_out,
            connections=self._ratios(self.rate, largest),
            requests=self._ratios(self.requests, largest),
            decision_ns=decision,
            hooks=hooks,
            udp=moved,
        )

    def _connect(self, key: _Key) -> Connect:
        way, number, version = key
        spread = Spread.of(self.connect[key], 0)
        rate = round(statistics.median(self.rate[key]))
        requests = round(statistics.median(self.requests[key]))
        return Connect(way, number, _FAMILIES[version], spread.p50, spread, rate, requests)

    def _added(self, other: str, services: Sequence[int], version: int) -> dict[str, Spread]:
        """Differences of medians, turn by turn, by number of services."""
        none = self.connect[NONE, 0, version]
        found = {}
        for number in services:
            ours, theirs = (self.connect[way, number, version] for way in (TOWPATH, other))
            added = [
                (mine - base) / (slower - base)
                for mine, slower, base in zip(ours, theirs, none, strict=True)
                if slower > base
            ]
            if added:
                found[str(number)] = Spread.of(added, 3)
        return found

    def _ratios(self, values: dict[_Key, list[float]], number: int) -> dict[str, Spread]:
        found = {}
        for version, family in _FAMILIES.items():
            if not values:
                break
            pairs = zip(values[TOWPATH, number, version], values[NONE, 0, version], strict=True)
            found[family] = Spread.of([mine / base for mine, base in pairs], 3)
        return found


def _run(ways: Sequence[_Way], connections: int) -> dict[_Key, _Taken]:
    """All ways in turn, again and again: what slows the machine for a while slows all of them."""
    found: dict[_Key, _Taken] = {}
    for _ in range(_TURNS):
        for version in _FAMILIES:
            for way in ways:
                taken = found.setdefault((way.name, way.number, version), _Taken())
                _turn(way, version, max(connections // _TURNS, 1), taken)
    return found


def _turn(way: _Way, version: int, number: int, taken: _Taken) -> None:
    target = {"address": str(way.target(version)), "port": PORT}
    made = way.worker.ask("connections", number=number, **target)
    asked = max(number * REQUESTS // CONNECTIONS, 1)
    answered = way.worker.ask("requests", number=asked, **target)
    taken.connect.extend(made["connect"])
    taken.rate.append(number / made["all"] * 1e9)
    taken.requests.append(asked / answered["all"] * 1e9)


def _decide(way: _Way, version: int) -> float:
    """Nanoseconds of the decision alone, in the kernel."""
    if way.sockets is None:
        raise TypeError("this way has no programs")
    question = Question(way.target(version), PORT, Protocol.TCP, socket=1)
    return float(
        statistics.median(
            ask(way.sockets.program, question, repeat=_REPEAT)[1] for _ in range(RUNS)
        )
    )


def _count_hooks(way: _Way) -> dict[str, Runs]:
    """What the kernel counts of the programs at connect().

    For a service and for an address that is no service's, by one socket and by a new one each
    time: that has no note yet, and where it isn't for a service, gets none.
    """
    if way.sockets is None:
        raise TypeError("this way has no programs")
    found = {}
    for version in _FAMILIES:
        program = way.sockets.program.programs[f"socket_connect{version}"]
        vip, other = way.target(version), BACKENDS[version][0]
        for what, address, number, anew in (
            ("service", vip, _MANY, False),
            ("service, new socket", vip, _REPEAT, True),
            ("other", other, _REPEAT, False),
            ("other, new socket", other, _REPEAT, True),
        ):
            with counting_runs(program) as runs:
                target = {"address": str(address), "port": PORT, "anew": anew}
                way.worker.ask("datagram_connects", number=number, **target)
            found[f"connect{version}, {what}"] = runs()
    return found
