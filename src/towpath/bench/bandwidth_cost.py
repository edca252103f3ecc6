# SPDX-License-Identifier: Apache-2.0
"""What a pod's limit costs: nanoseconds of the programs in the kernel, memory, and to set them."""

from __future__ import annotations

import struct
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, ip_address
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from towpath.bench.bandwidth_world import run
from towpath.bench.cpu import on_one_cpu
from towpath.bench.errors import BenchError
from towpath.bench.frames import frame
from towpath.bench.report import Timing
from towpath.datapath.bandwidth.limits import SECOND, Limit, row
from towpath.datapath.bandwidth.node import Node
from towpath.datapath.bandwidth.program import BandwidthProgram
from towpath.datapath.bandwidth.tables import Owners
from towpath.kernel.bpf.object import BpfObject
from towpath.kernel.net.netns import new_netns
from towpath.model.bandwidth import Pod, Section
from towpath.model.flow import FlowTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from towpath.kernel.bpf.programs import Program

MANY = 10_000
RUNS, TIMED, UNTIMED = 21, 2000, 256
_IN_TURN = 8192
"""Aggregates that packets are of in turn, a power of two."""
_LOOPBACK, _SKB, _IFINDEX = 1, 192, 40  # struct __sk_buff, and where its field is
_UNSPEC = -1  # TC_ACT_UNSPEC
_PACKET = FlowTuple.parse("10.244.0.2:4000 -> 203.0.113.9:9 udp")
_TAKES = 2000
"""ns of a packet at the limit: more than the program takes, so that a run's packets all wait."""
_TAKES_IN_TURN = SECOND
"""The same where an aggregate's next packet comes after one of each other, or in another run."""
_STRAY = 0.01  # share of packets
_PLENTY = 1_000_000_000_000
_HORIZON = 24 * 3600 * SECOND


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is timed: a program, and whether its packets have to wait."""

    name: str
    about: str
    program: str
    waits: bool = False
    many: bool = False
    """Whether packets are of many aggregates in turn."""


SCENARIOS = (
    Scenario("bandwidth-mark", "a pod's packet comes, its aggregate is marked", "tag"),
    Scenario("bandwidth-pace", "a packet within its limit leaves", "pace"),
    Scenario("bandwidth-pace-later", "a packet above it gets a later time", "pace", waits=True),
    Scenario("bandwidth-pace-many", "within limits of 8,192 aggregates in turn", "pace", many=True),
    Scenario("bandwidth-pace-many-later", "above them", "pace", waits=True, many=True),
)


@dataclass(frozen=True, slots=True)
class Set:
    """Many limits that are set.

    ``seconds``: until they are; ``cpu``: the process's own, without what others had in between;
    ``again``: the same where all are as they are to be. ``bytes``: of the tables.
    """

    aggregates: int
    seconds: float
    cpu: float
    again: float
    bytes: int


@dataclass(frozen=True, slots=True)
class Cost:
    """``floor``: what the timer takes around a program that does nothing, in all of them."""

    aggregates: int
    floor: Timing
    scenarios: tuple[Timing, ...]


class Rig:
    """The loaded programs, so many limits, and the timer. Not thread-safe."""

    def __init__(
        self, program: BandwidthProgram, timer: BpfObject, length: tuple[int, int]
    ) -> None:
        self._program = program
        self._timer = timer
        self._length = length
        self._frame = frame(_PACKET, payload=32)
        enum = program.constant
        self._mark = enum("bandwidth_limits", "BANDWIDTH_MARK") << 16 | 1
        Owners(program).sync_pods({_LOOPBACK: 1}, ())
        self._limited: Scenario | None = None

    def warm_up(self, scenario: Scenario) -> None:
        """Have its packets go their way. BenchError: they go another."""
        self.time(scenario)

    def time(self, scenario: Scenario) -> float:
        """Return nanoseconds a packet. BenchError: packets went another way."""
        self._limit(scenario)
        before = self._counted()
        taken = self._time(self._program.program(scenario.program), scenario, _UNSPEC)
        moved = self._counted() - before
        names = self._program.verdicts()
        wanted = "tagged" if scenario.program == "tag" else "delayed" if scenario.waits else "sent"
        sent = sum(self._length) * self._batch
        # One that comes after a pause, when something else has had the CPU, needn't wait.
        if moved[names.index(wanted)] < sent * (1 - _STRAY):
            told = {name: int(n) for name, n in zip(names, moved, strict=False) if n}
            raise BenchError(f"{scenario.name}: of {sent} packets {told}")
        return taken

    def floor(self, scenario: Scenario) -> float:
        """The same of a program that does nothing."""
        return self._time(self._timer.programs["bench_tc_floor"], scenario, 0)

    @property
    def _batch(self) -> int:
        return int(self._timer.btf.enum("tc_bench_limits")["TC_BENCH_BATCH"])

    def _limit(self, scenario: Scenario) -> None:
        """Have limits that all packets reach, or none does, and the first aggregate idle."""
        states = self._program.maps["bw_states"]
        states.update(1, np.zeros_like(states.lookup(1)))
        if scenario == self._limited:
            return
        takes = _TAKES_IN_TURN if scenario.many else _TAKES
        rate = 8 * len(self._frame) * SECOND // takes if scenario.waits else _PLENTY
        limit = row(self._program, Limit(egress=rate, burst=0, horizon=_HORIZON))
        numbers = np.arange(1, self._program.aggregates + 1, dtype="=u4")
        for table, each in (("bw_limits", limit), ("bw_states", states.lookup(1))):
            rows = np.full(numbers.size, each, self._program.maps[table].value_dtype)
            self._program.maps[table].update_batch(numbers, rows)
        self._limited = scenario
        if scenario.many:  # the first packet of each never waits
            self._time(self._program.program(scenario.program), scenario, _UNSPEC)

    def _counted(self) -> np.ndarray:
        _, rows = self._program.maps["bw_counts"].snapshot()
        return np.asarray(rows["packets"].sum(axis=(0, 1)))

    def _time(self, program: Program, scenario: Scenario, expected: int) -> float:
        timed, untimed = self._length
        timer = self._timer
        timer.maps["under_test"].update(0, program.fd)
        state = timer.maps[".bss"].lookup(0)
        bench = state["bench"]
        record = np.zeros((), bench.dtype)
        record["packet"] = np.frombuffer(self._frame[:64], "=u8")
        record["expected"], record["untimed"] = expected, untimed
        record["mark"], record["mark_mask"] = self._mark, scenario.many and _IN_TURN - 1
        state["bench"] = record
        timer.maps[".bss"].update(0, state)
        context = bytearray(_SKB)
        struct.pack_into("=I", context, _IFINDEX, _LOOPBACK)
        wrapper = timer.programs["bench_tc_wrapper"]
        wrapper.test_run(self._frame, repeat=timed + untimed, ctx=bytes(context))
        after = timer.maps[".bss"].lookup(0)["bench"]
        if after["unexpected"] or after["broken"] or not after["packets"]:
            raise BenchError(f"{scenario.name}: {after['unexpected']} packets went another way")
        return float(after["nanoseconds"]) / float(after["packets"])


@contextmanager
def rig(aggregates: int = MANY, length: tuple[int, int] = (TIMED, UNTIMED)) -> Iterator[Rig]:
    """Run the block with the programs and so many limits. ``length``: batches, timed and not."""
    with ExitStack() as undo:
        program = undo.enter_context(BandwidthProgram(aggregates))
        timer = undo.enter_context(BpfObject.packaged("bench_timer_tc"))
        timer.load()
        yield Rig(program, timer, length)


def measure_cost(
    scenarios: Sequence[Scenario] = SCENARIOS,
    *,
    aggregates: int = MANY,
    runs: int = RUNS,
    progress: Callable[[str], None] = lambda _: None,
) -> Cost:
    """Time the programs in turn, the floor before each. BenchError, KernelError."""
    floors: list[float] = []
    taken: dict[str, list[float]] = {each.name: [] for each in scenarios}
    with on_one_cpu(), rig(aggregates) as made:
        for number in range(runs):
            progress(f"nanoseconds, {number + 1} of {runs}")
            for each in scenarios:
                floors.append(made.floor(each))
                taken[each.name].append(made.time(each))
    timings = tuple(Timing.of(name, each) for name, each in taken.items())
    return Cost(aggregates, Timing.of("floor", floors), timings)


def set_many(aggregates: int = MANY) -> Set:
    """Have so many pods limited on a node, by their addresses. KernelError."""
    first = int(ip_address("10.128.1.0"))
    pods = tuple(
        Pod(f"pod-{number}", addresses=(IPv4Address(first + number),), egress=50_000_000)
        for number in range(aggregates)
    )
    with new_netns():
        run("ip link add pods type veth peer name eth0")
        run("ip addr add 10.128.0.1/16 dev pods")
        run("ip link set pods up")
        began, worked = time.monotonic(), time.process_time()
        section = Section(devices=("eth0",), pods=pods, aggregates=aggregates)
        with Node(section, None) as node:
            took, cpu = time.monotonic() - began, time.process_time() - worked
            worked = time.process_time()
            node.sync()
            again = time.process_time() - worked
            size = sum(_memory(table.fd) for table in node.program.maps.values())
            node.detach()
    return Set(aggregates, round(took, 2), round(cpu, 2), round(again, 2), size)


def _memory(fd: int) -> int:
    """Bytes, as the kernel counts them."""
    lines = Path(f"/proc/self/fdinfo/{fd}").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("memlock:"))
