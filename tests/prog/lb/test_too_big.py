# SPDX-License-Identifier: Apache-2.0
"""A sender whose packet doesn't fit once it is encapsulated is told what does."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, IPOption_NOP
from scapy.layers.inet6 import ICMPv6PacketTooBig, IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Raw
from tests.prog.lb.frames import CLIENTS, VIPS, ether, frame, ip, segment
from tests.prog.lb.harness import Rig, rigged, service
from tests.prog.lb.network import FAR, IN, MTU, NEAR, OUT, THIRD, THIRDS, Network
from tests.prog.lb.network import ip as ip_tool
from tests.prog.lb.oracle import OUTER_HEADER, REDIRECT, TOO_BIG, TOO_LARGE, TX, Way
from tests.prog.lb.test_icmp_errors import answered, error

from towpath.kernel.bpf.probe_fib import fib_lookup
from towpath.model import Icmp, Protocol

BOTH_WAYS = True

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.prog.lb.oracle_parse import Address

FAMILIES = [4, 6]
TUNNELS = [(4, 4), (4, 6), (6, 6)]
WAYS = [(NEAR, IN, TX), (FAR, OUT, REDIRECT), (THIRDS, THIRD, REDIRECT)]
HEADER = {4: 20, 6: 40}
QUOTED = {4: 548, 6: 1232}
QUIET = "drop_mtu_quiet"
ANSWERS = 8  # of a CPU, in a jiffy


@pytest.fixture(autouse=True)
def told() -> None:
    """Kernels before 5.12 don't tell the MTU of a way; there is nothing to be told there."""
    if not fib_lookup().mtu:
        pytest.skip("the FIB look-up tells no MTU")


def large(family: int, length: int = 1500, protocol: int = 6, **fields: Any) -> bytes:
    """A frame whose IP packet has that length and may not be fragmented."""
    if family == 4:
        fields.setdefault("flags", "DF")
    bare = len(frame(family, protocol, payload=b"", **fields)) - 14
    bare -= 4 if fields.get("vlan") is not None else 0
    return frame(family, protocol, payload=pattern(length - bare), **fields)


def pattern(length: int) -> bytes:
    """Bytes that differ from their neighbours."""
    return bytes(at * 37 % 251 for at in range(length))


@contextmanager
def mtu_of(rig: Rig, target: Address, mtu: int) -> Iterator[None]:
    """The way to a neighbour has that MTU in the block: the FIB tells those that are locked."""
    way = rig.world.ways[target]
    route = f"{target}/{target.max_prefixlen} dev {IN} mtu lock {mtu}"
    ip_tool(f"route add {route}")
    rig.world.ways[target] = Way(way.ifindex, way.source, way.source_mac, way.next_hop_mac, mtu)
    rig.forget_ways()
    try:
        yield
    finally:
        ip_tool(f"route del {route}")
        rig.world.ways[target] = way
        rig.forget_ways()


# ---- Who is told ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("inside", "outside"), TUNNELS)
@pytest.mark.parametrize(("backends", "device", "verdict"), WAYS)
@pytest.mark.parametrize("protocol", [6, 17])
def test_a_byte_too_many_is_answered(
    rig: Rig,
    inside: int,
    outside: int,
    backends: dict[int, list[Address]],
    device: str,
    verdict: str,
    protocol: int,
) -> None:
    """The answer goes back where the packet came from, whichever way the backend is."""
    kinds = {6: Protocol.TCP, 17: Protocol.UDP}
    rig.serve(service(VIPS[inside], backends[outside][0], protocol=kinds[protocol]))
    room = MTU[device] - OUTER_HEADER[outside]
    rig.expect(large(inside, room, protocol), verdict)
    # Of 1280 bytes IPv6 hosts don't send less, so that it would be told in vain.
    answered = TOO_BIG if inside == 4 or room >= 1280 else TOO_LARGE
    rig.expect(large(inside, room + 1, protocol), answered)
    rig.expect(large(inside, 1500, protocol), TOO_BIG)
    rig.forget_ways()
    rig.expect(large(inside, room + 1, protocol), answered)
    rig.expect(large(inside, room, protocol), verdict)


@pytest.mark.parametrize(("inside", "outside"), TUNNELS)
@pytest.mark.parametrize("vlan", [None, 0, 7])
def test_the_answer_as_others_read_it(
    rig: Rig, inside: int, outside: int, vlan: int | None
) -> None:
    """By scapy: from the VIP to the client, all checksums right, the packet itself quoted."""
    rig.serve(service(VIPS[inside], NEAR[outside][0]))
    sent = large(inside, 1490, vlan=vlan)
    got = Ether(rig.expect(sent, TOO_BIG).frame)
    was = Ether(sent)
    assert (got.src, got.dst) == (was.dst, was.src)
    if vlan is not None:
        assert bytes(got)[12:18] == sent[12:18]
        assert Dot1Q in got
    network = got[IP if inside == 4 else IPv6]
    assert (network.src, network.dst) == (str(VIPS[inside]), str(CLIENTS[inside]))
    message = network[ICMP if inside == 4 else ICMPv6PacketTooBig]
    mtu = 1500 - OUTER_HEADER[outside]
    if inside == 4:
        assert (message.type, message.code, message.nexthopmtu) == (3, 4, mtu)
        assert (network.len, network.flags, network.ttl) == (576, "DF", 64)
    else:
        assert (message.type, message.code, message.mtu) == (2, 0, mtu)
        assert (network.plen, network.hlim) == (1240, 64)
    quoted = bytes(network)[HEADER[inside] + 8 :]
    assert quoted == sent[-1490:][: QUOTED[inside]]
    # What scapy makes of the fields by itself is what came.
    again = network.copy()
    if inside == 4:
        del again.chksum, again[ICMP].chksum
    else:
        del again[ICMPv6PacketTooBig].cksum
    assert bytes(again) == bytes(network)


@pytest.mark.parametrize("outside", FAMILIES)
@pytest.mark.parametrize("protocol", [6, 17])
@pytest.mark.parametrize("flags", [0, "evil", "MF"])
def test_ipv4_that_allows_fragmentation(
    rig: Rig, outside: int, protocol: int, flags: str | int
) -> None:
    """XDP can't fragment it: its sender can, once he knows (no case of RFC 1191)."""
    kinds = {6: Protocol.TCP, 17: Protocol.UDP}
    rig.serve(service(VIPS[4], NEAR[outside][0], protocol=kinds[protocol]))
    room = 1500 - OUTER_HEADER[outside]
    rig.expect(large(4, room, protocol, flags=flags), TX)
    for length in (room + 1, 1481, 1499, 1500):
        sent = large(4, length, protocol, flags=flags)
        got = Ether(rig.expect(sent, TOO_BIG if length > room else TX).frame)
        if length <= room:
            continue
        message = got[ICMP]
        assert (got[IP].src, got[IP].dst) == (str(VIPS[4]), str(CLIENTS[4]))
        assert (message.type, message.code, message.nexthopmtu) == (3, 4, room)
        assert bytes(got[IP])[28:] == sent[14:][:548]


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_is_not_quoted(rig: Rig, family: int) -> None:
    """Nor does it make a packet too large."""
    rig.serve(service(VIPS[family], NEAR[family][0]))
    room = MTU[IN] - OUTER_HEADER[family]
    rig.expect(large(family, room) + bytes(64), TX)
    for padding in (1, 2, 63, 300):
        rig.expect(large(family, room + 1) + b"\xff" * padding, TOO_BIG)


def test_options_and_extension_headers_are_quoted(rig: Rig) -> None:
    """As much of the packet as fits, whatever its headers are."""
    rig.serve(*(service(VIPS[family], NEAR[family][0]) for family in FAMILIES))
    for length in (4, 24, 40):
        options = [IPOption_NOP()] * length
        packet = ip(4, flags="DF", options=options) / segment(payload=pattern(1460))
        rig.expect(bytes(ether() / packet), TOO_BIG)
    packet = ip(6) / IPv6ExtHdrDestOpt() / segment(payload=pattern(1440))
    rig.expect(bytes(ether(vlan=9) / packet), TOO_BIG)


# ---- Unusual MTUs --------------------------------------------------------------------------------


@pytest.mark.parametrize("outside", FAMILIES)
def test_ipv4_over_ways_with_small_mtus(rig: Rig, outside: int) -> None:
    """Down to 68, the least that IPv4 knows; packets of less than 548 bytes are quoted in part."""
    target = NEAR[outside][0]
    rig.serve(service(VIPS[4], target))
    for mtu in (1400, 1000, 600, 576):
        if outside == 6 and mtu < 1280:
            continue  # IPv6 routes have no such MTU
        with mtu_of(rig, target, mtu):
            room = mtu - OUTER_HEADER[outside]
            rig.expect(large(4, room), TX)
            for length in {room + 1, max(room + 1, 547), max(room + 1, 548), 1500}:
                rig.expect(large(4, length), TOO_BIG)


def test_ipv6_packets_of_the_smallest_mtu_are_never_answered(rig: Rig) -> None:
    """RFC 8200, 5: links carry 1280 bytes, so no host would send less; they are dropped."""
    target = NEAR[6][0]
    rig.serve(service(VIPS[6], target))
    with mtu_of(rig, target, 1300):
        rig.expect(large(6, 1260), TX)
        for length in (1261, 1279, 1280):
            rig.expect(large(6, length), TOO_LARGE)
        # 1280 is the least that a sender can be told.
        assert rig.expect(large(6, 1281), TOO_BIG).frame[58:62] == (1280).to_bytes(4, "big")
    with mtu_of(rig, target, 1320):
        rig.expect(large(6, 1280), TX)
        assert rig.expect(large(6, 1281), TOO_BIG).frame[58:62] == (1280).to_bytes(4, "big")


# ---- Who is not told -----------------------------------------------------------------------------


def test_ipv4_that_allows_fragmentation_is_dropped_if_so_configured(rig: Rig, net: Network) -> None:
    """Such a sender has asked for fragments and not for news (RFC 1191, 1812)."""
    with rigged(net, devices=[THIRD], icmp=Icmp(fragmentation_needed="df")) as other:
        other.world.df_only = True
        other.serve(service(VIPS[4], FAR[4][0]))
        for flags in (0, "evil", "MF"):
            other.expect(large(4, flags=flags), TOO_LARGE)
        for flags in ("DF", "DF+evil", "DF+MF"):
            other.expect(large(4, flags=flags), TOO_BIG)
    rig.serve(service(VIPS[4], NEAR[4][0]))
    rig.expect(large(4, flags=0), TOO_BIG)


@pytest.mark.parametrize("family", FAMILIES)
def test_errors_are_not_answered(rig: Rig, family: int) -> None:
    """RFC 1122, 3.2.2; RFC 4443, 2.4: never an error about an error."""
    rig.serve(service(VIPS[family], NEAR[family][0]))
    fields: dict[str, Any] = {"flags": "DF"} if family == 4 else {}
    rig.expect(error(answered(family) / Raw(pattern(1430)), **fields), TOO_LARGE)


@pytest.mark.parametrize(
    ("family", "source"),
    [
        (4, "0.0.0.0"),
        (4, "0.1.2.3"),
        (4, "127.0.0.1"),
        (4, "224.0.0.1"),
        (4, "240.0.0.1"),
        (4, "255.255.255.255"),
        (6, "::"),
        (6, "::1"),
        (6, "ff02::1"),
        (6, "ffff::1"),
    ],
)
def test_sources_that_are_nobody_are_not_answered(rig: Rig, family: int, source: str) -> None:
    """Not one host's address."""
    rig.serve(service(VIPS[family], NEAR[family][0]))
    rig.expect(large(family, source=source), TOO_LARGE)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("target", ["ffffffffffff", "010000000001", "330000000001"])
def test_frames_to_many_are_not_answered(rig: Rig, family: int, target: str) -> None:
    """Whoever sees the frame might answer it (RFC 1122, 3.2.2)."""
    rig.serve(service(VIPS[family], NEAR[family][0]))
    rig.expect(bytes.fromhex(target) + large(family)[6:], TOO_LARGE)


def test_fragments_that_are_too_large(rig: Rig) -> None:
    """IPv6 ones are answered, of IPv4 the first one: of others there are no ports to quote."""
    rig.serve(*(service(VIPS[family], NEAR[family][0]) for family in FAMILIES))
    packet = large(4, 1500)
    for flags, verdict in (
        (b"\x20\0", TOO_BIG),
        (b"\x20\xb9", TOO_LARGE),
        (b"\x60\0", TOO_BIG),
        (b"\x60\xb9", TOO_LARGE),
    ):
        rig.expect(packet[:20] + flags + packet[22:], verdict)
    for offset, more in ((0, 1), (181, 1), (362, 0)):
        header = IPv6ExtHdrFragment(offset=offset, m=more, id=9)
        made = ether() / ip(6) / header / TCP(sport=40000, dport=80) / Raw(pattern(1432))
        rig.expect(bytes(made), TOO_BIG)


# ---- How often -----------------------------------------------------------------------------------


@pytest.mark.host
def test_a_flood_is_answered_so_often_and_no_more(rig: Rig) -> None:
    """The rest are dropped under a name of their own, and only in the same jiffy."""
    rig.serve(service(VIPS[4], NEAR[4][0]))
    made = large(4)
    for _ in range(20):  # until none of the packets met the next jiffy
        verdicts = rig.tables["verdict_cpus"]["packets"]
        before = verdicts.sum(axis=0)
        rig.run(made)
        start = rig.tables["flow_cpus"]["answer_tick"].max()
        for _ in range(ANSWERS + 4):
            rig.run(made, new_jiffy=False)
        if rig.tables["flow_cpus"]["answer_tick"].max() == start:
            break
    moved = verdicts.sum(axis=0) - before
    names = {name: number for number, name in rig._verdicts.items()}
    assert moved.sum() == ANSWERS + 5
    assert moved[names[TOO_BIG]] == ANSWERS
    assert moved[names[QUIET]] == 5
    rig.expect(made, TOO_BIG)
