# SPDX-License-Identifier: Apache-2.0
"""The decapsulating program, loaded but not attached, beside its oracle."""

from __future__ import annotations

import struct
from collections import Counter
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING

from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet, Raw
from tests.prog.decap.oracle import UNWRAPPED, Outcome, unwrap

from towpath.datapath.decap.addresses import between
from towpath.datapath.decap.table import DecapCounters, DecapTable
from towpath.kernel.bpf.fragments import taking_fragments
from towpath.kernel.bpf.object import BpfObject

if TYPE_CHECKING:
    from collections.abc import Iterator

    from towpath.kernel.bpf.programs import Program, TestRun

SOURCES = {4: "198.51.100.1", 6: "2001:db8:1::1"}
TARGETS = {4: "192.0.2.11", 6: "2001:db8:2::11"}
CLIENTS = {4: "198.51.100.77", 6: "2001:db8:3::77"}
VIPS = {4: "203.0.113.10", 6: "2001:db8:4::10"}
ADDRESSES: frozenset[IPv4Address | IPv6Address] = frozenset(map(ip_address, TARGETS.values()))
PROTOCOLS = {4: 4, 6: 41}  # by the family of what is inside
COMBINATIONS = [(4, 4), (4, 6), (6, 4), (6, 6)]  # outer, inner


class Rig:
    """Runs frames and compares everything that can be seen with what the oracle says."""

    def __init__(
        self, program: Program, table: DecapTable, *, gre: bool = False, ports: tuple[int, ...] = ()
    ) -> None:
        self.gre, self.ports = gre, ports
        self.program = program
        self.table = table
        self.seen: Counter[str] = Counter()
        self.linear: int | None = None
        """So many bytes of a frame are in its first fragment (6.18), if a test says so."""

    def check(self, frame: bytes) -> Outcome:
        """Assert action, every byte and every counter; returns what the oracle expected."""
        expected = unwrap(frame, ADDRESSES, gre=self.gre, ports=self.ports)
        before = self.table.counters()
        run = self._run(frame)
        after = self.table.counters()

        assert (run.retval, run.data.hex()) == (expected.action, expected.frame.hex())
        assert moved(before, after) == predicted(expected)
        self.seen[expected.verdict] += 1
        return expected

    def _run(self, frame: bytes) -> TestRun:
        if self.linear is None:
            return self.program.test_run(frame)
        # struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex
        context = struct.pack("=6I", 0, min(self.linear, len(frame)), 0, 0, 0, 0)
        return self.program.test_run(frame, ctx=context)

    def expect(self, frame: bytes, verdict: str) -> bytes:
        """The same, for a test that knows the verdict itself; returns the frame that comes out."""
        outcome = self.check(frame)
        assert outcome.verdict == verdict
        return outcome.frame


def moved(before: DecapCounters, after: DecapCounters) -> dict[object, int]:
    """Counters that changed, and by how much."""
    changes: dict[object, int] = {
        name: after.verdicts[name] - count for name, count in before.verdicts.items()
    }
    for address, old in before.addresses.items():
        new = after.addresses[address]
        changes[address, "packets"] = new.packets - old.packets
        changes[address, "bytes"] = new.bytes - old.bytes
    return {what: by for what, by in changes.items() if by}


def predicted(outcome: Outcome) -> dict[object, int]:
    """Counters that have to change, and by how much."""
    changes: dict[object, int] = {outcome.verdict.removeprefix("DECAP_").lower(): 1}
    if outcome.verdict == UNWRAPPED:
        changes[outcome.destination, "packets"] = 1
        changes[outcome.destination, "bytes"] = outcome.inner_length
    return changes


@contextmanager
def loaded(*, gre: bool = False, ports: tuple[int, ...] = ()) -> Iterator[Rig]:
    """A fresh program that unwraps for ADDRESSES; what else than IPIP is said."""
    with taking_fragments(BpfObject.packaged("decap")) as obj:
        for name, value in between(gre=gre, udp_ports=ports).items():
            obj.rodata[name] = value
        obj.load()
        table = DecapTable(obj, obj.maps["addresses"], obj.maps["verdicts"])
        for address in ADDRESSES:
            table.add(address)
        yield Rig(obj.programs["towpath_decap"], table, gre=gre, ports=ports)


def ether(*, vlan: int | None = None, priority: int = 0, **fields: object) -> Packet:
    """A link header, with a tag if asked for."""
    link = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02", **fields)
    return link if vlan is None else link / Dot1Q(vlan=vlan, prio=priority)


def ip(family: int, src: str, dst: str, *, traffic_class: int = 0, **fields: object) -> Packet:
    """An IP header of either family; `traffic_class` is DSCP and ECN."""
    if family == 4:
        return IP(src=src, dst=dst, tos=traffic_class, **fields)
    return IPv6(src=src, dst=dst, tc=traffic_class, **fields)


def inner(
    family: int, *, traffic_class: int = 0, payload: bytes = b"towpath", **fields: object
) -> Packet:
    """A client's UDP packet to a VIP."""
    header = ip(family, CLIENTS[family], VIPS[family], traffic_class=traffic_class, **fields)
    return header / UDP(sport=40000, dport=80) / Raw(payload)


def outer(family: int, inside: int, *, traffic_class: int = 0, **fields: object) -> Packet:
    """The header that a balancer puts before a packet of family `inside`."""
    name = "proto" if family == 4 else "nh"
    fields = {name: PROTOCOLS[inside], **fields}
    return ip(family, SOURCES[family], TARGETS[family], traffic_class=traffic_class, **fields)


def tunnelled(family: int, inside: int) -> bytes:
    """The plainest frame of its kind."""
    return bytes(ether() / outer(family, inside) / inner(inside))
