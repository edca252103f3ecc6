# SPDX-License-Identifier: Apache-2.0
"""What source NAT must do with a frame, said a second time in plain Python.

Shares no code with Towpath. `NatTable` is the table of translations as the comments of
``bpf/abi/snat.h`` and ``bpf/snat/table.h`` describe it; the bytes are in `oracle_bytes`.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, ip_network
from typing import TYPE_CHECKING

from tests.prog.lb.oracle import (
    HANDOFF,
    LOST,
    NO_BACKEND,
    NO_VIP,
    REDIRECT,
    TOO_BIG,
    TOO_LARGE,
    TRACKED,
    TX,
    Outcome,
    World,
    left_by,
    mix,
)
from tests.prog.lb.oracle_flows import asks_for_a_connection
from tests.prog.lb.oracle_parse import (
    FRAGMENT,
    OTHER_PROTOCOL,
    Flow,
    Leave,
    Packet,
    fragment_of,
    parse,
    tcp_flags,
)
from tests.prog.lb.oracle_slow_path import may_be_answered, read_slow_path, told_mtu, too_big
from tests.prog.snat.oracle_bytes import hops, translated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from ipaddress import IPv4Network, IPv6Network

    from tests.prog.lb.oracle import Key, Served, Way
    from tests.prog.lb.oracle_parse import Address
    from tests.prog.lb.oracle_slow_path import FragmentKey, Left, SlowPath

    Prefixes = tuple[IPv4Network | IPv6Network, ...]

NO_PORT, NO_HOP, NO_FLOW = "drop_nat_ports", "drop_ttl", "drop_no_flow"
MARTIAN = "drop_martian"
MARTIANS = [ip_network(each) for each in ("0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/4", "240.0.0.0/4")]
WAYS, TRIES = 8, 16
FULL_SETS = 4  # that are looked at before it is taken for granted that all are
TCP, UDP = 6, 17
ANSWERED, FIN, RST = 1, 2, 4
TCP_FIN, TCP_SYN, TCP_RST, TCP_ACK = 1, 2, 4, 16


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
    own_port: int = 0
    """The backend's, 0 for that of the VIP."""
    timeout: int = 0
    """Of UDP with packets both ways, in the table's units; 0: the table's."""
    gone: bool = False
    """The backend has been removed, or was down, since."""
    key: Key | None = None
    """The service that it is for."""

    @property
    def reply(self) -> Flow:
        """The backend's packets."""
        flow = self.flow
        own = self.own_port or flow.destination_port
        return Flow(self.backend, self.source, own, self.port, flow.protocol)

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
    """In units, by tcp_open, tcp_new, tcp_closing, udp_open, udp_new, idle."""
    now: int = 0
    ways: dict[int, list[Entry | None]] = field(default_factory=dict)
    reach: dict[int, int] = field(default_factory=dict)
    own_ports: dict[tuple[Address, int, int, Address], int] = field(default_factory=dict)
    """Ports of backends by VIP, its port, protocol and backend, where they are others."""
    held: set[Flow] = field(default_factory=set)
    """Answers to flows of the kernel's: no entry has such."""

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
            return self.over(entry, entry.timeout)
        kind = "tcp_closing" if entry.closing else "tcp_open" if entry.confirmed else "tcp_new"
        return self.age(entry) > self.timeouts[kind]

    def over(self, entry: Entry, timeout: int) -> bool:
        """The same of a flow of UDP whose service's flows last so long, 0: as long as all."""
        most = timeout or self.timeouts["udp_open"]
        if not entry.confirmed:
            most = min(most, self.timeouts["udp_new"])
        return self.age(entry) > most

    def idle(self, entry: Entry) -> bool:
        """Whether it was unseen for so long that a SYN may begin another flow."""
        return self.age(entry) > self.timeouts["idle"]

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
                asked = flow.destination, flow.destination_port, flow.protocol, backend
                entry.own_port = self.own_ports.get(asked, 0)
                if entry.reply in self.held:
                    continue
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
        if self.key is not None and self.verdict in {TX, REDIRECT, HANDOFF}:
            moved |= {(self.key, "replies"): 1, (self.key, "reply_bytes"): self.length}
        return moved


@dataclass
class NatWorld(World):
    """A world in which some services are forwarded by source NAT."""

    table: NatTable = field(default_factory=lambda: NatTable(0, 1, {}, 0, 0, {}))
    translated: set[Key] = field(default_factory=set)
    lasting: dict[Key, int] = field(default_factory=dict)
    """How long a service's flows of UDP last, in the table's units, where it says so itself."""
    tracking: str = "none"
    """What is done with flows of the kernel's: none, known, take, give."""
    tracked: set[Flow] = field(default_factory=set)
    """These."""

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
        if not isinstance(outcome, NatOutcome):
            super().remember(outcome)
            return
        outcome.commit()
        if outcome.leaves is not None:
            key, left = outcome.leaves
            self.fragments[key] = left

    def timeout(self, key: Key) -> int:
        """How long a service's flows of UDP last, 0 for all others."""
        return self.lasting.get(key, 0)

    def backends_of(self, key: Key) -> frozenset[Address]:
        """Who is there to have flows of a service."""
        return self.services[key].backends if key in self.services else frozenset()

    def _admit(
        self,
        frame: bytes,
        ifindex: int,
        packet: Packet,
        key: Key,
        slow: SlowPath | None = None,
        left: Left | None = None,
    ) -> Outcome:
        """An error about no flow that is known is the kernel's, and what is authenticated."""
        if slow is not None and key in self.translated and not self._translates(slow):
            if slow.kind == "first":
                return Outcome(FRAGMENT, frame, leaves=leaves(slow, None))
            return Outcome(OTHER_PROTOCOL, frame)
        return super()._admit(frame, ifindex, packet, key, slow, left)

    @staticmethod
    def _translates(slow: SlowPath) -> bool:
        """RFC 4302: an authentication header covers addresses and ports."""
        return slow.kind != "error" and not slow.header.authenticated

    def _balance(
        self,
        frame: bytes,
        ifindex: int,
        packet: Packet,
        key: Key,
        slow: SlowPath | None = None,
        left: Left | None = None,
    ) -> Outcome:
        """What is translated goes another way."""
        if key not in self.translated:
            return super()._balance(frame, ifindex, packet, key, slow, left)
        if left is not None:
            return self._follow(frame, ifindex, packet, key, left)
        return self._forward(frame, ifindex, packet, key, slow)

    def _judge_slow(self, frame: bytes, ifindex: int, verdict: str) -> Outcome:
        """A fragment may be an answer's."""
        try:
            slow = read_slow_path(frame)
        except Leave:
            return super()._judge_slow(frame, ifindex, verdict)
        if slow is not None and slow.kind in {"first", "later"}:
            answer = self._reply_in_fragments(frame, ifindex, slow)
            if answer is not None:
                return answer
        return super()._judge_slow(frame, ifindex, verdict)

    # ---- from the client -----------------------------------------------------------------------

    def _forward(
        self, frame: bytes, ifindex: int, packet: Packet, key: Key, slow: SlowPath | None = None
    ) -> Outcome:
        flow, flags = packet.flow, tcp_flags(packet) or 0
        found = NatOutcome(NO_BACKEND, frame, packet.length, key, flow)
        if hops(packet) <= 1:
            return ending(found, NO_HOP)
        hash64 = flow_hash64(flow, self.seed)
        entry = self.table.find(flow, hash64)
        stale = entry is not None and self._stale(entry, key, flags)
        if entry is not None and not stale:
            left = leaves(slow, entry.backend)
            found = ending(found, NO_BACKEND, backend=entry.backend, entry=entry, leaves=left)
            return self._to_backend(found, ifindex, packet, lambda: self._seen(entry, flags))
        forget = (lambda: self.table.forget(entry)) if entry else (lambda: None)
        if refused := self._refused(flow, flags):
            return ending(found, refused, commit=forget, leaves=self._left_whole(refused, slow))
        said, named = self.named(frame, packet, key)
        backend = named or self.of_client(key, flow) or self.by_maglev(key, flow)
        found = replace(found, said=said, route=None if named else self._route(key, flow))
        if backend is None:
            return ending(found, NO_BACKEND, fresh=True, commit=forget)
        # The table is changed already by packets that can't be sent on.
        if entry is not None:
            self.table.forget(entry)
        made = self.table.make(flow, hash64, backend, flags)
        if made is not None:
            made.key, made.timeout = key, self.timeout(key)
        left = leaves(slow, backend)
        found = ending(found, NO_PORT, fresh=True, backend=backend, entry=made, leaves=left)

        def commit() -> None:
            if self.services[key].keeps:
                self.clients[key, flow.source] = backend, self.now

        if made is None:
            return ending(found, NO_PORT, commit=commit)
        return self._to_backend(found, ifindex, packet, commit)

    def _route(self, key: Key, flow: Flow) -> Prefixes | None:
        """The route that a new flow goes by."""
        known = self.of_client(key, flow)
        return None if known else self.services[key].route(flow.source)

    def _refused(self, flow: Flow, flags: int) -> str | None:
        """The verdict of a packet of a flow that isn't known, if it isn't balanced."""
        return TRACKED if self._is_kernels(flow, flags) else begins_nothing(flow, flags)

    @staticmethod
    def _left_whole(verdict: str, slow: SlowPath | None) -> tuple[FragmentKey, Left] | None:
        """The kernel gets what it gets of a packet whole."""
        return leaves(slow, None) if verdict == TRACKED else None

    def _is_kernels(self, flow: Flow, flags: int) -> bool:
        """Whether it is: a SYN begins what is not."""
        if self.tracking in {"none", "give"}:
            return self.tracking == "give"
        if flow.protocol == TCP and flags & (TCP_SYN | TCP_ACK) == TCP_SYN:
            self.tracked.discard(flow)
            return False
        if self.tracking == "take":
            self.tracked.add(flow)
        return flow in self.tracked

    def _follow(self, frame: bytes, ifindex: int, packet: Packet, key: Key, left: Left) -> Outcome:
        """A later fragment goes to the backend of the first one, while its flow is there."""
        flow = packet.flow
        found = NatOutcome(LOST, frame, packet.length, key, flow, quiet=True)
        if hops(packet) <= 1:
            return ending(found, NO_HOP)
        entry = self.table.find(flow, flow_hash64(flow, self.seed))
        if entry is None:
            return found
        if self._stale(entry, key, 0):
            return ending(found, LOST, commit=lambda: self.table.forget(entry))
        found = ending(found, LOST, entry=entry, commit=lambda: self._seen(entry, 0))
        if left.gone or left.backend != entry.backend:
            return found
        found = ending(found, LOST, backend=entry.backend)
        return self._to_backend(found, ifindex, packet, found.commit)

    def _stale(self, entry: Entry, key: Key, flags: int) -> bool:
        if entry.gone or entry.key != key:
            return True
        if entry.flow.protocol == UDP:
            return self.table.over(entry, self.timeout(key))
        if not asks_for_a_connection(flags):
            return False
        over = entry.closing or self.table.expired(entry)
        # One that its backend keeps only while it has something to keep.
        leaves = entry.backend in self.services[key].drained
        return over or (leaves and (not entry.confirmed or self.table.idle(entry)))

    def _seen(self, entry: Entry, flags: int) -> None:
        entry.seen = self.table.now
        if entry.key is not None:
            entry.timeout = self.timeout(entry.key)
        entry.client |= marks(flags)
        if not flags & TCP_SYN and entry.answers & ANSWERED:
            entry.client |= ANSWERED

    def _to_backend(
        self, found: NatOutcome, ifindex: int, packet: Packet, commit: Callable[[], None]
    ) -> Outcome:
        entry = found.entry
        assert entry is not None
        flow = packet.flow
        own = entry.reply.source_port
        ends = Flow(entry.source, entry.backend, entry.port, own, flow.protocol)
        found = ending(found, found.verdict, commit=commit)
        return self._send_translated(found, ifindex, packet, ends, self.ways[entry.backend])

    # ---- from the backend ----------------------------------------------------------------------

    def _reply_in_fragments(self, frame: bytes, ifindex: int, slow: SlowPath) -> Outcome | None:
        """The same for a fragment, None if it is none to one of our addresses."""
        packet, left = slow.packet, self.fragments.get(slow.fragment_key)
        if slow.kind == "later":
            if left is None or left.backend is None:
                return None
            flow = Flow(
                packet.flow.source,
                packet.flow.destination,
                left.source_port,
                left.destination_port,
                left.protocol,
            )
            packet = replace(packet, flow=flow, checksum_at=left.checksum_at)
        if self.find(packet.flow) is not None or not self._may_be_source(packet.flow.destination):
            return None
        if self._translates(slow):
            found = self._reply(frame, ifindex, packet, slow, left)
            if found.verdict != NO_VIP:
                return found
        if slow.kind == "later":
            return Outcome(LOST, frame)
        return Outcome(FRAGMENT, frame, leaves=leaves(slow, None))

    def _may_be_source(self, address: Address) -> bool:
        """All that the program asks of an address: its last six bits are one of ours."""
        ours = (source for sources in self.table.sources.values() for source in sources)
        return int(address) & 63 in {int(source) & 63 for source in ours}

    def _reply(
        self,
        frame: bytes,
        ifindex: int,
        packet: Packet,
        slow: SlowPath | None = None,
        left: Left | None = None,
    ) -> Outcome:
        entry = self.table.find_reply(packet.flow)
        if entry is None or entry.gone:
            return Outcome(NO_VIP, frame)
        key = entry.key
        found = NatOutcome(NO_HOP, frame, packet.length, key, packet.flow, reply=True, entry=entry)
        if slow is not None and slow.kind == "later":
            if left is None or left.gone or left.backend != entry.backend:
                return Outcome(NO_VIP, frame)
        else:
            found = ending(found, NO_HOP, leaves=leaves(slow, entry.backend))
        if hops(packet) <= 1:
            return ending(found, NO_HOP, entry=None)  # the flow isn't seen
        flow = entry.flow
        ends = Flow(
            flow.destination,
            flow.source,
            flow.destination_port,
            flow.source_port,
            flow.protocol,
        )
        found = ending(found, NO_HOP, commit=lambda: self._answered(entry, tcp_flags(packet) or 0))
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
            return self._goes_back(self._told(found, packet, way.mtu), ifindex)
        out = translated(packet, ends, self.table.seed)
        ethertype = {4: b"\x08\x00", 6: b"\x86\xdd"}[version]
        if self._is_the_kernels(way):
            note = self._note(way.ifindex, None)
            return ending(found, HANDOFF, frame=note + bytes(12) + ethertype + out)
        device, tag = self._egress(ifindex, upper, packet.tag, way)
        tagged = struct.pack("!HH", 0x8100, tag) if tag else b""
        assert way.next_hop_mac is not None
        addresses = way.next_hop_mac + way.source_mac
        verdict, out, by = self._leaves(ifindex, device, addresses + tagged + ethertype + out)
        return ending(found, verdict, frame=out, by=by)

    def _told(self, found: NatOutcome, packet: Packet, room: int) -> Outcome:
        """Nothing is added to a packet, so its sender is told the MTU of the way itself."""
        fragment = fragment_of(packet.behind_link)
        kind = "later" if fragment and fragment.offset else ""
        mtu = told_mtu(packet, room, kind, df_only=self.df_only)
        if mtu is None or not may_be_answered(found.frame, packet.flow.source):
            return ending(found, TOO_LARGE)
        start = len(found.frame) - len(packet.behind_link)
        return ending(found, TOO_BIG, frame=too_big(found.frame, packet, start, mtu))


def leaves(slow: SlowPath | None, backend: Address | None) -> tuple[FragmentKey, Left] | None:
    """What a packet that goes to a backend, or is its answer, leaves to later fragments."""
    if slow is None or slow.kind != "first":
        return None
    return slow.fragment_key, left_by(slow, backend)


def ending(found: NatOutcome, verdict: str, **changed: object) -> NatOutcome:
    """The same packet with its verdict and what else is known by now."""
    fields = {name: getattr(found, name) for name in found.__dataclass_fields__}
    return NatOutcome(**(fields | {"verdict": verdict} | changed))


def flow_hash64(flow: Flow, seed: int) -> int:
    """All 64 bits of the flow's hash."""
    family = {4: socket.AF_INET, 6: socket.AF_INET6}[flow.source.version]
    ports = struct.pack("!HHBBxx", flow.source_port, flow.destination_port, flow.protocol, family)
    raw = flow.source.packed + flow.destination.packed + ports
    state = seed
    for word in struct.unpack(f"<{len(raw) // 8}Q", raw):
        state = mix(state, word)
    return mix(state, 0)


def begins_nothing(flow: Flow, flags: int) -> str | None:
    """The verdict, where a packet of no flow that is known can't be a new one's."""
    if flags & TCP_RST:
        return NO_FLOW
    return MARTIAN if is_martian(flow.source) else None


def is_martian(address: Address) -> bool:
    """Whether no host has it that could be answered from another link (RFC 6890)."""
    if isinstance(address, IPv4Address):
        return any(address in each for each in MARTIANS)
    special = address.is_unspecified or address.is_loopback or address.is_multicast
    return special or address.is_link_local or address.ipv4_mapped is not None
