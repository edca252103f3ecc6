# SPDX-License-Identifier: Apache-2.0
"""Source NAT of packets in fragments: put together again they are the whole packet, translated.

What each fragment becomes is the oracle's to say; what all of them are together is compared with
what becomes of the whole packet, whose checksums are made from scratch.
"""

from __future__ import annotations

from ipaddress import ip_network
from itertools import permutations
from typing import TYPE_CHECKING, Any

import pytest
from scapy.layers.inet import IPOption_NOP
from scapy.layers.inet6 import IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop
from tests.prog.lb.frames import CLIENTS
from tests.prog.lb.network import FAR, FAR_UNRESOLVED, GATEWAY, IN, NEAR, OUT, neighbour
from tests.prog.lb.network import ip as run_ip
from tests.prog.lb.oracle import (
    HANDOFF,
    LOST,
    REDIRECT,
    TX,
    XDP_DROP,
    XDP_TX,
)
from tests.prog.lb.oracle_parse import FRAGMENT, parse
from tests.prog.lb.wire_fragments import cut, identification, put_together
from tests.prog.snat.harness import (
    BOTH,
    NatRig,
    client_frame,
    snat_service,
)
from tests.prog.snat.harness_fragments import (
    LIFE,
    PIECE,
    assert_whole,
    behind_link,
    entry_ends,
    forget,
    framed,
    pieces,
    reversed_ends,
    talk,
    whole,
)
from tests.prog.snat.oracle_bytes import transport_checksum

from towpath.model import Backend, Protocol

if TYPE_CHECKING:
    from tests.prog.lb.oracle_parse import Address

# A service of each kind, no translations, and no fragments.
pytestmark = pytest.mark.usefixtures("nothing_known")


# ---- There and back ------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "protocol"), BOTH)
@pytest.mark.parametrize("vlan", [None, 7])
def test_packets_arrive_whole(nat: NatRig, version: int, protocol: int, vlan: int | None) -> None:
    """In both directions, at the flow's backend and port; the flow is counted once."""
    for number in range(1, 12):
        packet = whole(version, protocol, sport=1000 + number)
        first = talk(nat, packet, number, vlan)
        assert first.fresh
        after = nat.expect(
            client_frame(version, protocol, sport=1000 + number, flags="A", vlan=vlan), TX
        )
        assert (after.fresh, after.backend) == (False, first.backend)


@pytest.mark.parametrize("size", [8, 16, 24, 32])
@pytest.mark.parametrize(
    ("version", "fields"),
    [
        (4, {}),
        (4, {"options": [IPOption_NOP()] * 40}),
        (6, {}),
        (6, {"headers": IPv6ExtHdrHopByHop()}),
        (6, {"headers": IPv6ExtHdrDestOpt()}),  # behind the fragment header
    ],
    ids=str,
)
def test_segments_in_the_smallest_fragments(
    nat: NatRig, version: int, fields: dict[str, Any], size: int
) -> None:
    """TCP's checksum is right, in whichever fragment it is; both ways, in any order."""
    for port in range(1000, 1006):
        packet = whole(version, 6, size=37, sport=port, **fields)
        parts = [framed(each).ljust(60, b"\0") for each in cut(packet, size, port)]
        if size == 8 and fields.get("headers") == IPv6ExtHdrDestOpt():
            # The ports are in the second one (against RFC 7112): all are the kernel's.
            assert {nat.expect(each, FRAGMENT).verdict for each in parts} == {FRAGMENT}
            continue
        first = nat.expect(parts[0], TX)
        there, back = entry_ends(first)
        sent = [first, *(nat.expect(each, TX) for each in reversed(parts[1:]))]
        assert_whole(nat, sent, packet, there)
        answered = whole(version, size=37, ends=reversed_ends(there), **fields)
        cut_up = [framed(each).ljust(60, b"\0") for each in cut(answered, size, port)]
        came = [nat.expect(each, TX) for each in cut_up]
        assert_whole(nat, came, answered, back)


@pytest.mark.parametrize(("version", "protocol"), BOTH)
def test_backends_at_a_port_of_their_own(nat: NatRig, version: int, protocol: int) -> None:
    """The first fragment is sent there and answered from there; the others have no ports."""
    kind = Protocol.TCP if protocol == 6 else Protocol.UDP
    backends = (Backend(each, port=8080 + n) for n, each in enumerate(NEAR[version]))
    nat.serve(snat_service(version, *backends, protocol=kind))
    ports = set()
    for number in range(1, 12):
        first = talk(nat, whole(version, protocol, sport=1000 + number), number)
        ends, _ = entry_ends(first)
        ports.add(ends.destination_port)
    assert len(ports) > 2
    assert ports <= {8080 + n for n in range(len(NEAR[version]))}


@pytest.mark.parametrize(("version", "protocol"), BOTH)
def test_every_length(nat: NatRig, version: int, protocol: int) -> None:
    """Odd ones too; of two fragments and of many; the last one as short as can be."""
    header = {6: 20, 17: 8}[protocol]
    for size in (PIECE - header + 1, 2 * PIECE - header + 8, 777, 1778, 3001, 4000, 9001):
        talk(nat, whole(version, protocol, size=size), number=size)


@pytest.mark.parametrize("protocol", [6, 17])
def test_headers_in_front(nat: NatRig, protocol: int) -> None:
    """IPv4 options, IPv6 extension headers on both sides of the fragment header."""
    for count in (1, 4, 10):
        talk(nat, whole(4, protocol, options=[IPOption_NOP()] * 4 * count), count)
    for number, headers in enumerate(
        (IPv6ExtHdrHopByHop(), IPv6ExtHdrDestOpt(), IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt()), 20
    ):
        packet = whole(6, protocol, headers=headers)
        talk(nat, packet, number)
    # An atomic one in front of it is a header like any other (RFC 6946).
    for each in cut(whole(6, protocol), PIECE, 30):
        raw = bytearray(each)
        atomic = bytes((raw[6],)) + bytes(7)
        raw[6] = 44
        raw[4:6] = (int.from_bytes(raw[4:6], "big") + 8).to_bytes(2, "big")
        nat.expect(framed(bytes(raw[:40]) + atomic + bytes(raw[40:])), TX)


def test_a_datagram_without_checksum_stays_without(nat: NatRig) -> None:
    """In IPv4, where 0 says that there is none; later fragments have other bytes there."""
    packet = bytearray(whole(4))
    packet[26:28] = bytes(2)
    sent = [nat.expect(each, TX) for each in pieces(bytes(packet))]
    assert put_together([behind_link(each) for each in sent])[26:28] == bytes(2)


@pytest.mark.parametrize("version", [4, 6])
def test_a_checksum_that_comes_out_as_zero(nat: NatRig, version: int) -> None:
    """Of a datagram it is written as 0xffff."""
    at = {4: 26, 6: 46}[version]
    packet = bytearray(whole(version))
    packet[-2:] = bytes(2)
    packet[at : at + 2] = bytes(2)
    ends = parse(framed(bytes(packet))).flow
    packet[at : at + 2] = transport_checksum(bytes(packet[at - 6 :]), ends).to_bytes(2, "big")
    sent = [nat.expect(each, TX) for each in pieces(bytes(packet))]
    there, _ = entry_ends(sent[0])
    missing = put_together([behind_link(each) for each in sent])[at : at + 2]
    # The last two bytes are an odd and an even one: the payload's length is odd.
    packet[-2:] = missing[::-1]
    packet[at : at + 2] = bytes(2)
    packet[at : at + 2] = transport_checksum(bytes(packet[at - 6 :]), ends).to_bytes(2, "big")
    sent = [nat.expect(each, TX) for each in pieces(bytes(packet), 2)]
    assert_whole(nat, sent, bytes(packet), there)
    assert put_together([behind_link(each) for each in sent])[at : at + 2] == b"\xff\xff"


@pytest.mark.parametrize(("version", "protocol"), BOTH)
def test_padding_is_no_part_of_a_fragment(nat: NatRig, version: int, protocol: int) -> None:
    """It is carried along behind it."""
    for each in pieces(whole(version, protocol)):
        assert nat.expect(each + b"pad" * 5, TX).frame.endswith(b"pad" * 5)


@pytest.mark.parametrize("version", [4, 6])
def test_ways(nat: NatRig, version: int) -> None:
    """Out of another device and by the kernel's hand; an answer comes in there."""
    for backend, verdict in ((FAR[version][0], REDIRECT), (FAR_UNRESOLVED[version], HANDOFF)):
        nat.serve(snat_service(version, backend, protocol=Protocol.UDP))
        sent = [nat.expect(each, verdict) for each in pieces(whole(version), vlan=5)]
        there, _ = entry_ends(sent[0])
        for each in pieces(whole(version, ends=reversed_ends(there))):
            nat.expect(each, REDIRECT, OUT)


# ---- Identifications -----------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "protocol"), BOTH)
def test_clients_with_one_identification(nat: NatRig, version: int, protocol: int) -> None:
    """Towards one backend theirs differ, and each one's from packet to packet.

    Which a client gets depends on a random seed. Of IPv4's 65,536 two clients can get the same: one
    pair in twenty runs, more than three pairs in one of five million.
    """
    nat.serve(*services_of(version, NEAR[version][0]))
    clients = 40
    network = ip_network(f"{CLIENTS[version]}/{ {4: 24, 6: 64}[version] }", strict=False)
    run_ip(f"route replace {network} via {neighbour(IN, version, GATEWAY)} dev {IN}")
    way = nat.world.ways[CLIENTS[version]]
    seen: set[bytes] = set()
    for client in range(clients):
        own = set()
        source = network.network_address + 1 + client
        nat.world.ways[source] = way
        for number in (1, 2, 3):
            made = pieces(whole(version, protocol, source=source), number)
            ids = {identification(behind_link(nat.expect(each, TX))) for each in made}
            assert len(ids) == 1
            own |= ids
        assert len(own) == 3
        seen |= own
    shared = {4: 3, 6: 0}[version]
    assert len(seen) >= 3 * (clients - shared)


def services_of(version: int, *backends: Address) -> list[Any]:
    """One for each protocol, with those backends."""
    return [snat_service(version, *backends, protocol=p) for p in Protocol]


@pytest.mark.parametrize("version", [4, 6])
def test_a_sender_keeps_as_many_identifications(nat: NatRig, version: int) -> None:
    """However they are numbered, no two become one."""
    packet = whole(version, size=700)
    ids = {
        identification(behind_link(nat.expect(pieces(packet, number)[0], TX)))
        for number in (*range(300), 0x7FFF, 0x8000, 0xFFFF)
    }
    assert len(ids) == 303


def test_whole_packets_keep_theirs(nat: NatRig) -> None:
    """And what only looks like a fragment (RFC 6946)."""
    packet = whole(4, size=100, id=77)
    assert behind_link(nat.expect(framed(packet), TX))[4:6] == b"\0\x4d"
    packet = whole(6, size=100, headers=IPv6ExtHdrFragment(id=77))
    assert behind_link(nat.expect(framed(packet), TX))[44:48] == b"\0\0\0\x4d"


# ---- Order ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "protocol"), BOTH)
def test_any_order_behind_the_first(nat: NatRig, version: int, protocol: int) -> None:
    """Each fragment becomes the same, whenever it comes, and as often as it comes."""
    made = pieces(whole(version, protocol, size=2200))
    assert len(made) == 4
    becomes = {each: nat.expect(each, TX).frame for each in made}
    for order in permutations(made[1:]):
        for each in (made[0], *order, *order):
            assert nat.expect(each, TX).frame == becomes[each]


@pytest.mark.parametrize(("version", "protocol"), BOTH)
def test_in_front_of_the_first(nat: NatRig, version: int, protocol: int) -> None:
    """A client's are dropped; a backend's may be the node's own and pass to the kernel."""
    made = pieces(whole(version, protocol))
    nat.expect(made[1], LOST)
    sent = nat.expect(made[0], TX)
    nat.expect(made[1], TX)
    there, _ = entry_ends(sent)
    back = pieces(whole(version, ends=reversed_ends(there)))
    nat.expect(back[2], FRAGMENT)
    nat.expect(back[0], TX)
    nat.expect(back[2], TX)


@pytest.mark.parametrize("version", [4, 6])
def test_what_a_first_fragment_left_is_forgotten(nat: NatRig, version: int) -> None:
    """After four seconds, whatever the flow does."""
    made = pieces(whole(version))
    there, _ = entry_ends(nat.expect(made[0], TX))
    nat.fragments.grow_old(LIFE - 500)
    assert nat.run(made[1]).retval == XDP_TX
    nat.fragments.grow_old(500)
    assert nat.run(made[1]).retval == XDP_DROP
    forget(nat)
    back = pieces(whole(version, ends=reversed_ends(there)))
    nat.expect(back[0], TX)
    nat.fragments.grow_old(LIFE)
    nat.world.fragments.clear()
    before = nat.counters()
    assert nat.run(back[1]).data == back[1]
    assert nat.moved(before, nat.counters()) == {FRAGMENT: 1}


@pytest.mark.parametrize("version", [4, 6])
def test_a_new_packet_under_an_old_identification(nat: NatRig, version: int) -> None:
    """The last first fragment holds."""
    for sport in range(1000, 1008):
        made = pieces(whole(version, sport=sport), 3)
        backend = nat.expect(made[0], TX).backend
        assert nat.expect(made[1], TX).backend == backend
