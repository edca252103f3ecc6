# SPDX-License-Identifier: Apache-2.0
"""Flows of pods to services, as they are in the table.

Programs write it while it is read: an entry is taken if `ref` was the same before and after. One
whose time is over is there until its place is wanted, and isn't told.
"""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from towpath.datapath.address import unpack
from towpath.documents import PacketFlow
from towpath.kernel.jiffies import Jiffies, per_second

if TYPE_CHECKING:
    from collections.abc import Iterator

    from towpath.datapath.address import Address
    from towpath.datapath.lb.contents import Contents
    from towpath.datapath.lb.services import Installed
    from towpath.datapath.socket.packets.node import Node
    from towpath.datapath.socket.packets.program import PacketProgram

    Array = np.ndarray[Any, Any]

_CHUNK = 1024  # sets read at once
_MODULUS = 1 << 16
_PROTOCOLS = {6: "tcp", 17: "udp"}
_UDP = 17
_EPOCH_BITS = 32


class FlowTable:
    """Reads the table. KernelError: no permission to."""

    def __init__(self, program: PacketProgram) -> None:
        self._flows = program.maps["packet_flows"]
        marks = {name: program.constant("nat_marks", f"NAT_{name}") for name in _MARKS}
        self._answered, self._fin, self._rst = (marks[name] for name in _MARKS)
        self._shift = program.constant("nat_limits", "NAT_SEEN_SHIFT")
        self._allowed = program.allowed
        with Jiffies() as jiffies:
            self._now = jiffies.now() >> self._shift

    def count(self) -> int:
        """How many there are."""
        return sum(len(entries) for entries, _, _ in self.live())

    def live(self) -> Iterator[tuple[Array, Array, Array]]:
        """Entries with their states and ages, in steps of nat_life.seen; some at a time."""
        for begin in range(0, self._flows.max_entries, _CHUNK):
            count = min(_CHUNK, self._flows.max_entries - begin)
            with self._flows.mmap(begin, count, writable=False) as flows:
                entries = flows.array["way"].copy()
                same = flows.array["way"]["ref"] == entries["ref"]
            states, ages = self._states(entries), self._ages(entries)
            live = (entries["ref"] != 0) & same & (ages <= self._times(entries, states))
            yield entries[live], states[live], ages[live]

    def seconds(self, age: int) -> float:
        """An age in seconds."""
        return round(age * (1 << self._shift) / per_second(), 1)

    def _ages(self, entries: Array) -> Array:
        ages = (self._now - entries["life"]["seen"].astype(np.int64)) % _MODULUS
        ages[ages > _MODULUS - 16] = 0
        return ages

    def _states(self, entries: Array) -> Array:
        client, backend = entries["life"]["client"], entries["life"]["backend"]
        closing = ((client | backend) & self._rst != 0) | (client & backend & self._fin != 0)
        established = np.where(client & self._answered != 0, "established", "new")
        return np.where(closing & (entries["protocol"] != _UDP), "closing", established)

    def _times(self, entries: Array, states: Array) -> Array:
        """How long each is kept, as ``nat_allowed`` of ``bpf/snat/life.h`` has it."""
        allowed, udp = self._allowed, entries["protocol"] == _UDP
        own = entries["timeout"].astype(np.int64)
        opened = np.where(own != 0, own, allowed["nat_udp_open"])
        young = np.minimum(allowed["nat_udp_new"], opened)
        of_tcp = {"new": "nat_tcp_new", "established": "nat_tcp_open", "closing": "nat_tcp_closing"}
        times = np.where(states == "established", opened, young)
        for state, name in of_tcp.items():
            times = np.where(~udp & (states == state), allowed[name], times)
        return times


_MARKS = ("ANSWERED", "FIN", "RST")


def packet_flows(node: Node, limit: int, **wanted: object) -> list[PacketFlow]:
    """Some of them: those whose fields are what is ``wanted``, None: whatever they are."""
    asked = {name: value for name, value in wanted.items() if value is not None}
    every = _flows(node)
    fitting = (each for each in every if all(getattr(each, name) == asked[name] for name in asked))
    return list(islice(fitting, limit))


def _flows(node: Node) -> Iterator[PacketFlow]:
    contents, table = node.contents, FlowTable(node.program)
    names = {key: each.name for key, each in contents.by_key.items()}
    services = {
        handle: names.get(each.key, str(each.key))
        for each in contents.installed
        for handle in each.noted.handles
    }
    for entries, states, ages in table.live():
        for entry, state, age in zip(entries, states, ages, strict=True):
            of_family = int(entry["family"])
            handle, epoch = _handle(entry)
            yield PacketFlow(
                protocol=_PROTOCOLS[int(entry["protocol"])],
                service=services.get(handle, "") if epoch == node.program.epoch else "",
                device=node.devices.get(int(entry["ifindex"]), str(entry["ifindex"])),
                client=unpack(entry["client"].tobytes(), of_family),
                client_port=int(entry["client_port"]),
                vip=unpack(entry["vip"].tobytes(), of_family),
                port=int(entry["vip_port"]),
                backend=unpack(entry["backend"].tobytes(), of_family),
                backend_port=int(entry["backend_port"]),
                seen_port=int(entry["port"]),
                state=str(state),
                idle_seconds=table.seconds(int(age)),
            )


def _handle(entry: Any) -> tuple[int, int]:
    to = int(entry["to"])
    return to & ((1 << _EPOCH_BITS) - 1), to >> _EPOCH_BITS


# ---- Other tables --------------------------------------------------------------------------------


def renew_handles(program: PacketProgram, contents: Contents) -> None:
    """Give flows that have handles of other tables those of these, by what their backends are.

    One whose backend has gone gets none: its next packet begins it anew.
    """
    flows = program.maps["packet_flows"]
    with flows.mmap() as mapped:
        entries = mapped.array["way"]
        to = entries["to"]
        others = (entries["ref"] != 0) & (to >> np.uint64(_EPOCH_BITS) != program.epoch)
        for at in zip(*np.nonzero(others), strict=True):
            entry = entries[at].copy()
            handle = _look_up(entry, contents)
            # One store; the entry may be another one by now, with these tables' handle.
            if entries["ref"][at] == entry["ref"]:
                to[at] = handle | program.epoch << _EPOCH_BITS


def _look_up(entry: Any, contents: Contents) -> int:
    of_family = int(entry["family"])
    vip = unpack(entry["vip"].tobytes(), of_family)
    backend = unpack(entry["backend"].tobytes(), of_family)
    protocol, port = _PROTOCOLS[int(entry["protocol"])], int(entry["vip_port"])
    for service in contents.installed:
        if service.key.protocol == protocol and _is_for(service, vip, port):
            return service.handles.get(backend, 0)
    return 0


def _is_for(service: Installed, vip: Address, port: int) -> bool:
    key = service.key
    mine = vip in key.vip if isinstance(key.vip, IPv4Network | IPv6Network) else vip == key.vip
    return mine and any(each.first <= port <= each.last for each in key.ports.ranges)
