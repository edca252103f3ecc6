# SPDX-License-Identifier: Apache-2.0
"""All fragments of a packet reach one backend, or none of them does."""

from __future__ import annotations

from ipaddress import ip_network
from typing import TYPE_CHECKING, Any

import pytest
from scapy.layers.inet import IP, TCP, UDP, IPOption_NOP, fragment
from scapy.layers.inet6 import (
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    fragment6,
)
from scapy.packet import Packet, Raw
from tests.prog.lb.frames import CLIENTS, PORT, VIPS, ether, frame, ip
from tests.prog.lb.harness import Rig, service
from tests.prog.lb.network import FAR, NEAR, NEAR_UNRESOLVED
from tests.prog.lb.oracle import HANDOFF, LOST, NO_BACKEND, REDIRECT, TX, XDP_DROP, XDP_TX
from tests.prog.lb.oracle_parse import FRAGMENT
from tests.prog.lb.wire_fragments import cut, put_together, summed

from towpath.model import Backend, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.prog.lb.oracle_parse import Address

FAMILIES = [4, 6]
TRANSPORTS = {6: TCP, 17: UDP}
LIFE = 4000  # in 2^20 ns
SETS_OF_A_PAIR, WAYS = 16, 8


@pytest.fixture(autouse=True)
def served(rig: Rig) -> Iterator[None]:
    """A VIP of each family, for TCP and for UDP; nothing is known of any fragment."""
    rig.serve(
        *(service(VIPS[v], *NEAR[v], protocol=protocol) for v in (4, 6) for protocol in Protocol)
    )
    yield
    forget(rig)


def forget(rig: Rig) -> None:
    """Have the table be empty."""
    rig.fragments.ways["ref"] = 0
    rig.world.fragments.clear()


def pieces(
    family: int,
    protocol: int = 17,
    *,
    number: int = 1,
    size: int = 2000,
    sport: int = 40000,
    dport: int = PORT,
    source: Address | None = None,
    vip: Address | None = None,
    vlan: int | None = None,
    headers: Packet | None = None,
) -> list[bytes]:
    """The frames of a datagram or segment that scapy has cut up, in order."""
    data = TRANSPORTS[protocol](sport=sport, dport=dport) / Raw(bytes(size))
    if family == 4:
        whole = ip(4, source=source, vip=vip, id=number) / data
        cut = fragment(IP(bytes(whole)), fragsize=600)
    else:
        header = ip(6, source=source, vip=vip)
        if headers is not None:
            header /= headers
        whole = header / IPv6ExtHdrFragment(id=number) / data
        cut = fragment6(whole, 700)
    return [bytes(ether(vlan=vlan) / each) for each in cut]


# ---- In order ------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("protocol", [6, 17])
@pytest.mark.parametrize("vlan", [None, 7])
def test_later_fragments_follow_the_first(
    rig: Rig, family: int, protocol: int, vlan: int | None
) -> None:
    """Each packet's to the backend of its flow, which sees as many as were sent."""
    seen = set()
    for number in range(1, 30):
        made = pieces(family, protocol, number=number, sport=40000 + number, vlan=vlan)
        assert len(made) > 2
        backends = {rig.expect(each, TX).backend for each in made}
        assert len(backends) == 1
        whole = frame(family, protocol, sport=40000 + number)
        assert rig.expect(whole, TX).backend in backends
        seen |= backends
    assert len(seen) > 3


@pytest.mark.parametrize("family", FAMILIES)
def test_packets_whose_fragments_come_mixed(rig: Rig, family: int) -> None:
    """The identification tells them apart, and source, destination and (IPv4) protocol."""
    packets = [
        pieces(family, protocol, number=number, sport=sport, source=CLIENTS[family] + client)
        for number, protocol, sport, client in (
            (1, 17, 40000, 0),
            (2, 17, 40001, 0),
            (1, 17, 40002, 1),
            (1, 17, 40003, 2),
            (65535, 6, 40004, 0),
            *([(1, 6, 40005, 0)] if family == 4 else [(1 << 16 | 1, 17, 40005, 0)]),
        )
    ]
    backends = [rig.expect(made[0], TX).backend for made in packets]
    assert len(set(backends)) > 1
    for at in (2, 1, 2, 3):
        for made, backend in zip(packets, backends, strict=True):
            assert rig.expect(made[at], TX).backend == backend


@pytest.mark.parametrize("family", FAMILIES)
def test_fragments_keep_their_backend_while_tables_change(rig: Rig, family: int) -> None:
    """Even where the service remembers no flows: half a packet is of no use to another."""
    rig.serve(service(VIPS[family], *NEAR[family], protocol=Protocol.UDP, flow_table=False))
    # No more than one set has room for: which sets they are in is another thing each time.
    packets = [pieces(family, number=n, sport=n) for n in range(1, WAYS + 1)]
    backends = [rig.expect(made[0], TX).backend for made in packets]
    heavy = Backend(NEAR[family][0], 50)
    rig.serve(
        service(VIPS[family], *NEAR[family][1:], heavy, protocol=Protocol.UDP, flow_table=False)
    )
    moved = 0
    for made, backend in zip(packets, backends, strict=True):
        outcome = rig.expect(made[1], TX)
        assert outcome.backend == backend
        assert outcome.key is not None
        assert outcome.flow is not None
        moved += rig.world.by_maglev(outcome.key, outcome.flow) != backend
    assert moved


@pytest.mark.parametrize("family", FAMILIES)
def test_fragments_of_a_backend_that_is_gone(rig: Rig, family: int) -> None:
    """Are dropped, for the service: nobody else has the first one. Not even the same address."""
    made = pieces(family)
    backend = rig.expect(made[0], TX).backend
    rest = [address for address in NEAR[family] if address != backend]
    rig.serve(service(VIPS[family], *rest, protocol=Protocol.UDP))
    rig.expect(made[1], LOST)
    rig.serve(service(VIPS[family], *NEAR[family], protocol=Protocol.UDP))
    rig.expect(made[1], LOST)
    rig.expect(made[0], TX)
    rig.expect(made[1], TX)
    rig.serve()
    rig.expect(made[1], FRAGMENT)


@pytest.mark.parametrize("family", FAMILIES)
def test_fragments_go_every_way_that_packets_go(rig: Rig, family: int) -> None:
    """Out of another device, by the kernel's hand, or nowhere."""
    for number, (backends, verdict) in enumerate(
        (([FAR[family][0]], REDIRECT), ([NEAR_UNRESOLVED[family]], HANDOFF)), 1
    ):
        rig.serve(service(VIPS[family], *backends, protocol=Protocol.UDP))
        for each in pieces(family, number=number):
            rig.expect(each, verdict)
    rig.serve(service(VIPS[family], protocol=Protocol.UDP))
    made = pieces(family, number=9)
    rig.expect(made[0], NO_BACKEND)
    rig.expect(made[1], LOST)


def test_ipv4_fragments_in_an_ipv6_tunnel(rig: Rig) -> None:
    """The backends of an IPv4 VIP may be IPv6 hosts."""
    rig.serve(service(VIPS[4], *NEAR[6], protocol=Protocol.UDP))
    assert len({rig.expect(each, TX).backend for each in pieces(4)}) == 1


def test_outer_ids_differ_between_fragments(rig: Rig) -> None:
    """So that their own fragments, further on, are not put together wrongly (RFC 6864)."""
    outer = [IP(rig.expect(each, TX).frame[14:]) for each in pieces(4, number=77, size=60000)]
    assert len(outer) > 90
    assert len({each.id for each in outer}) == len(outer)
    assert not any(each.flags or each.frag for each in outer)
    assert {each[IP:2].id for each in outer} == {77}


# ---- Out of order --------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_later_fragment_that_comes_first_is_dropped(rig: Rig, family: int) -> None:
    """It could only be guessed where the first one will go. Its sender sends again."""
    made = pieces(family)
    for each in made[1:]:
        rig.expect(each, LOST)
    rig.expect(made[0], TX)
    for each in reversed(made[1:]):
        rig.expect(each, TX)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_first_fragment_left_is_forgotten(rig: Rig, family: int) -> None:
    """After four seconds: by then identifications come again."""
    made = pieces(family)
    rig.expect(made[0], TX)
    later = made[1]
    rig.fragments.grow_old(LIFE - 500)
    assert rig.run(later).retval == XDP_TX
    rig.fragments.grow_old(500)
    assert rig.run(later).retval == XDP_DROP


@pytest.mark.parametrize("family", FAMILIES)
def test_a_new_packet_under_an_old_identification(rig: Rig, family: int) -> None:
    """The last first fragment holds."""
    backends = []
    for sport in range(40000, 40010):
        made = pieces(family, number=3, sport=sport)
        backends.append(rig.expect(made[0], TX).backend)
        assert rig.expect(made[1], TX).backend == backends[-1]
    assert len(set(backends)) > 2


# ---- Those of no service -------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_other_ports_of_a_vip_are_the_kernels(rig: Rig, family: int) -> None:
    """All fragments of a packet pass if its first one did."""
    made = pieces(family, dport=PORT + 1)
    rig.expect(made[1], LOST)
    for each in made:
        rig.expect(each, FRAGMENT)
    # A service that comes in between doesn't get the rest of it.
    rig.serve(service(VIPS[family], *NEAR[family], port=PORT + 1, protocol=Protocol.UDP))
    rig.expect(made[1], FRAGMENT)


@pytest.mark.parametrize("family", FAMILIES)
def test_other_addresses_and_protocols_pass(rig: Rig, family: int) -> None:
    """And leave nothing behind."""
    for each in pieces(family, vip=VIPS[family] + 1):
        rig.expect(each, FRAGMENT)
    assert not rig.fragments.ways["ref"].any()


def test_vips_of_prefixes_are_known(rig: Rig) -> None:
    """Every address of a prefix is a VIP, and ports that are many are served."""
    for family, text in ((4, "203.0.113.0/28"), (6, "2001:db8:4::/120")):
        prefix = ip_network(text)
        rig.serve(service(prefix, *NEAR[family], protocol=Protocol.UDP))
        made = pieces(family, vip=prefix[5], number=family)
        rig.expect(made[1], LOST)
        for each in made:
            rig.expect(each, TX)
        outside = pieces(family, vip=prefix[0] + prefix.num_addresses)
        rig.expect(outside[1], FRAGMENT)


# ---- Strange ones --------------------------------------------------------------------------------


def test_first_fragments_too_short_for_any(rig: Rig) -> None:
    """RFC 791: all but the last have 8 bytes, so that nobody can put these together. They pass."""
    for protocol in (6, 17):
        for length in range(21):
            packet = ip(4, flags="MF", id=length, proto=protocol) / Raw(
                b"\x9c\x40\0\x50" + bytes(16)
            )
            made = bytes(ether() / packet)[: 34 + length]
            made = made[:16] + (20 + length).to_bytes(2, "big") + made[18:]
            for padding in (b"", bytes(60 - len(made)) if len(made) < 60 else b"pad"):
                rig.expect(made + padding, TX if length >= 8 else FRAGMENT)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [8, 16, 24])
@pytest.mark.parametrize("options", [0, 40])
def test_segments_in_the_smallest_fragments(rig: Rig, family: int, size: int, options: int) -> None:
    """8 bytes hold the ports, and all of a segment reaches one backend, whole.

    What it does to a flow, its flags say: without them nothing is learnt.
    """
    header = ip(4, options=[IPOption_NOP()] * options) if family == 4 else ip(6)
    if family == 6 and options:
        header /= IPv6ExtHdrHopByHop()
    rig.balancer._program.rows("flow_tags")[:] = 0
    rig.world.remembered.clear()
    seen = set()
    for sport in range(1000, 1012):
        tcp = TCP(sport=sport, dport=PORT, flags="S", seq=7) / Raw(b"towpath")
        packet = bytes(header / tcp)
        parts = [bytes(ether())[:12] + _ethertype(each) + each for each in cut(packet, size, sport)]
        # Frames of less than 60 bytes there are none on a wire.
        outcomes = [rig.expect(each.ljust(60, b"\0"), TX) for each in parts]
        assert len(parts) == -(-27 // size)
        (backend,) = {each.backend for each in outcomes}
        outer = 14 + 20 * (family == 4) + 40 * (family == 6)
        inside = [each.frame[outer:] for each in outcomes]
        numbered = packet[:4] + sport.to_bytes(2, "big") + packet[6:]
        assert put_together(inside) == (packet if family == 6 else summed(numbered))
        assert [each.fresh for each in outcomes] == [size > 8] + [False] * (len(parts) - 1)
        assert rig.expect(frame(family, sport=sport), TX).backend == backend
        seen.add(backend)
    assert len(seen) > 2


def _ethertype(packet: bytes) -> bytes:
    return {4: b"\x08\0", 6: b"\x86\xdd"}[packet[0] >> 4]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_smallest_fragments_of_a_known_flow(rig: Rig, family: int) -> None:
    """Follow it, whatever the table says by then, and end nothing that they can't be seen to."""
    first = rig.expect(frame(family, sport=2000), TX).backend
    assert first is not None
    rest = [Backend(each, 1 if each == first else 60) for each in NEAR[family]]
    rig.serve(service(VIPS[family], *rest))
    for number, flags in enumerate("SRFA"):
        packet = bytes(ip(family) / TCP(sport=2000, dport=PORT, flags=flags) / Raw(b"towpath"))
        for each in cut(packet, 8, number):
            made = bytes(ether())[:12] + _ethertype(each) + each
            outcome = rig.expect(made, TX)
            assert (outcome.backend, outcome.fresh) == (first, False)
    found = rig.balancer.flow_table.entries()
    mine = found.client_ports == 2000
    assert mine.any()
    assert not (found.ending | found.opening)[mine].any()


def test_ipv4_options(rig: Rig) -> None:
    """Before the ports of the first, and with some of the later ones."""
    for length in range(0, 41, 4):
        options = [IPOption_NOP()] * length
        header = ip(4, id=length, flags="MF", options=options)
        rig.expect(bytes(ether() / header / UDP(sport=1, dport=PORT) / Raw(bytes(16))), TX)
        later = ip(4, id=length, frag=3, proto=17, options=options)
        rig.expect(bytes(ether() / later / Raw(bytes(16))), TX)


def six(*headers: Packet, offset: int, more: int = 1, data: Any = None) -> bytes:
    """A fragment with other headers in front of the fragment header."""
    packet = ip(6)
    for header in headers:
        packet /= header
    fragment_header = IPv6ExtHdrFragment(offset=offset, m=more, id=5)
    return bytes(ether() / packet / fragment_header / (data or UDP(sport=1, dport=PORT)))


def test_ipv6_extension_headers_on_both_sides(rig: Rig) -> None:
    """Those in front are in every fragment, those behind only in the first."""
    front = [IPv6ExtHdrHopByHop(), IPv6ExtHdrDestOpt()]
    behind = IPv6ExtHdrDestOpt() / UDP(sport=1, dport=PORT)
    rig.expect(six(*front, offset=0, data=behind), TX)
    # What follows, as the later fragment's header says, is only the first one's to say.
    rig.expect(six(*front, offset=2, data=Raw(bytes(24))), TX)
    later = bytearray(six(offset=4, data=Raw(bytes(24))))
    for kind in (17, 6, 60, 58, 0):
        later[54] = kind
        rig.expect(bytes(later), TX)
    # Not known, and maybe of anything: only what says TCP or UDP is dropped.
    forget(rig)
    for kind, verdict in ((17, LOST), (6, LOST), (60, FRAGMENT), (58, FRAGMENT)):
        later[54] = kind
        rig.expect(bytes(later), verdict)


@pytest.mark.parametrize("count", range(9))
def test_so_many_extension_headers(rig: Rig, count: int) -> None:
    """As in whole packets, on either side of the fragment header."""
    many = [IPv6ExtHdrDestOpt()] * count
    rig.check(six(*many, offset=0))
    rig.check(six(*many, offset=2))
    behind: Packet = UDP(sport=1, dport=PORT)
    for _ in range(count):
        behind = IPv6ExtHdrDestOpt() / behind
    rig.expect(six(offset=0, data=behind), TX if count < 8 else FRAGMENT)


def test_headers_that_pass(rig: Rig) -> None:
    """A fragment of a fragment, a route that isn't at its end."""
    twice = IPv6ExtHdrFragment(offset=0, m=1, id=6) / UDP(sport=1, dport=PORT)
    rig.expect(six(offset=0, data=twice), FRAGMENT)
    routed = IPv6ExtHdrRouting(addresses=["2001:db8::1"], segleft=1) / UDP(sport=1, dport=PORT)
    rig.expect(six(offset=0, data=routed), FRAGMENT)


@pytest.mark.parametrize("family", FAMILIES)
def test_later_fragments_of_icmp_pass(rig: Rig, family: int) -> None:
    """A large ping is the kernel's."""
    if family == 4:
        made = bytes(ether() / ip(4, frag=3, proto=1) / Raw(bytes(24)))
    else:
        made = bytes(
            ether()
            / IPv6(src=str(CLIENTS[6]), dst=str(VIPS[6]), nh=44)
            / Raw(b"\x3a\0\0\x10\0\0\0\x05" + bytes(24))
        )
    rig.expect(made, FRAGMENT)


# ---- Many ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_one_sender_displaces_nobody_but_himself(rig: Rig, family: int) -> None:
    """However many packets he begins and never ends: he has so many sets out of all."""
    numbers = range(1, 61)
    others = [pieces(family, number=n, source=CLIENTS[family] + n, sport=n)[:2] for n in numbers]
    for first, _ in others:
        rig.run(first)
    attacker = CLIENTS[family] + 77
    each = bytearray(pieces(family, source=attacker, size=900)[0])
    identification = {4: slice(18, 20), 6: slice(58, 62)}[family]
    rig.fragments.keep_young()
    for number in range(1000):
        each[identification] = number.to_bytes({4: 2, 6: 4}[family], "big")
        rig.run(bytes(each))
    rows = rig.fragments.ways.reshape(-1)
    his = (rows["saddr"]["word"] == _words(attacker)).all(axis=1) & (rows["ref"] != 0)
    assert WAYS < his.sum() <= SETS_OF_A_PAIR * WAYS
    # His 16 sets of the table's 128 are as many of theirs.
    rig.fragments.keep_young()
    assert sum(rig.run(later).retval == XDP_TX for _, later in others) > len(others) * 0.6


def _words(address: Address) -> list[int]:
    raw = bytes(16 - len(address.packed)) + address.packed
    return [int.from_bytes(raw[at : at + 4], "big") for at in range(0, 16, 4)]


def test_traces_leave_nothing(rig: Rig) -> None:
    """A trace of a fragment says what would happen, and teaches nothing."""
    cookie = rig.balancer._program.cookie.to_bytes(8, "little")
    device = rig.devices["tpx0"].to_bytes(4, "little")
    for each in pieces(4):
        rig.run(cookie + device + each[12:])
    assert not rig.fragments.ways["ref"].any()
