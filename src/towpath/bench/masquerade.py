# SPDX-License-Identifier: Apache-2.0
"""Masquerade beside nftables: packets a second through a node, and nanoseconds for each."""

from __future__ import annotations

import os
import struct
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from ipaddress import ip_network
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
from towpath.datapath.masquerade.node import Node
from towpath.kernel.bpf.object import BpfObject
from towpath.kernel.net.netns import in_netns
from towpath.model.flow import FlowTuple
from towpath.model.masquerade import Rule, Section

if TYPE_CHECKING:
    from collections.abc import Callable

    from towpath.bench.forward_network import Network
    from towpath.kernel.bpf.programs import Program

FLOWS, TIMED_RUNS = 10_000, 21
_REPEAT, _WARM = 2_000, 200  # batches
_NEW, _NEW_RUNS, _BATCH, _APART = 300, 5, 32, 512
"""For new flows, of which the table mustn't be full."""
_REDIRECT, _OK = 7, 0  # TC_ACT_*
_SKB, _INGRESS, _IFINDEX = 192, 36, 40  # struct __sk_buff, and where its fields are
_PODS = ip_network("198.18.0.0/16")


@dataclass(frozen=True, slots=True)
class MasqueradeReport:
    """What masquerade costs.

    ``ways``: packets a second by each way in turn. ``ns``: in the kernel, by what was timed; the
    floor, which is in each of them, is that of a program that does nothing; new: a packet of a flow
    that isn't known.
    """

    ways: ForwardReport
    ns: dict[str, Spread]

    def as_json(self) -> dict[str, Any]:
        """As ``towpath bench masquerade --json`` prints it."""
        towpath = next(way for way in self.ways.ways if way.name == MASQUERADE)
        if towpath.ratio is None:
            raise BenchError("there is nothing to compare with")
        return {
            "kernel": os.uname().release,
            "ratio_to_nftables": {"median": towpath.ratio.p50, "least": towpath.ratio.min},
            "ns_per_packet": {name: asdict(each) for name, each in self.ns.items()},
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
    ways = measure(
        MASQUERADE_WAYS,
        backends=1,
        flows=flows,
        runs=runs,
        seconds=seconds,
        baseline=NFT_MASQUERADE,
        progress=progress,
    )
    return MasqueradeReport(ways, ns)


def time_programs(runs: int = TIMED_RUNS) -> dict[str, Spread]:
    """Time a known flow's packets, out and back, in the kernel: nanoseconds for each."""
    with ExitStack() as undo:
        network = undo.enter_context(forward_network(1))
        undo.enter_context(in_netns(network.enter.namespace))
        section = Section(rules=(Rule((IN,), (_PODS,)),), flows=1 << 19, rate=1 << 30)
        node = undo.enter_context(Node(section, None))
        undo.callback(node.detach)
        timer = undo.enter_context(BpfObject.packaged("bench_timer_tc"))
        timer.load()
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
            _time(timer, *timed["out"], first=_APART + number * _NEW * _BATCH, repeat=_NEW)
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
    expected: int,
    *,
    first: int | None = None,
    repeat: int = _REPEAT,
) -> float:
    """Return nanoseconds a packet. ``first``: of which on all are of flows of their own."""
    timer.maps["under_test"].update(0, program.fd)
    state = timer.maps[".bss"].lookup(0)
    bench = state["bench"]
    bench["packet"] = np.frombuffer(packet[:64], "=u8")
    bench["expected"], bench["untimed"] = expected, 0 if first else _WARM
    bench["vary"], bench["sequence"] = first is not None, first or 0
    for name in ("unexpected", "broken", "packets", "nanoseconds"):
        bench[name] = 0
    timer.maps[".bss"].update(0, state)
    timer.programs["bench_tc_wrapper"].test_run(packet, repeat=repeat, ctx=_context(index))
    after = timer.maps[".bss"].lookup(0)["bench"]
    if after["unexpected"] or after["broken"] or not after["packets"]:
        raise BenchError(f"{program.name}: {int(after['unexpected'])} packets went another way")
    return float(after["nanoseconds"]) / float(after["packets"])
