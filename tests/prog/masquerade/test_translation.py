# SPDX-License-Identifier: Apache-2.0
"""Packets of pods and their answers, byte for byte."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoReply, ICMPv6EchoRequest, IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Raw
from tests.prog.masquerade.harness import (
    GATEWAY_MAC,
    LAN,
    LAN_MAC,
    POD,
    POD6,
    POD_MAC,
    REDIRECT,
    REMOTE,
    REMOTE6,
    SECOND,
    SHOT,
    UNSPEC,
    WAN,
    WAN6,
    Rig,
    mac,
)
from tests.prog.masquerade.oracle import framed, fresh, header, moved, port_of

if TYPE_CHECKING:
    from scapy.packet import Packet

V4, V6 = IP(src=POD, dst=REMOTE, ttl=64), IPv6(src=POD6, dst=REMOTE6, hlim=64)
DATA = Raw(b"thirteen byte")
PAIRS = {
    "tcp4": (V4 / TCP(sport=40000, dport=443, flags="S"), TCP(flags="SA")),
    "udp4": (V4 / UDP(sport=40000, dport=53) / DATA, UDP() / DATA),
    "short4": (V4 / UDP(sport=40000, dport=53) / Raw(b"1"), UDP() / Raw(b"2")),
    "echo4": (V4 / ICMP(type=8, id=77, seq=3) / DATA, ICMP(type=0, seq=3) / DATA),
    "options4": (
        IP(src=POD, dst=REMOTE, options=[b"\x01\x01\x01\x01"]) / TCP(sport=4, dport=5, flags="S"),
        TCP(flags="SA"),
    ),
    "tcp6": (V6 / TCP(sport=40000, dport=443, flags="S"), TCP(flags="SA")),
    "udp6": (V6 / UDP(sport=40000, dport=53) / DATA, UDP() / DATA),
    "echo6": (V6 / ICMPv6EchoRequest(id=77, seq=3, data=b"x"), ICMPv6EchoReply(seq=3, data=b"x")),
}


def source_of(packet: Packet) -> str:
    """The address by which packets of the family leave for the remote."""
    return WAN if IP in packet else WAN6


def reply_to(sent: Packet, layers: Packet) -> Packet:
    """What the remote answers."""
    there = header(sent)
    ip = there.__class__(src=there.dst, dst=there.src)
    packet = ip / layers.copy()
    for kind in (TCP, UDP):
        if kind in packet:
            packet[kind].sport, packet[kind].dport = sent[kind].dport, sent[kind].sport
    for kind in (ICMP, ICMPv6EchoReply):
        if kind in packet:
            packet[kind].id = port_of(sent, source=True)
    return packet


@pytest.mark.parametrize("name", PAIRS)
def test_a_flow_is_translated_and_back(masq: Rig, name: str) -> None:
    """A port of the range, and nothing else is otherwise than scapy would make it."""
    packet, answer = PAIRS[name]
    run = masq.out(packet)
    assert run.moved == {"from_pod.sent": 1, "from_pod.bound": 1}
    assert run.action == REDIRECT
    port = port_of(run.packet, source=True)
    assert 61000 <= port <= 65535
    wanted = moved(packet, source=True, address=source_of(packet), port=port)
    assert run.data == framed(wanted, mac("wan"), GATEWAY_MAC)

    back = fresh(reply_to(run.packet, answer))
    got = masq.answer(back)
    assert got.moved == {"from_net.sent": 1}
    assert got.action == REDIRECT
    pod, own = header(packet).src, port_of(packet, source=True)
    wanted = moved(back, source=False, address=pod, port=own)
    assert got.data == framed(wanted, mac("cni0"), POD_MAC)

    again = masq.out(packet)
    assert again.moved == {"from_pod.sent": 1}
    assert again.data == run.data


def test_the_source_is_the_routes(masq: Rig) -> None:
    """Of the device's network, of a route's src: as the kernel prefers it."""
    near = masq.out(IP(src=POD, dst="10.0.0.100") / UDP(sport=1, dport=2))
    assert near.packet[IP].src == LAN
    assert near.packet[Ether].dst == LAN_MAC
    hinted = masq.out(IP(src=POD, dst="10.8.0.1") / UDP(sport=1, dport=2))
    assert hinted.packet[IP].src == SECOND


def test_a_neighbour_that_is_not_resolved_is_the_kernels(masq: Rig) -> None:
    """The packet is translated, and its frame left to the kernel."""
    packet = IP(src=POD, dst="10.0.0.77") / UDP(sport=1, dport=2)
    run = masq.out(packet)
    assert run.moved == {"from_pod.neighbour": 1, "from_pod.bound": 1}
    assert run.action == REDIRECT
    wanted = moved(packet, source=True, address=LAN, port=port_of(run.packet, source=True))
    assert run.data == framed(wanted, POD_MAC, mac("cni0"))


LEFT = {
    "another source": (IP(src="10.245.0.2", dst=REMOTE) / UDP(), "other"),
    "the node": (IP(src=POD, dst=WAN) / UDP(), "local"),
    "another pod": (IP(src=POD, dst="10.244.0.9") / UDP(), "excluded"),
    "excluded": (IP(src=POD, dst="10.9.9.9") / UDP(), "excluded"),
    "multicast": (IP(src=POD, dst="224.0.0.251") / UDP(), "local"),
    "broadcast": (IP(src=POD, dst="255.255.255.255") / UDP(), "local"),
    "blackhole": (IP(src=POD, dst="10.7.0.1") / UDP(), "no_route"),
    "link-local": (IPv6(src=POD6, dst="fe80::1") / UDP(), "local"),
    "excluded by IPv6": (IPv6(src=POD6, dst="2001:db8:99::1") / UDP(), "excluded"),
    "last hop": (IP(src=POD, dst=REMOTE, ttl=1) / UDP(), "ttl"),
    "too long": (IP(src=POD, dst=REMOTE) / UDP() / Raw(bytes(1473)), "mtu"),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_is_left_to_the_stack_stays_as_it_is(masq: Rig, name: str) -> None:
    """Counted as what it is."""
    packet, verdict = LEFT[name]
    run = masq.out(packet)
    assert run.moved == {f"from_pod.pass_{verdict}": 1}
    assert run.action == UNSPEC
    assert run.data == framed(packet, POD_MAC, mac("cni0"))


DROPPED = {
    "reset": (V4 / TCP(sport=1, dport=2, flags="R"), "no_flow"),
    "half a handshake": (V4 / TCP(sport=1, dport=2, flags="SA"), "no_flow"),
    "echo reply": (V4 / ICMP(type=0, id=1), "no_flow"),
    "no ports": (IP(src=POD, dst=REMOTE, proto=47) / Raw(bytes(20)), "protocol"),
    "timestamp": (V4 / ICMP(type=13), "protocol"),
    "later fragment": (IP(src=POD, dst=REMOTE, frag=3, id=9) / Raw(bytes(30)), "fragment"),
    "shorter than it says": (IP(src=POD, dst=REMOTE, len=99) / UDP(), "malformed"),
}


@pytest.mark.parametrize("name", DROPPED)
def test_what_can_not_be_translated_does_not_leave(masq: Rig, name: str) -> None:
    """Neither by the short way nor by the stack's."""
    packet, verdict = DROPPED[name]
    run = masq.out(packet)
    assert run.moved == {f"from_pod.drop_{verdict}": 1}
    assert run.action == SHOT
    leaves = masq.leave(packet)
    assert leaves.moved == {f"to_net.drop_{verdict}": 1}
    assert leaves.action == SHOT


def test_what_the_stack_sends_is_translated_when_it_leaves(masq: Rig) -> None:
    """With the hops that the stack has left it, and its frame."""
    packet = V4 / UDP(sport=5, dport=6) / DATA
    run = masq.leave(packet)
    assert run.moved == {"to_net.stack": 1, "to_net.bound": 1}
    assert run.action == UNSPEC
    port = port_of(run.packet, source=True)
    wanted = moved(packet, source=True, address=WAN, port=port, hops=0)
    assert run.data == framed(wanted, mac("wan"), GATEWAY_MAC)
    assert port_of(masq.out(packet).packet, source=True) == port


def test_the_nodes_own_packets_are_not_touched(masq: Rig) -> None:
    """They came in by no device."""
    frame = Ether(src=mac("wan"), dst=GATEWAY_MAC) / V4 / UDP()
    run = masq.run("to_net", frame, "wan")
    assert run.moved == {"to_net.pass_local": 1}
    assert run.data == bytes(frame)


def test_frames_for_others_are_not_touched(masq: Rig) -> None:
    """A bridge hands up more than what is for the node."""
    frame = Ether(src=POD_MAC, dst="02:00:00:00:00:99") / V4 / UDP()
    run = masq.run("from_pod", frame, "cni0")
    assert run.moved == {"from_pod.pass_other": 1}
    assert run.data == bytes(frame)


def test_a_wrong_checksum_stays_wrong(masq: Rig) -> None:
    """It is followed, not made anew."""
    packet = fresh(V4 / UDP(sport=5, dport=6) / DATA)
    right = int(packet[UDP].chksum)
    good = masq.out(packet)
    packet[UDP].chksum = (right + 1) & 0xFFFF
    bad = masq.out(packet)
    difference = bad.packet[UDP].chksum - good.packet[UDP].chksum
    assert difference % 0xFFFF == 1


def test_no_checksum_stays_none(masq: Rig) -> None:
    """Of UDP over IPv4."""
    run = masq.out(V4 / UDP(sport=5, dport=6, chksum=0) / DATA)
    assert run.packet[UDP].chksum == 0
    assert run.packet[IP].src == WAN


def test_unsolicited_packets_are_dropped(masq: Rig) -> None:
    """To a port of the range; others, and echoes, are the stack's."""
    stray = IP(src=REMOTE, dst=WAN) / UDP(sport=9, dport=62000)
    run = masq.answer(stray)
    assert run.moved == {"from_net.drop_unsolicited": 1}
    assert run.action == SHOT
    for packet, verdict in (
        (IP(src=REMOTE, dst=WAN) / UDP(sport=9, dport=6200), "other"),
        (IP(src=REMOTE, dst="192.168.0.77") / UDP(sport=9, dport=62000), "other"),
        (IP(src=REMOTE, dst=WAN) / ICMP(type=0, id=62000), "local"),
        (IP(src=REMOTE, dst=WAN) / ICMP(type=8, id=62000), "other"),
    ):
        left = masq.answer(packet)
        assert left.moved == {f"from_net.pass_{verdict}": 1}, packet
        assert left.action == UNSPEC


def test_another_remotes_packets_are_no_answers(masq: Rig) -> None:
    """Neither from its address nor from another port of the same."""
    sent = masq.out(V4 / UDP(sport=5, dport=6)).packet
    port = port_of(sent, source=True)
    for source, sport in (("203.0.113.10", 6), (REMOTE, 7)):
        run = masq.answer(IP(src=source, dst=WAN) / UDP(sport=sport, dport=port))
        assert run.moved == {"from_net.drop_unsolicited": 1}
    other = masq.answer(IP(src=REMOTE, dst=LAN) / UDP(sport=6, dport=port))
    assert other.moved == {"from_net.drop_unsolicited": 1}


def test_an_answer_at_its_last_hop_is_dropped(masq: Rig) -> None:
    """The pod is one further."""
    sent = masq.out(V4 / UDP(sport=5, dport=6)).packet
    port = port_of(sent, source=True)
    run = masq.answer(IP(src=REMOTE, dst=WAN, ttl=1) / UDP(sport=6, dport=port))
    assert run.moved == {"from_net.drop_ttl": 1}


def test_many_segments_in_one_packet_are_measured_by_one(masq: Rig) -> None:
    """So do those pass that the device divides."""
    packet = V4 / TCP(sport=5, dport=6, flags="S") / Raw(bytes(3000))
    assert masq.out(packet).moved == {"from_pod.pass_mtu": 1}
    run = masq.out(packet, gso_size=1448)
    assert run.moved == {"from_pod.sent": 1, "from_pod.bound": 1}
