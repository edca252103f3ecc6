# SPDX-License-Identifier: Apache-2.0
"""The clients and backends around a node that forwards, by ``bpf/bench/forward.bpf.c``."""

from __future__ import annotations

import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from towpath.bench.cpu import on_cpu
from towpath.bench.errors import BenchError
from towpath.bench.forward_network import (
    FIRST_BACKEND,
    FIRST_CLIENT,
    NODE,
    Network,
    backend_mac,
    schedule,
)
from towpath.bench.forward_ways import PORT, REDIRECT, REDIRECT_SKB
from towpath.bench.frames import frame
from towpath.kernel.bpf.links import attach_xdp
from towpath.kernel.bpf.object import BpfObject
from towpath.kernel.net.napi import cpu_seconds
from towpath.kernel.net.netns import in_netns
from towpath.model.flow import FlowTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from towpath.bench.forward_ways import Way

_FIRST_PORT = 20000
_PAYLOAD = 18  # the smallest frame: 64 bytes with the checksum that is behind it on a wire
_FRAME = 60
_HEADERS = 42
_WORD = 0xFFFFFFFF
_GLANCE, _PATIENCE = 0.001, 10.0  # seconds; a thread may have to wait for its CPU


@dataclass(frozen=True, slots=True)
class Cpus:
    """Where clients send, and where the node's and the backends' packets are taken."""

    clients: int
    node: int
    backends: int


@dataclass(frozen=True, slots=True)
class Sample:
    """What became of the packets of a run.

    ``seconds``: from the first to the last that was sent. ``cpu``: seconds of it that the node
    worked, None where that can't be seen. ``wrong``: arrived at a backend, but not as they should;
    ``unknown``: at a client, but not from the VIP.
    """

    seconds: float
    sent: int
    arrived: tuple[int, ...]
    wrong: int
    answered: int
    unknown: int
    cpu: float | None

    @property
    def total(self) -> int:
        """Packets that arrived at backends as they should."""
        return sum(self.arrived)


class _Counts(NamedTuple):
    arrived: tuple[int, ...]
    wrong: int
    answered: int
    unknown: int


class World:
    """Clients and backends of a network."""

    def __init__(self, network: Network, loaded: BpfObject, threads: tuple[int, ...]) -> None:
        self.network = network
        self.redirects = {
            REDIRECT: loaded.programs["redirect"],
            REDIRECT_SKB: loaded.programs["redirect_skb"],
        }
        self._offer = loaded.programs["offer"]
        self._state = loaded.maps[".bss"]
        self._arrived = loaded.maps["arrived"]
        self._strays = loaded.maps["strays"]
        self._threads = threads
        self._mark = 0

    def send(
        self,
        way: Way,
        flows: int,
        packets: int,
        cpus: Cpus,
        *,
        gap: int = 0,
        answered: bool = False,
        first: int | None = None,
    ) -> Sample:
        """Send so many packets, of so many flows in turn, and wait for the last to arrive.

        ``gap``: nanoseconds between two. ``answered``: backends answer each of them. ``first``: the
        number of the first flow, of which each goes to another backend from a port of its own;
        None: all flows are to one address. KernelError: EINTR, a signal ended it. BenchError:
        nothing arrives.
        """
        sent = self._frame(way)
        self._prepare(way, sent, flows, answered=answered, first=first)
        before, cpu = self._counts(), self._cpu()
        with in_netns(self.network.clients.namespace), on_cpu(cpus.clients):
            progress = self._offer_packets(sent, packets, gap=gap)
            self._wait(way, sent, answered=answered)
        after = self._counts()
        worked = None if cpu is None else (self._cpu() or 0.0) - cpu
        return Sample(
            (int(progress["ended"]) - int(progress["began"])) / 1e9,
            packets,
            tuple(b - a for a, b in zip(before.arrived, after.arrived, strict=True)),
            after.wrong - before.wrong,
            after.answered - before.answered,
            after.unknown - before.unknown,
            worked,
        )

    def _offer_packets(self, sent: bytes, packets: int, *, gap: int = 0, mark: int = 0) -> Any:
        state = self._state.lookup(0)
        state["progress"] = np.zeros((), state["progress"].dtype)
        state["bench"]["packets"], state["bench"]["gap"] = packets, gap
        state["bench"]["mark"] = mark
        self._state.update(0, state)
        self._offer.send_live(sent, packets)
        return self._state.lookup(0)["progress"]

    def _wait(self, way: Way, sent: bytes, *, answered: bool) -> None:
        """Wait until everything has arrived. BenchError: nothing does.

        A marked packet goes behind all others, and nothing overtakes. It may find a queue full, as
        others do: another one follows then.
        """
        first, place = self._mark + 1, "answered_mark" if answered else "arrived_mark"
        deadline = time.monotonic() + _PATIENCE
        while int(self._strays.lookup(0)[place].max()) < first:
            if time.monotonic() > deadline:
                raise BenchError(f"{way.name}: no packet arrives")
            self._mark += 1
            self._offer_packets(sent, 1, mark=self._mark)
            time.sleep(_GLANCE)

    def _frame(self, way: Way) -> bytes:
        flow = FlowTuple.parse(f"{FIRST_CLIENT}:{_FIRST_PORT} -> {way.vip}:{PORT} udp")
        sent = frame(flow, payload=_PAYLOAD)
        return self.network.enter.mac + self.network.clients.mac + sent[12:]

    def _prepare(
        self, way: Way, sent: bytes, flows: int, *, answered: bool, first: int | None
    ) -> None:
        state = self._state.lookup(0)
        bench, network = state["bench"], self.network
        bench["remotes"] = 0 if first is None else network.number
        bench["first_flow"] = first or 0
        bench["flows"], bench["answers"] = flows, answered
        bench["first"] = np.frombuffer(sent[:_HEADERS], np.uint8)
        bench["clients_ifindex"] = network.clients.index
        bench["backends_ifindex"] = network.backends.index
        bench["out_ifindex"] = network.leave.index
        bench["out_mac"] = np.frombuffer(backend_mac(0), np.uint8)
        bench["backends"] = network.number
        bench["daddr"] = int(FIRST_BACKEND if way.to_backend else way.vip)
        bench["daddr_step"] = way.to_backend
        bench["saddr"], bench["saddr_mask"] = int(NODE), _WORD if way.translated else 0
        bench["protocol"], bench["vip"], bench["port"] = way.protocol, int(way.vip), PORT
        self._state.update(0, state)

    def _counts(self) -> _Counts:
        each = range(self.network.number)
        arrived = tuple(int(self._arrived.lookup(n)["packets"].sum()) for n in each)
        strays = self._strays.lookup(0)
        names = ("wrong", "answered", "unknown")
        return _Counts(arrived, *(int(strays[name].sum()) for name in names))

    def _cpu(self) -> float | None:
        return sum(map(cpu_seconds, self._threads)) if self._threads else None


@contextmanager
def world(network: Network, cpus: Cpus, *, apart: bool) -> Iterator[World]:
    """Run the block with clients and backends, and threads for who takes which packets.

    ``apart``: backends have a thread of their own. Otherwise what arrives at them is taken in the
    node's, by its CPU.
    """
    with ExitStack() as undo:
        loaded = undo.enter_context(BpfObject.packaged("bench_forward"))
        loaded.load()
        for end, name in ((network.clients, "clients"), (network.backends, "backends")):
            with in_netns(end.namespace):
                undo.enter_context(attach_xdp(loaded.programs[name], end.index, "native"))
        threads = network.node_threads()
        for thread in threads:
            schedule(thread, cpus.node)
        for thread in network.backend_threads() if apart else ():
            schedule(thread, cpus.backends, above=True)
        yield World(network, loaded, threads)
