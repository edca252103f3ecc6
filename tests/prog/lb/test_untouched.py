# SPDX-License-Identifier: Apache-2.0
"""Frames that are none of the load balancer's business pass as they came, and are counted."""

from __future__ import annotations

from ipaddress import IPv6Address

import pytest
from scapy.layers.inet import ICMP, IP
from scapy.layers.ipsec import ESP
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q
from scapy.packet import Packet, Raw
from tests.prog.lb.frames import CLIENTS, PORT, VIPS, ether, frame, ip, segment
from tests.prog.lb.harness import Rig, service
from tests.prog.lb.network import NEAR
from tests.prog.lb.oracle import NO_VIP, TX
from tests.prog.lb.oracle_parse import MALFORMED, NOT_IP, OTHER_PROTOCOL, QINQ

from towpath.model import Protocol


@pytest.fixture(autouse=True)
def served(rig: Rig) -> None:
    """A VIP of each family, for TCP and for UDP."""
    rig.serve(
        *(service(VIPS[v], *NEAR[v], protocol=protocol) for v in (4, 6) for protocol in Protocol)
    )


# ---- Not IP --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "made",
    [
        ether() / ARP(pdst=str(VIPS[4])),
        ether(vlan=7) / ARP(),
        ether(type=0x88CC) / Raw(bytes(60)),  # LLDP
        ether(type=0x8847) / Raw(bytes(4) + frame(4)[14:]),  # MPLS
        ether(type=60) / Raw(bytes(60)),  # IEEE 802.3: a length
    ],
    ids=lambda made: made.summary().replace("/", ",")[:60],
)
def test_other_protocols_of_the_link(rig: Rig, made: Packet) -> None:
    """ARP and all that is not IP."""
    rig.expect(bytes(made), NOT_IP)


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize(
    "tags",
    [[Dot1AD], [Dot1AD, Dot1Q], [Dot1Q, Dot1Q], [Dot1Q, Dot1AD], [Dot1AD, Dot1AD, Dot1Q]],
    ids=lambda tags: " ".join(each.__name__ for each in tags),
)
def test_other_tags_than_one_of_802_1q(rig: Rig, tags: list[type[Packet]], family: int) -> None:
    """Are the kernel's, to a VIP or not, and whatever is behind them."""
    for inside in (ip(family) / segment(), ip(family, vip=VIPS[family] + 1) / segment(), ARP()):
        made = ether()
        for number, tag in enumerate(tags):
            made /= tag(vlan=7 * number)
        rig.expect(bytes(made / inside), QINQ)
    for length in range(14 + 4 * len(tags) - 2, 14 + 4 * len(tags) + 20):
        assert rig.check(bytes(made)[:length]).verdict in {QINQ, MALFORMED}


def test_ethertype_zero_says_nothing(rig: Rig) -> None:
    """Neither a protocol nor a length."""
    rig.expect(bytes(ether(type=0) / Raw(bytes(60))), MALFORMED)


# ---- Other protocols -----------------------------------------------------------------------------


def test_ipv4_that_is_neither_tcp_nor_udp(rig: Rig) -> None:
    """ICMP for the VIP among them: pings and path MTU are answered by the kernel."""
    for protocol in set(range(256)) - {6, 17, 51}:
        rig.expect(bytes(ether() / ip(4, proto=protocol) / Raw(bytes(40))), OTHER_PROTOCOL)


def test_ipv6_that_is_neither_tcp_nor_udp(rig: Rig) -> None:
    """ESP, Mobility, "no next header" and ICMPv6 among them."""
    for protocol in set(range(256)) - {6, 17, 0, 43, 44, 51, 60}:
        rig.expect(bytes(ether() / ip(6, nh=protocol) / Raw(bytes(40))), OTHER_PROTOCOL)


@pytest.mark.parametrize(
    "made",
    [
        ip(4) / ESP(spi=1, data=bytes(segment())),
        ip(6) / ESP(spi=1, data=bytes(segment())),
        ip(4) / IP(src="198.51.100.1", dst=str(VIPS[4])) / segment(),
        ip(4) / ICMP(type=3, code=4, nexthopmtu=1280) / ip(4) / segment(),
    ],
    ids=lambda made: made.summary().replace("/", ",")[:60],
)
def test_a_segment_inside_something_else(rig: Rig, made: Packet) -> None:
    """Encryption, tunnels and ICMP errors hide what they carry."""
    rig.expect(bytes(ether() / made), OTHER_PROTOCOL)


# ---- Other destinations --------------------------------------------------------------------------


@pytest.mark.parametrize("family", [4, 6])
def test_another_port_protocol_or_address(rig: Rig, family: int) -> None:
    """All three have to be those of a service."""
    other = VIPS[family] + 1
    for made in (
        frame(family, dport=PORT + 1),
        frame(family, dport=0),
        frame(family, dport=40000, sport=PORT),
        frame(family, vip=other),
        frame(family, vip=CLIENTS[family], source=VIPS[family], sport=PORT),
    ):
        rig.expect(made, NO_VIP)
    rig.serve(service(VIPS[family], *NEAR[family], protocol=Protocol.UDP))
    rig.expect(frame(family, 6), NO_VIP)
    rig.expect(frame(family, 17), TX)


@pytest.mark.parametrize("prefix", ["::", "::ffff:0:0", "64:ff9b::", "2002::"])
def test_an_ipv6_address_that_ends_like_an_ipv4_vip(rig: Rig, prefix: str) -> None:
    """The families are told apart, though an IPv4 VIP is kept as the last word of 16 bytes."""
    rig.serve(service(VIPS[4], *NEAR[4]))
    alike = IPv6Address(int(IPv6Address(prefix)) | int(VIPS[4]))
    rig.expect(frame(6, vip=alike), NO_VIP)
    rig.serve(service(VIPS[4], *NEAR[4]), service(alike, *NEAR[6]))
    rig.expect(frame(4), TX)
    outcome = rig.expect(frame(6, vip=alike), TX)
    assert outcome.key == (alike, PORT, 6)
