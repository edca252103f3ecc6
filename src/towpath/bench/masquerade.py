# SPDX-License-Identifier: Apache-2.0
"""Masquerade beside nftables: packets a second through a node, and nanoseconds for each."""

from __future__ import annotations

import os
import struct
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from ipaddress import ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from towpath.bench.errors import BenchError
from towpath.bench.forward import RUNS, SECONDS, ForwardReport, Spread, measure
from towpath.bench.forward_network import (
    FIRST_BACKEND,
    FIRST_CLIENT,
    IN,
    NODE,
    backend_mac,
    forward_network,
)
from towpath.bench.forward_ways import MASQUERADE, MASQUERADE_WAYS, NFT_MASQUERADE, PORT
from towpath.bench.frames import frame
from towpath.bench.masquerade_new import measure_new
from towpath.datapath.masquerade.flows import FlowTable
from towpath.datapath.masquerade.node import Node
from towpath.kernel.bpf.object import BpfObject
from towpath.kernel.net.netns import in_netns
from towpath.model.flow import FlowTuple
from towpath.model.masquerade import Rule, Section

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from towpath.bench.forward import Pace
    from towpath.bench.forward_network import Network
    from towpath.kernel.bpf.maps import Map
    from towpath.kernel.bpf.programs import Program

FLOWS, TIMED_RUNS = 10_000, 21
_REPEAT, _WARM = 2_000, 200  # batches
_NEW, _NEW_RUNS, _BATCH = 300, 5, 32
_REMOTES = 30_000
"""New flows go to so many in turn."""
HELD = 500_000
"""Flows at once."""
_REDIRECT, _OK = 7, 0  # TC_ACT_*
_SKB, _INGRESS, _IFINDEX = 192, 36, 40  # struct __sk_buff, and where its fields are
_PODS = ip_network("198.18.0.0/16")


@dataclass(frozen=True, slots=True)
class Held:
    """Many flows at once, in a table of the size that is the default.

    ``flows``: so many got in, of ``asked``. ``seconds``: in which they began. ``bytes``: the
    table's. ``ns``: for a packet afterwards, all flows in turn.
    """

    asked: int
    flows: int
    seconds: float
    bytes: int
    ns: float


@dataclass(frozen=True, slots=True)
class MasqueradeReport:
    """What masquerade costs.

    ``ways``: packets a second by each way in turn. ``new``: the same of packets of which each is
    the first of a flow, so flows a second. ``ns``: in the kernel, by what was timed; the floor,
    which is in each of them, is that of a program that does nothing; new: a packet of a flow that
    isn't known.
    """

    ways: ForwardReport
    new: tuple[Pace, ...]
    ns: dict[str, Spread]
    held: Held

    def as_json(self) -> dict[str, Any]:
        """As ``towpath bench masquerade --json`` prints it."""
        towpath = next(way for way in self.ways.ways if way.name == MASQUERADE)
        if towpath.ratio is None:
            raise BenchError("there is nothing to compare with")
        return {
            "kernel": os.uname().release,
            "ratio_to_nftables": {"median": towpath.ratio.p50, "least": towpath.ratio.min},
            "ns_per_packet": {name: asdict(each) for name, each in self.ns.items()},
            "held": asdict(self.held),
            "new_flows": [asdict(way) for way in self.new],
            "ways": self.ways.as_json()["ways"],
            "flows": self.ways.flows,
        }


def measure_masquerade(
    *,
    flows: int = FLOWS,
    runs: int = RUNS,
    seconds: float = SECONDS,
    progress: Callable[[str], None] = lambda _: None,
) -> MasqueradeReport:
    """Send packets of pods through a node that masquerades them; nothing is left behind.

    BenchError: something doesn't do what it should. KernelError: something can't be made.
    """
    progress("nanoseconds")
    ns = time_programs()
    progress(f"{HELD} flows")
    held = hold()
    ways = measure(
        MASQUERADE_WAYS,
        backends=1,
        flows=flows,
        runs=runs,
        seconds=seconds,
        baseline=NFT_MASQUERADE,
        progress=progress,
    )
    return MasqueradeReport(ways, measure_new(runs, progress), ns, held)


@contextmanager
def _node_and_timer() -> Iterator[tuple[Network, Node, BpfObject]]:
    with ExitStack() as undo:
        network = undo.enter_context(forward_network(1))
        undo.enter_context(in_netns(network.enter.namespace))
        section = Section(rules=(Rule((IN,), (_PODS,)),), rate=1 << 30)
        node = undo.enter_context(Node(section, None))
        undo.callback(node.detach)
        timer = undo.enter_context(BpfObject.packaged("bench_timer_tc"))
        timer.load()
        yield network, node, timer


def hold(flows: int = HELD) -> Held:
    """Begin so many flows, and send a packet of each again. Some may find no place."""
    with _node_and_timer() as (network, node, timer):
        bound = node.program.programs["masq_from_pod"], _out(network), network.enter.index
        repeat = -(-flows // _BATCH)
        begun, known = (_time(timer, *bound, None, first=1, repeat=repeat) for _ in range(2))
        table = [node.program.maps[name] for name in ("masq_flows", "masq_heads", "masq_locks")]
        return Held(
            repeat * _BATCH,
            FlowTable(node).count(),
            round(begun * repeat * _BATCH / 1e9, 2),
            sum(map(_size, table)),
            round(known, 1),
        )


def _size(table: Map) -> int:
    """Bytes of memory, as the kernel counts them."""
    lines = Path(f"/proc/self/fdinfo/{table.fd}").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("memlock:"))


def time_programs(runs: int = TIMED_RUNS) -> dict[str, Spread]:
    """Time a known flow's packets, out and back, in the kernel: nanoseconds for each."""
    with _node_and_timer() as (network, node, timer):
        programs = node.program.programs
        out = _out(network)
        translated = _run(programs["masq_from_pod"], out, network.enter.index)
        back = _back(network, translated)
        _run(programs["masq_from_net"], back, network.leave.index)
        # All of a flow that both sides have confirmed.
        _run(programs["masq_from_pod"], out, network.enter.index)
        timed = {
            "floor": (timer.programs["bench_tc_floor"], out, network.enter.index, _OK),
            "out": (programs["masq_from_pod"], out, network.enter.index, _REDIRECT),
            "back": (programs["masq_from_net"], back, network.leave.index, _REDIRECT),
        }
        found: dict[str, list[float]] = {name: [] for name in timed}
        for _ in range(runs):
            for name, each in timed.items():
                found[name].append(_time(timer, *each))
        found["new"] = [
            _time(timer, *timed["out"], first=1 + number * _NEW * _BATCH, repeat=_NEW)
            for number in range(_NEW_RUNS)
        ]
        return {name: Spread.of(each) for name, each in found.items()}


def _out(network: Network) -> bytes:
    flow = FlowTuple.parse(f"{FIRST_CLIENT + 1}:20000 -> {FIRST_BACKEND}:{PORT} udp")
    sent = frame(flow, payload=32)
    return network.enter.mac + network.clients.mac + sent[12:]


def _back(network: Network, translated: bytes) -> bytes:
    (port,) = struct.unpack_from("!H", translated, 34)
    flow = FlowTuple.parse(f"{FIRST_BACKEND}:{PORT} -> {NODE}:{port} udp")
    return network.leave.mac + backend_mac(0) + frame(flow, payload=32)[12:]


def _context(index: int) -> bytes:
    context = bytearray(_SKB)
    struct.pack_into("=II", context, _INGRESS, 0, index)
    return bytes(context)


def _run(program: Program, packet: bytes, index: int) -> bytes:
    """Have a program translate a packet. BenchError: it doesn't."""
    ran = program.test_run(packet, ctx=_context(index))
    if ran.retval != _REDIRECT:
        raise BenchError(f"{program.name} returned {ran.retval}, and didn't redirect the packet")
    return ran.data


def _time(
    timer: BpfObject,
    program: Program,
    packet: bytes,
    index: int,
    expected: int | None,
    *,
    first: int | None = None,
    repeat: int = _REPEAT,
) -> float:
    """Return nanoseconds a packet. ``first``: of which on all are of flows of their own.

    ``expected``: TC_ACT_*; None: whatever comes. BenchError: another one came.
    """
    timer.maps["under_test"].update(0, program.fd)
    state = timer.maps[".bss"].lookup(0)
    bench = state["bench"]
    bench["packet"] = np.frombuffer(packet[:64], "=u8")
    bench["expected"], bench["untimed"] = expected or 0, 0 if first else _WARM
    bench["vary"], bench["sequence"] = 0 if first is None else _REMOTES, first or 0
    for name in ("unexpected", "broken", "packets", "nanoseconds"):
        bench[name] = 0
    timer.maps[".bss"].update(0, state)
    timer.programs["bench_tc_wrapper"].test_run(packet, repeat=repeat, ctx=_context(index))
    after = timer.maps[".bss"].lookup(0)["bench"]
    wrong = 0 if expected is None else int(after["unexpected"])
    if wrong or after["broken"] or not after["packets"]:
        raise BenchError(f"{program.name}: {wrong} packets went another way")
    return float(after["nanoseconds"]) / float(after["packets"])
