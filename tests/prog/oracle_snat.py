# SPDX-License-Identifier: Apache-2.0
"""What source NAT must do with a frame, said a second time in plain Python.

Shares no code with Towpath. `NatTable` is the table of translations as the comments of
``bpf/abi.h`` and ``bpf/nat.h`` describe it; packets are written anew, with checksums computed from
scratch (RFC 1071) where the program follows them (RFC 1624).
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.prog.oracle_xdp import (
    HANDOFF,
    LOST,
    NO_BACKEND,
    NO_VIP,
    REDIRECT,
    TOO_LARGE,
    TX,
    Outcome,
    World,
    checksum,
    mix,
)
from tests.prog.oracle_xdp_parse import (
    OTHER_PROTOCOL,
    Flow,
    Leave,
    Packet,
    parse,
    walk_extensions,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.prog.oracle_xdp import Key, Served, Way
    from tests.prog.oracle_xdp_parse import Address
    from tests.prog.oracle_xdp_special import Left, Special

NO_PORT, NO_HOP = "drop_nat_ports", "drop_ttl"
WAYS, TRIES = 8, 16
FULL_SETS = 4  # that are looked at before it is taken for granted that all are
TCP, UDP = 6, 17
ANSWERED, FIN, RST = 1, 2, 4
TCP_FIN, TCP_SYN, TCP_RST, TCP_ACK = 1, 2, 4, 16
SYN_OR_ACK = TCP_SYN | TCP_ACK


@dataclass(eq=False)
class Entry:
    """One translation and what was seen of it."""

    flow: Flow
    source: Address
    port: int
    backend: Address
    seen: int
    client: int = 0
    answers: int = 0
    gone: bool = False
    """The backend has been removed, or was down, since."""
    key: Key | None = None
    """The service that it is for."""

    @property
    def reply(self) -> Flow:
        """The backend's packets."""
        flow = self.flow
        return Flow(self.backend, self.source, flow.destination_port, self.port, flow.protocol)

    @property
    def closing(self) -> bool:
        """Whether it has come to its end: reset by one, or finished by both."""
        both = self.client & self.answers
        return bool((self.client | self.answers) & RST or both & FIN)

    @property
    def confirmed(self) -> bool:
        """Whether the client went on after the backend's answer."""
        return bool(self.client & ANSWERED)


@dataclass
class NatTable:
    """Translations by set and way."""

    seed: int
    sets: int
    sources: dict[int, list[Address]]
    first_port: int
    ports: int
    timeouts: dict[str, int]
    """In units, by tcp_open, tcp_new, tcp_closing, udp_open, udp_new."""
    now: int = 0
    ways: dict[int, list[Entry | None]] = field(default_factory=dict)
    reach: dict[int, int] = field(default_factory=dict)

    def at(self, number: int) -> list[Entry | None]:
        """A set."""
        return self.ways.setdefault(number, [None] * WAYS)

    def set_of(self, source: Address, port: int, protocol: int) -> int:
        """Where translations to an address and port are."""
        last = int.from_bytes(source.packed[-4:], "big")
        return mix(self.seed, port | protocol << 16 | last << 24) % self.sets

    def candidates(self, flow: Flow, hash64: int) -> Iterator[tuple[Address, int, int]]:
        """Addresses and ports that a flow may get, with their sets, in order."""
        sources = self.sources[flow.source.version]
        count = len(sources) * self.ports
        keyed = mix(hash64, self.seed)
        number = (keyed & 0xFFFFFFFF) * count >> 32
        stride = 1 + ((keyed >> 32) * (count - 1) >> 32) if count > TRIES else 1
        for i in range(TRIES):
            at = (number + i * stride) % count
            source, port = sources[at // self.ports], self.first_port + at % self.ports
            yield source, port, self.set_of(source, port, flow.protocol)

    def find(self, flow: Flow, hash64: int) -> Entry | None:
        """The flow's translation."""
        reach = 0
        for i, (source, port, number) in enumerate(self.candidates(flow, hash64)):
            for entry in self.at(number):
                if entry and (entry.flow, entry.source, entry.port) == (flow, source, port):
                    return entry
            if i == 0:
                reach = self.reach.get(number, 0)
            if i >= reach:
                break
        return None

    def forget(self, entry: Entry) -> None:
        """Free an entry's way."""
        number, way = self.place(entry)
        self.at(number)[way] = None

    def expired(self, entry: Entry) -> bool:
        """Whether it has been without packets for too long."""
        if entry.flow.protocol == UDP:
            kind = "udp_open" if entry.confirmed else "udp_new"
        elif entry.closing:
            kind = "tcp_closing"
        else:
            kind = "tcp_open" if entry.confirmed else "tcp_new"
        return self.age(entry) > self.timeouts[kind]

    def age(self, entry: Entry) -> int:
        """Units since its last packet."""
        return (self.now - entry.seen) & 0xFFFF

    def place(self, entry: Entry) -> tuple[int, int]:
        """The set and the way that have it."""
        number = self.set_of(entry.source, entry.port, entry.flow.protocol)
        return number, self.at(number).index(entry)

    def entries(self) -> list[Entry]:
        """All of them."""
        return [entry for ways in self.ways.values() for entry in ways if entry]

    def make(self, flow: Flow, hash64: int, backend: Address, flags: int) -> Entry | None:
        """Give a flow an address and a port, None if there are none."""
        for pressed in (False, True):
            home, full = None, 0
            for i, (source, port, number) in enumerate(self.candidates(flow, hash64)):
                home = number if home is None else home
                if i:
                    self.reach[home] = max(self.reach.get(home, 0), i)
                entry = Entry(flow, source, port, backend, self.now, marks(flags))
                ways = self.at(number)
                way = self._way(ways, entry.reply, pressed=pressed)
                if way is not None:
                    ways[way] = entry
                    return entry
                full += not any(other and other.reply == entry.reply for other in ways)
                if full == FULL_SETS and not pressed:
                    break
        return None

    def _way(self, ways: list[Entry | None], reply: Flow, *, pressed: bool) -> int | None:
        """The way that a new entry gets in a set, None if it gets none."""

        def may_go(entry: Entry) -> bool:
            return self.expired(entry) or (pressed and (not entry.confirmed or entry.closing))

        for way, entry in enumerate(ways):
            if entry and entry.reply == reply:
                return way if may_go(entry) else None
        if None in ways:
            return ways.index(None)
        going = [(way, e) for way, e in enumerate(ways) if e and may_go(e)]
        if not going:
            return None
        oldest = min(going, key=lambda e: (not self.expired(e[1]), -self.age(e[1]), e[0]))
        return oldest[0]

    def find_reply(self, flow: Flow) -> Entry | None:
        """What a packet of a backend's is an answer to."""
        number = self.set_of(flow.destination, flow.destination_port, flow.protocol)
        return next((e for e in self.at(number) if e and e.reply == flow), None)


def marks(flags: int) -> int:
    """What a segment's flags leave in an entry."""
    return (FIN if flags & TCP_FIN else 0) | (RST if flags & TCP_RST else 0)


@dataclass(frozen=True)
class NatOutcome(Outcome):
    """What becomes of a packet that is translated, and of the table with it."""

    commit: Callable[[], None] = lambda: None
    reply: bool = False
    entry: Entry | None = None

    def counts(self) -> dict[object, int]:
        """Every counter that moves: a reply is none of the service's packets."""
        if not self.reply:
            return super().counts()
        moved: dict[object, int] = {self.verdict: 1}
        if self.key is not None and not self.verdict.startswith(("drop", "pass")):
            moved |= {(self.key, "replies"): 1, (self.key, "reply_bytes"): self.length}
        return moved


@dataclass
class NatWorld(World):
    """A world in which some services are forwarded by source NAT."""

    table: NatTable = field(default_factory=lambda: NatTable(0, 1, {}, 0, 0, {}))
    translated: set[Key] = field(default_factory=set)

    def judge(self, frame: bytes, ifindex: int) -> Outcome:
        """What happens to a frame that comes in on a device.

        Changes nothing but for a flow that is new: it has its translation from here on.
        """
        try:
            packet = parse(frame)
        except Leave:
            return super().judge(frame, ifindex)
        key = self.find(packet.flow)
        if key is None:
            return self._reply(frame, ifindex, packet)
        if key not in self.translated:
            return super().judge(frame, ifindex)
        return self._admit(frame, ifindex, packet, key)

    def serve(self, services: dict[Key, Served]) -> None:
        """Replace the services. What is translated to a backend that is gone is nobody's."""
        super().serve(services)
        for entry in self.table.entries():
            entry.gone |= entry.key is None or entry.backend not in self.backends_of(entry.key)

    def remember(self, outcome: Outcome) -> None:
        """Carry out what a packet changes."""
        if isinstance(outcome, NatOutcome):
            outcome.commit()
        else:
            super().remember(outcome)

    def backends_of(self, key: Key) -> frozenset[Address]:
        """Who is there to have flows of a service."""
        return self.services[key].backends if key in self.services else frozenset()

    def _admit(
        self,
        frame: bytes,
        ifindex: int,
        packet: Packet,
        key: Key,
        special: Special | None = None,
        left: Left | None = None,
    ) -> Outcome:
        """An error about no flow that is known is the kernel's, whoever sent it."""
        if special is not None and special.kind == "error" and key in self.translated:
            return Outcome(OTHER_PROTOCOL, frame)
        return super()._admit(frame, ifindex, packet, key, special, left)

    def _balance(
        self,
        frame: bytes,
        ifindex: int,
        packet: Packet,
        key: Key,
        special: Special | None = None,
        left: Left | None = None,
    ) -> Outcome:
        """What is no whole packet with ports is not translated by itself."""
        if key not in self.translated:
            return super()._balance(frame, ifindex, packet, key, special, left)
        if special is None:
            return self._forward(frame, ifindex, packet, key)
        return Outcome(LOST, frame, packet.length, key, packet.flow, quiet=True)

    # ---- from the client -----------------------------------------------------------------------

    def _forward(self, frame: bytes, ifindex: int, packet: Packet, key: Key) -> Outcome:
        flow, flags = packet.flow, tcp_flags(packet)
        found = NatOutcome(NO_BACKEND, frame, packet.length, key, flow)
        if hops(packet) <= 1:
            return ending(found, NO_HOP)
        hash64 = flow_hash64(flow, self.seed)
        entry = self.table.find(flow, hash64)
        stale = entry is not None and self._stale(entry, key, flags)
        if entry is not None and not stale:
            found = ending(found, NO_BACKEND, backend=entry.backend, entry=entry)
            return self._to_backend(found, ifindex, packet, lambda: self._seen(entry, flags))
        backend = self.of_client(key, flow) or self.by_maglev(key, flow)
        if backend is None:
            forget = (lambda: self.table.forget(entry)) if entry else (lambda: None)
            return ending(found, NO_BACKEND, fresh=True, commit=forget)
        # The table is changed already by packets that can't be sent on.
        if entry is not None:
            self.table.forget(entry)
        made = self.table.make(flow, hash64, backend, flags)
        if made is not None:
            made.key = key
        found = ending(found, NO_PORT, fresh=True, backend=backend, entry=made)

        def commit() -> None:
            if self.services[key].keeps:
                self.clients[key, flow.source] = backend, self.now

        if made is None:
            return ending(found, NO_PORT, commit=commit)
        return self._to_backend(found, ifindex, packet, commit)

    def _stale(self, entry: Entry, key: Key, flags: int) -> bool:
        if entry.gone or entry.key != key:
            return True
        begins = flags & SYN_OR_ACK == TCP_SYN
        return begins and (entry.closing or self.table.expired(entry))

    def _seen(self, entry: Entry, flags: int) -> None:
        entry.seen = self.table.now
        entry.client |= marks(flags)
        if not flags & TCP_SYN and entry.answers & ANSWERED:
            entry.client |= ANSWERED

    def _to_backend(
        self, found: NatOutcome, ifindex: int, packet: Packet, commit: Callable[[], None]
    ) -> Outcome:
        entry = found.entry
        assert entry is not None
        flow = packet.flow
        ends = Flow(entry.source, entry.backend, entry.port, flow.destination_port, flow.protocol)
        found = ending(found, found.verdict, commit=commit)
        return self._send_translated(found, ifindex, packet, ends, self.ways[entry.backend])

    # ---- from the backend ----------------------------------------------------------------------

    def _reply(self, frame: bytes, ifindex: int, packet: Packet) -> Outcome:
        entry = self.table.find_reply(packet.flow)
        if entry is None or entry.gone:
            return Outcome(NO_VIP, frame)
        key = entry.key
        found = NatOutcome(NO_HOP, frame, packet.length, key, packet.flow, reply=True, entry=entry)
        if hops(packet) <= 1:
            return found
        flow = entry.flow
        ends = Flow(
            flow.destination,
            flow.source,
            flow.destination_port,
            flow.source_port,
            flow.protocol,
        )
        found = ending(found, NO_HOP, commit=lambda: self._answered(entry, tcp_flags(packet)))
        return self._send_translated(found, ifindex, packet, ends, self.ways[flow.source])

    def _answered(self, entry: Entry, flags: int) -> None:
        entry.seen = self.table.now
        entry.answers |= ANSWERED | marks(flags)

    # ---- both ----------------------------------------------------------------------------------

    def _send_translated(
        self, found: NatOutcome, ifindex: int, packet: Packet, ends: Flow, way: Way
    ) -> Outcome:
        version = ends.destination.version
        upper = self.vlan_devices.get((ifindex, packet.tag & 0xFFF)) if packet.tag & 0xFFF else None
        if (upper or ifindex, version) in self.not_forwarding:
            return ending(found, "drop_no_forwarding")
        if way.refused:
            return ending(found, way.refused)
        if way.mtu and packet.length > way.mtu:
            return ending(found, TOO_LARGE)
        out = translated(packet, ends)
        ethertype = {4: b"\x08\x00", 6: b"\x86\xdd"}[version]
        if way.next_hop_mac is None:
            note = self._note(way, None)
            return ending(found, HANDOFF, frame=note + bytes(12) + ethertype + out)
        device, tag = self._egress(ifindex, upper, packet.tag, way)
        tagged = struct.pack("!HH", 0x8100, tag) if tag else b""
        addresses = way.next_hop_mac + way.source_mac
        verdict = TX if device == ifindex else REDIRECT
        return ending(found, verdict, frame=addresses + tagged + ethertype + out)


def ending(found: NatOutcome, verdict: str, **changed: object) -> NatOutcome:
    """The same packet with its verdict and what else is known by now."""
    fields = {name: getattr(found, name) for name in found.__dataclass_fields__}
    return NatOutcome(**(fields | {"verdict": verdict} | changed))


# ---- Bytes ---------------------------------------------------------------------------------------


def transport_offset(packet: Packet) -> int:
    """Where the transport header begins in the IP packet."""
    raw = packet.behind_link
    return (raw[0] & 15) * 4 if raw[0] >> 4 == 4 else walk_extensions(raw)[1]


def tcp_flags(packet: Packet) -> int:
    """The flags of a TCP segment, 0 of a datagram."""
    if packet.flow.protocol != TCP:
        return 0
    return packet.behind_link[transport_offset(packet) + 13]


def hops(packet: Packet) -> int:
    """TTL or hop limit."""
    return packet.behind_link[8 if packet.behind_link[0] >> 4 == 4 else 7]


def translated(packet: Packet, ends: Flow) -> bytes:
    """The IP packet, padding too, between other ends and one hop farther."""
    raw, at = bytearray(packet.behind_link), transport_offset(packet)
    raw[at : at + 4] = struct.pack("!HH", ends.source_port, ends.destination_port)
    if raw[0] >> 4 == 4:
        raw[8] -= 1
        raw[12:20] = ends.source.packed + ends.destination.packed
        raw[10:12] = bytes(2)
        raw[10:12] = struct.pack("!H", checksum(bytes(raw[: (raw[0] & 15) * 4])))
    else:
        raw[7] -= 1
        raw[8:40] = ends.source.packed + ends.destination.packed
    segment = bytes(raw[at : packet.length])
    where = at + (16 if ends.protocol == TCP else 6)
    if ends.protocol == TCP or raw[where : where + 2] != bytes(2):
        raw[where : where + 2] = struct.pack("!H", transport_checksum(segment, ends))
    return bytes(raw)


def transport_checksum(segment: bytes, ends: Flow) -> int:
    """RFC 9293 and 768: over the pseudo header and the segment with a checksum of 0."""
    at = 16 if ends.protocol == TCP else 6
    segment = segment[:at] + bytes(2) + segment[at + 2 :]
    pseudo = ends.source.packed + ends.destination.packed
    pseudo += struct.pack("!II", len(segment), ends.protocol)
    found = checksum(pseudo + segment + bytes(len(segment) % 2))
    return 0xFFFF if ends.protocol == UDP and found == 0 else found


def flow_hash64(flow: Flow, seed: int) -> int:
    """All 64 bits of the flow's hash."""
    family = {4: socket.AF_INET, 6: socket.AF_INET6}[flow.source.version]
    ports = struct.pack("!HHBBxx", flow.source_port, flow.destination_port, flow.protocol, family)
    raw = flow.source.packed + flow.destination.packed + ports
    state = seed
    for word in struct.unpack(f"<{len(raw) // 8}Q", raw):
        state = mix(state, word)
    return mix(state, 0)
