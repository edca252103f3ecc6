# SPDX-License-Identifier: Apache-2.0
"""What the load balancer must do with a frame, said a second time in plain Python.

Shares no code with Towpath. A `World` is told which services, routes and neighbours there are; it
parses the frame by itself, hashes as the comments of ``bpf/net/hash.h`` say, chooses the Maglev
slot, writes the outer headers from the RFCs (2003, 2473, 6040, 6438, 6864, 1071) and says which
counters have to move.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_network
from typing import TYPE_CHECKING

from tests.prog.lb.oracle_flows import RST, Life
from tests.prog.lb.oracle_parse import (
    FRAGMENT,
    OTHER_PROTOCOL,
    UDP,
    Flow,
    Leave,
    Packet,
    parse,
    tcp_flags,
)
from tests.prog.lb.oracle_quic import ask
from tests.prog.lb.oracle_slow_path import (
    FragmentKey,
    Left,
    SlowPath,
    echo_reply,
    may_be_answered,
    read_slow_path,
    told_mtu,
    too_big,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.prog.lb.oracle_parse import Address
    from tests.prog.lb.oracle_quic import Ids

XDP_DROP, XDP_PASS, XDP_TX, XDP_REDIRECT = 1, 2, 3, 4
TX, REDIRECT, HANDOFF, LOCAL = "tx", "redirect", "handoff", "local"
TRACKED = "pass_tracked"
NO_VIP = "pass_no_vip"
NO_BACKEND = "drop_no_backend"
TOO_LARGE = "drop_mtu"
NOT_FOR_YOU = "drop_source"
NOT_ON_LINK = "drop_not_on_link"
NO_SOURCE = "drop_no_address"
TOO_BIG, ECHO, LOST = "tx_too_big", "tx_echo", "drop_fragment"
ACTIONS = {
    TX: XDP_TX,
    REDIRECT: XDP_REDIRECT,
    HANDOFF: XDP_PASS,
    LOCAL: XDP_PASS,
    TRACKED: XDP_PASS,
    TOO_BIG: XDP_TX,
    ECHO: XDP_TX,
}
OTHERWISE = {"redirect": XDP_REDIRECT, "kernel": XDP_PASS}
DRIVER = frozenset({"ethernet", "tx", "redirect", "fragments"})
"""What a device can that nothing else is said of; "generic" is the other thing that can be said."""
LINEAR = 3520
"""Bytes of a frame that aren't in fragments: a page less headroom and what the kernel notes."""
NO_FAMILY, AS_IT_IS = 0, 255  # in a note: where the packet is addressed to; where the frame is

OUTER_HEADER = {4: 20, 6: 40}
BETWEEN = {"ipip": 0, "gre": 4, "fou": 8, "gue": 8, "gue0": 12}
OUTER_TTL = 64
CARRIED = {4: 4, 6: 41}  # protocol number of a packet within a packet
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
ETHERTYPES = {4: 0x0800, 6: 0x86DD}
DSCP_AND_ECN_SHIFT = 20
TRANSPORTS = (6, 17)
M64 = (1 << 64) - 1

Ranges = tuple[tuple[int, int], ...]
Key = tuple["Address | IPv4Network | IPv6Network", "int | Ranges", int]
"""A service: VIP or prefix of VIPs, port or ranges of ports, protocol number."""


# ---- What is there -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Served:
    """A service: its Maglev table, whether it remembers its flows, and whose flows go on."""

    slots: Sequence[Address]
    remembers: bool
    backends: frozenset[Address]
    unchanged: bool = False
    """Packets go on as they came, in a new frame (direct routing on one link)."""
    keeps: int = 0
    """Seconds that a client keeps its backend, 0 for not at all."""
    sources: tuple[IPv4Network | IPv6Network, ...] | None = None
    """Whom it is for; None: everyone."""
    drained: frozenset[Address] = frozenset()
    """Backends that get no new flows."""
    lasts: int = 300
    """Seconds without packets after which a flow of UDP has ended."""
    hash_by: str = "flow"
    """What gives a new flow its backend: flow, client or port."""
    encap: str = "ipip"
    """What is between the outer IP header and the packet: ipip, gre, fou, gue or gue0."""
    encap_port: int = 6080
    ids: Ids | None = None
    """What connection ids of QUIC look like, and whom they name; None: nobody asks them."""
    routes: tuple[tuple[tuple[IPv4Network | IPv6Network, ...], Sequence[Address]], ...] = ()
    """Prefixes, and the Maglev table that new flows from there go by, if it isn't empty."""

    def route(self, source: Address) -> tuple[IPv4Network | IPv6Network, ...] | None:
        """The prefixes of the route that a source has: the longest that it is in says which."""
        found = [
            (prefix.prefixlen, prefixes, slots)
            for prefixes, slots in self.routes
            for prefix in prefixes
            if source.version == prefix.version and source in prefix
        ]
        if not found:
            return None
        _, prefixes, slots = max(found, key=lambda each: each[0])
        return prefixes if slots else None

    def added(self, backend: Address) -> int:
        """Bytes that a packet has more on its way to a backend."""
        return 0 if self.unchanged else OUTER_HEADER[backend.version] + BETWEEN[self.encap]


IN_IPIP = Served((), remembers=True, backends=frozenset())
"""Of which nothing else is asked than how packets get there."""


@dataclass(frozen=True)
class Way:
    """What routes and neighbours say of an address.

    ``refused``: the verdict, where there is no way. Without a MAC address the next hop isn't
    resolved yet. ``mtu`` 0: any size.
    """

    ifindex: int = 0
    source: Address | None = None
    source_mac: bytes = bytes(6)
    next_hop_mac: bytes | None = None
    mtu: int = 0
    refused: str = ""
    gateway: Address | None = None
    """The next hop, where that isn't the address itself."""


@dataclass
class World:
    """Everything that decides about a frame, and the flows that are remembered."""

    seed: int
    cookie: int
    services: dict[Key, Served] = field(default_factory=dict)
    ways: dict[Address, Way] = field(default_factory=dict)
    not_forwarding: set[tuple[int, int]] = field(default_factory=set)  # ifindex, IP version
    vary: dict[int, tuple[Address, int]] = field(default_factory=dict)
    """By IP version: an outer source, and how many of its last bits the flow's hash fills."""
    vlan_devices: dict[tuple[int, int], int] = field(default_factory=dict)
    """The device that stands for a VLAN, by lower device and VLAN id."""
    egress_devices: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Lower device and tag that such a device stands for."""
    remembered: dict[tuple[Key, Flow], Address] = field(default_factory=dict)
    lives: dict[tuple[Key, Flow], Life] = field(default_factory=dict)
    """Of remembered flows; one that isn't here goes on, and was just seen."""
    fragments: dict[FragmentKey, Left] = field(default_factory=dict)
    """What first fragments have left."""
    echo: bool = True
    df_only: bool = False
    """Only who has set DF is told what fits."""
    clients: dict[tuple[Key, Address], tuple[Address, int]] = field(default_factory=dict)
    """A client's backend, and when a flow of the client last began."""
    now: int = 0
    """In seconds."""
    linear: int = LINEAR
    devices: dict[int, frozenset[str]] = field(default_factory=dict)
    """What can leave by a device, see DRIVER."""
    shows_note: bool = True
    """Whether what is put in front of a frame for the kernel is seen with the frame."""

    def serve(self, services: dict[Key, Served]) -> None:
        """Replace the services. Flows of backends that are gone or down are forgotten."""
        self.services = services
        self.remembered = {
            (key, flow): backend
            for (key, flow), backend in self.remembered.items()
            if key in services and backend in services[key].backends
        }
        there = {backend for service in services.values() for backend in service.backends}
        self.fragments = {
            key: left if left.backend is None or left.backend in there else replace(left, gone=True)
            for key, left in self.fragments.items()
        }
        self.clients = {
            (key, client): known
            for (key, client), known in self.clients.items()
            if key in services and known[0] in services[key].backends
        }

    def judge(self, frame: bytes, ifindex: int) -> Outcome:
        """What happens to a frame that comes in on a device. Changes nothing."""
        try:
            packet = parse(frame)
        except Leave as leave:
            if leave.verdict not in {FRAGMENT, OTHER_PROTOCOL}:
                return Outcome(leave.verdict, frame)
            return self._judge_slow(frame, ifindex, leave.verdict)
        key = self.find(packet.flow)
        if key is None:
            return Outcome(NO_VIP, frame)
        return self._admit(frame, ifindex, packet, key)

    def _admit(
        self,
        frame: bytes,
        ifindex: int,
        packet: Packet,
        key: Key,
        slow: SlowPath | None = None,
        left: Left | None = None,
    ) -> Outcome:
        """Balance what is from a source that the service is for."""
        sources = self.services[key].sources
        if sources is not None and not any(packet.flow.source in each for each in sources):
            return Outcome(NOT_FOR_YOU, frame, packet.length, key, packet.flow)
        return self._balance(frame, ifindex, packet, key, slow, left)

    def _judge_slow(self, frame: bytes, ifindex: int, verdict: str) -> Outcome:
        """The same for fragments, ICMP and what is authenticated.

        The verdict is what those get that nobody awaits.
        """
        try:
            slow = read_slow_path(frame)
        except Leave as leave:
            return Outcome(leave.verdict, frame)
        if slow is None:
            return Outcome(verdict, frame)
        if slow.kind == "echo":
            return self._judge_echo(frame, ifindex, slow)
        if slow.kind == "later":
            return self._judge_later(frame, ifindex, slow)
        key = self.find(slow.packet.flow)
        if key is not None:
            return self._admit(frame, ifindex, slow.packet, key, slow)
        return self._unserved(frame, slow, verdict)

    def _unserved(self, frame: bytes, slow: SlowPath, verdict: str) -> Outcome:
        """Of no service."""
        if slow.kind == "authenticated":
            return Outcome(NO_VIP, frame)
        passed = Outcome(verdict, frame)
        if slow.kind == "first" and self.is_vip(slow.header.destination):
            return replace(passed, leaves=(slow.fragment_key, left_by(slow, None)))
        return passed

    def _judge_echo(self, frame: bytes, ifindex: int, slow: SlowPath) -> Outcome:
        header = slow.header
        code = frame[header.transport + 1]
        answered = self.echo and header.plain and not code and self.is_vip(header.destination)
        if not answered or not may_be_answered(frame, header.source):
            return Outcome(OTHER_PROTOCOL, frame)
        return self._goes_back(Outcome(ECHO, echo_reply(frame, header)), ifindex)

    def _judge_later(self, frame: bytes, ifindex: int, slow: SlowPath) -> Outcome:
        header = slow.header
        ours = header.protocol in TRANSPORTS
        left = self.fragments.get(slow.fragment_key)
        if left is None:
            lost = ours and self.is_vip(header.destination)
            return Outcome(LOST if lost else FRAGMENT, frame)
        if left.backend is None:
            return Outcome(FRAGMENT, frame)
        flow = Flow(
            header.source,
            header.destination,
            left.source_port,
            left.destination_port,
            left.protocol,
        )
        packet = replace(slow.packet, flow=flow, checksum_at=left.checksum_at)
        key = self.find(flow)
        if key is None:
            return Outcome(LOST if self.is_vip(header.destination) else FRAGMENT, frame)
        return self._admit(frame, ifindex, packet, key, slow, left)

    def is_vip(self, address: Address) -> bool:
        """Whether any service is for an address."""
        return any(address in ip_network(vip) for vip, _, _ in self.services)

    def find(self, flow: Flow) -> Key | None:
        """The service: of this very address and port, else of the longest prefix with the port."""
        exact = (flow.destination, flow.destination_port, flow.protocol)
        if exact in self.services:
            return exact
        found = [key for key in self.services if not is_exact(key) and is_for(key, flow)]
        return max(found, key=lambda key: ip_network(key[0]).prefixlen, default=None)

    def remember(self, outcome: Outcome) -> None:
        """Learn the flow of a packet that has been through."""
        if outcome.leaves is not None:
            key, left = outcome.leaves
            self.fragments[key] = left
        if outcome.quiet:
            return
        if outcome.key is None or outcome.flow is None or outcome.backend is None:
            return
        if self.services[outcome.key].remembers:
            self.remembered[outcome.key, outcome.flow] = outcome.backend
            if outcome.fresh:
                self.lives[outcome.key, outcome.flow] = Life.begins_with(outcome.flags)
            else:
                self.life(outcome.key, outcome.flow).goes_on_with(outcome.flags)
        if self.services[outcome.key].keeps and outcome.fresh:
            self.clients[outcome.key, outcome.flow.source] = outcome.backend, self.now

    def life(self, key: Key, flow: Flow) -> Life:
        """What is known of a remembered flow."""
        return self.lives.setdefault((key, flow), Life())

    def choose(self, key: Key, flow: Flow, flags: int) -> tuple[Address | None, bool]:
        """The flow's backend, and whether the flow is a new one."""
        service = self.services[key]
        known = self.remembered.get((key, flow)) if service.remembers else None
        life = self.life(key, flow) if known is not None else Life()
        leaves = known in service.drained and life.gives_way_to(flags)
        ended = flow.protocol == UDP and life.seconds_ago > service.lasts
        if known is not None and not leaves and not ended:
            return known, False
        return self.of_client(key, flow) or self.by_maglev(key, flow), True

    def named(self, frame: bytes, packet: Packet, key: Key) -> tuple[str, Address | None]:
        """What a packet's connection id says, and whom it names, if the service asks these."""
        ids = self.services[key].ids
        return ("", None) if ids is None else ask(ids, packet, len(frame) - len(packet.behind_link))

    def of_client(self, key: Key, flow: Flow) -> Address | None:
        """The backend that the service's affinity has for the client, if any."""
        service = self.services[key]
        backend, began = self.clients.get((key, flow.source), (None, 0))
        if not service.keeps or backend in service.drained or self.now - began >= service.keeps:
            return None
        return backend

    def by_maglev(self, key: Key, flow: Flow) -> Address | None:
        """The backend in the slot that the flow hashes to, or its client's address does."""
        service = self.services[key]
        slots = dict(service.routes).get(service.route(flow.source) or (), service.slots)
        if not slots:
            return None
        if service.hash_by == "port":
            hashed = port_hash(flow.destination_port, self.seed)
        elif service.keeps or service.hash_by == "client":
            hashed = client_hash(flow.source, self.seed)
        else:
            hashed = flow_hash(flow, self.seed)
        return slots[hashed * len(slots) >> 32]

    def _balance(
        self,
        frame: bytes,
        ifindex: int,
        packet: Packet,
        key: Key,
        slow: SlowPath | None = None,
        left: Left | None = None,
    ) -> Outcome:
        kind = slow.kind if slow else ""
        told = tcp_flags(packet) if kind in {"", "first", "authenticated"} else 0
        flags = told or 0
        backend, fresh = self.choose(key, packet.flow, flags)
        said, named = self.named(frame, packet, key) if kind in {"", "first"} else ("", None)
        # A flow that is remembered keeps its entry, whoever is named.
        other = named is not None and not fresh and named != backend
        backend = named or backend
        if left is not None:
            backend = None if left.gone else left.backend
        # Of a fragment that ends before its flags nobody knows what it does to a flow.
        unsaid = kind in {"error", "later"} or told is None
        quiet = unsaid or other
        route = None
        if (
            fresh
            and named is None
            and not unsaid
            and not flags & RST
            and not self.of_client(key, packet.flow)
        ):
            route = self.services[key].route(packet.flow.source)
        if flags & RST and fresh:
            # It ends what nobody knows. Who remembers no flow counts them all.
            quiet, fresh = True, not self.services[key].remembers
        found = Outcome(
            LOST if kind == "later" else NO_BACKEND,
            frame,
            packet.length,
            key,
            packet.flow,
            backend,
            fresh=fresh and not unsaid,
            quiet=quiet,
            flags=flags,
            said=said,
            route=route,
        )
        if backend is None:
            return found
        if slow is not None and kind == "first":
            found = replace(found, leaves=(slow.fragment_key, left_by(slow, backend)))
        return self._send(found, ifindex, packet, backend, kind)

    def _send(
        self, found: Outcome, ifindex: int, packet: Packet, backend: Address, kind: str
    ) -> Outcome:
        upper = self.vlan_devices.get((ifindex, packet.tag & 0xFFF)) if packet.tag & 0xFFF else None
        assert found.key is not None
        service = self.services[found.key]
        unchanged = service.unchanged
        if why := self._refusal(upper or ifindex, packet, backend, service):
            if why == TOO_LARGE:
                told = self._too_large(found, packet, backend, kind, service)
                return self._goes_back(told, ifindex)
            return found.ends(why)
        way = self.ways[backend]
        outer = b"" if unchanged else self._outer_header(packet, backend, way, service)
        version = packet.flow.source.version if unchanged else backend.version
        if self._is_the_kernels(way):
            note = self._note(way.ifindex, backend if unchanged else None)
            return found.ends(
                HANDOFF, note + link(bytes(12), 0, version) + outer + packet.behind_link
            )
        device, tag = self._egress(ifindex, upper, packet.tag, way)
        assert way.next_hop_mac is not None
        addresses = way.next_hop_mac + way.source_mac
        out = link(addresses, tag, version) + outer + packet.behind_link
        return found.ends(*self._leaves(ifindex, device, out))

    def _refusal(self, ifindex: int, packet: Packet, backend: Address, service: Served) -> str:
        """Why a packet can't go to its backend, "" if it can."""
        unchanged = service.unchanged
        way = self.ways[backend]
        if way.refused == LOCAL:
            return LOCAL  # to this very node, which is asked for no way
        if (ifindex, backend.version) in self.not_forwarding:
            return "drop_no_forwarding"
        if way.refused and not (unchanged and way.refused == NO_SOURCE):
            return way.refused
        if unchanged and way.gateway is not None:
            return NOT_ON_LINK
        added = service.added(backend)
        return TOO_LARGE if way.mtu and packet.length + added > way.mtu else ""

    def can(self, device: int) -> frozenset[str]:
        """What is known of a device; nothing of one that the program doesn't know."""
        return self.devices.get(device, DRIVER)

    def _is_the_kernels(self, way: Way) -> bool:
        """Whether the kernel finds out to whom a packet goes."""
        lower, _ = self.egress_devices.get(way.ifindex, (way.ifindex, 0))
        return way.next_hop_mac is None or "ethernet" not in self.can(lower)

    def _leaves(self, ifindex: int, device: int, out: bytes) -> tuple[str, bytes, str]:
        """Verdict, frame and how it leaves, of a frame that is complete."""
        verdict = TX if device == ifindex else REDIRECT
        can = self.can(device)
        if "generic" in self.can(ifindex) or (verdict == TX and "tx" in can):
            return verdict, out, ""
        if "redirect" in can and ("fragments" in can or len(out) <= self.linear):
            return verdict, out, "redirect"
        return HANDOFF, self._note(device, None, AS_IT_IS) + out, ""

    def _goes_back(self, answer: Outcome, ifindex: int) -> Outcome:
        """An answer leaves by the device that the question has come in on."""
        if answer.verdict not in {TOO_BIG, ECHO}:
            return answer
        way, out, by = self._leaves(ifindex, ifindex, answer.frame)
        return replace(answer, frame=out, by="kernel" if way == HANDOFF else by)

    def _note(self, ifindex: int, next_hop: Address | None, family: int = NO_FAMILY) -> bytes:
        """What the kernel is told: by which device, and to whom if not to whom it is addressed."""
        if not self.shows_note:
            return b""
        family = FAMILIES[next_hop.version] if next_hop else family
        address = next_hop.packed if next_hop else b""
        return struct.pack("=QII", self.cookie, ifindex, family) + address.rjust(16, b"\0")

    def _too_large(
        self, found: Outcome, packet: Packet, backend: Address, kind: str, service: Served
    ) -> Outcome:
        room = self.ways[backend].mtu - service.added(backend)
        mtu = told_mtu(packet, room, kind, df_only=self.df_only)
        if mtu is None or not may_be_answered(found.frame, packet.flow.source):
            return found.ends(TOO_LARGE)
        link_length = len(found.frame) - len(packet.behind_link)
        return found.ends(TOO_BIG, too_big(found.frame, packet, link_length, mtu))

    def _egress(self, ifindex: int, upper: int | None, tag: int, way: Way) -> tuple[int, int]:
        """The device that transmits and the tag that the frame gets, 0 for none."""
        if way.ifindex in self.egress_devices:
            return self.egress_devices[way.ifindex]
        stays = upper is None and way.ifindex == ifindex
        return way.ifindex, tag if stays else 0

    def _outer_header(
        self, packet: Packet, backend: Address, way: Way, service: Served = IN_IPIP
    ) -> bytes:
        value = flow_hash(packet.flow, self.seed)
        source = self._source(backend.version, way, value)
        carried, behind = between(packet, service, value)
        if isinstance(backend, IPv4Address):
            return ipv4_header(packet, source, backend, carried, len(behind)) + behind
        words = 6 << 28 | packet.traffic_class << DSCP_AND_ECN_SHIFT | value & 0xFFFFF
        fixed = struct.pack("!IHBB", words, packet.length + len(behind), carried, OUTER_TTL)
        return fixed + source + backend.packed + behind

    def _source(self, version: int, way: Way, value: int) -> bytes:
        if version in self.vary:
            base, bits = self.vary[version]
            raw = int(base) | value & ((1 << bits) - 1)
            return raw.to_bytes(len(base.packed), "big")
        assert way.source is not None
        return way.source.packed


def left_by(slow: SlowPath, backend: Address | None) -> Left:
    """What a first fragment that goes to a backend, or to the kernel, leaves."""
    flow = slow.packet.flow
    ports = flow.source_port, flow.destination_port
    return Left(*ports, flow.protocol, backend, slow.checksum_at)


def is_exact(key: Key) -> bool:
    """Whether a service is for one port of one address."""
    return isinstance(key[1], int) and not isinstance(key[0], IPv4Network | IPv6Network)


def is_for(key: Key, flow: Flow) -> bool:
    """Whether a service is for a flow's packets, by the plain meaning of its key."""
    vip, port, protocol = key[:3]
    network, ranges = ip_network(vip), ((port, port),) if isinstance(port, int) else port
    if (network.version, protocol) != (flow.destination.version, flow.protocol):
        return False
    ours = any(first <= flow.destination_port <= last for first, last in ranges)
    return ours and flow.destination in network


# ---- What happens --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """A frame's verdict, the bytes that come out, and what was decided on the way."""

    verdict: str
    frame: bytes = field(repr=False)
    length: int = 0
    key: Key | None = None
    flow: Flow | None = None
    backend: Address | None = None
    fresh: bool = False
    quiet: bool = False
    """Nothing is learnt from it."""
    leaves: tuple[FragmentKey, Left] | None = None
    """What it leaves to the fragments that follow it."""
    flags: int = 0
    """Of a TCP segment."""
    said: str = ""
    """What its connection id says, of a service that asks these."""
    by: str = ""
    """How it leaves, where its verdict doesn't say: redirect or kernel."""
    route: tuple[IPv4Network | IPv6Network, ...] | None = None
    """The sources of the route that a new flow went by."""

    def ends(self, verdict: str, frame: bytes | None = None, by: str = "") -> Outcome:
        """The same packet with its verdict, and the frame if it was changed."""
        out = self.frame if frame is None else frame
        return replace(self, verdict=verdict, frame=out, by=by)

    @property
    def action(self) -> int:
        """The XDP action that goes with the verdict."""
        if self.by:
            return OTHERWISE[self.by]
        return ACTIONS.get(self.verdict, XDP_PASS if self.verdict.startswith("pass") else XDP_DROP)

    def counts(self) -> dict[object, int]:
        """Every counter that moves, and by how much."""
        moved: dict[object, int] = {self.verdict: 1}
        if self.key is None:
            return moved
        dropped = self.action == XDP_DROP or self.verdict == TOO_BIG
        moved |= {
            (self.key, "packets"): 1,
            (self.key, "bytes"): self.length,
            (self.key, "flows"): int(self.fresh),
            (self.key, "drops"): int(dropped),
            (self.key, self.verdict): int(dropped),
            ((self.key, self.route), "flows"): int(self.route is not None),
        }
        if self.said:
            moved[self.key, "id", self.said] = 1
        if self.backend is not None:
            moved[self.key, self.backend, "flows"] = int(self.fresh)
            moved[self.key, self.backend, self.verdict] = int(dropped)
        if not dropped and self.verdict != TRACKED:
            moved[self.key, self.backend, "packets"] = 1
            moved[self.key, self.backend, "bytes"] = self.length
        return {counter: by for counter, by in moved.items() if by}


# ---- Bytes ---------------------------------------------------------------------------------------


def link(addresses: bytes, tag: int, version: int) -> bytes:
    """A link header of 14 bytes, or of 18 with a tag."""
    ethertype = struct.pack("!H", ETHERTYPES[version])
    return addresses + (struct.pack("!HH", 0x8100, tag) if tag else b"") + ethertype


def between(packet: Packet, service: Served, value: int) -> tuple[int, bytes]:
    """What follows the outer IP header: its protocol, and its bytes.

    GRE: RFC 2784, without options. UDP: from the dynamic ports by the flow's hash, without a
    checksum (RFC 768; RFC 6935 for tunnels over IPv6). GUE, variant 0: draft-ietf-intarea-gue-09,
    section 3.1: no optional fields, and the protocol number of what is within.
    """
    version = packet.flow.source.version
    if service.encap == "ipip":
        return CARRIED[version], b""
    if service.encap == "gre":
        return 47, struct.pack("!HH", 0, ETHERTYPES[version])
    gue = bytes((0, CARRIED[version], 0, 0)) if service.encap == "gue0" else b""
    length = 8 + len(gue) + packet.length
    source = 49152 + value % 16384
    return 17, struct.pack("!HHHH", source, service.encap_port, length, 0) + gue


def ipv4_header(
    packet: Packet, source: bytes, backend: IPv4Address, carried: int = 4, more: int = 0
) -> bytes:
    """RFC 2003: DF as inside, and the inner ID where the outer packet may be fragmented.

    ``more``: bytes between this header and the packet.
    """
    may_fragment = packet.dont_fragment is False
    header = struct.pack(
        "!BBHHHBBH4s4s",
        0x45,
        packet.traffic_class,
        packet.length + 20 + more,
        packet.identification if may_fragment else 0,
        0 if may_fragment else 0x4000,
        OUTER_TTL,
        carried,
        0,
        source,
        backend.packed,
    )
    return header[:10] + struct.pack("!H", checksum(header)) + header[12:]


def checksum(header: bytes) -> int:
    """RFC 1071."""
    total: int = sum(struct.unpack(f"!{len(header) // 2}H", header))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def flow_hash(flow: Flow, seed: int) -> int:
    """The 32 bits of the flow's hash that choose slot, source and flow label."""
    family = FAMILIES[flow.source.version]
    ports = struct.pack("!HHBBxx", flow.source_port, flow.destination_port, flow.protocol, family)
    raw = flow.source.packed + flow.destination.packed + ports
    state = seed
    for word in struct.unpack(f"<{len(raw) // 8}Q", raw):
        state = mix(state, word)
    return mix(state, 0) >> 32


def client_hash(client: Address, seed: int) -> int:
    """The 32 bits of the client's address that choose a slot where clients keep their backends."""
    raw = client.packed if client.version == 6 else client.packed + bytes(4)
    state = seed
    for word in struct.unpack(f"<{len(raw) // 8}Q", raw):
        state = mix(state, word)
    return mix(mix(state, FAMILIES[client.version]), 0) >> 32


def port_hash(port: int, seed: int) -> int:
    """The same of a destination port, for services whose ports have a backend each."""
    (word,) = struct.unpack("<Q", struct.pack("!H6x", port))
    return mix(mix(seed, word), 0) >> 32


def mix(state: int, word: int) -> int:
    """Xor, multiply, fold the high half down."""
    state = (state ^ word) * 0x9FB21C651E98DF25 & M64
    return state ^ state >> 32
