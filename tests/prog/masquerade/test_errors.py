# SPDX-License-Identifier: Apache-2.0
"""ICMP errors about translated flows, and what they quote (RFC 5508)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPerror, UDPerror
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6PacketTooBig,
    IPerror6,
    IPv6,
)
from scapy.packet import Raw
from tests.prog.masquerade.harness import (
    POD,
    POD6,
    POD_MAC,
    REMOTE,
    REMOTE6,
    SHOT,
    UNSPEC,
    Rig,
    mac,
)
from tests.prog.masquerade.oracle import framed, fresh, header, moved, port_of
from tests.prog.masquerade.test_translation import reply_to, source_of

if TYPE_CHECKING:
    from scapy.packet import Packet

ROUTER, ROUTER6 = "198.51.100.1", "2001:db8:5::1"
V4, V6 = IP(src=POD, dst=REMOTE, ttl=64), IPv6(src=POD6, dst=REMOTE6, hlim=64)
QUOTED = {
    "udp4": (V4 / UDP(sport=40000, dport=53) / Raw(b"thirteen byte"), UDP() / Raw(b"x")),
    "tcp4": (V4 / TCP(sport=40000, dport=443, flags="S"), TCP(flags="SA")),
    "echo4": (V4 / ICMP(type=8, id=7) / Raw(b"xy"), ICMP(type=0) / Raw(b"xy")),
    "udp6": (V6 / UDP(sport=40000, dport=53) / Raw(b"thirteen byte"), UDP() / Raw(b"x")),
    "tcp6": (V6 / TCP(sport=40000, dport=443, flags="S"), TCP(flags="SA")),
    "echo6": (V6 / ICMPv6EchoRequest(id=7, data=b"xy"), ICMPv6EchoReply(data=b"xy")),
}


def error(quoted: Packet, source: str, length: int | None = None) -> Packet:
    """Say that a packet, or what fits of it, couldn't be delivered."""
    to = header(quoted).src
    body = Raw(bytes(quoted)[:length])
    if IP in quoted:
        return fresh(IP(src=source, dst=to) / ICMP(type=3, code=4, nexthopmtu=1400)) / body
    return IPv6(src=source, dst=to) / ICMPv6DestUnreach(code=1) / body


def sized(packet: Packet) -> Packet:
    """With lengths and the error's own checksum, and the quote as it is."""
    ip = header(packet)
    if isinstance(ip, IP):
        body = bytes(packet[Raw].load) if Raw in packet else bytes(packet[ICMP].payload)
        head = packet[ICMP].copy()
        head.remove_payload()
        head.chksum = None
        bare = IP(src=ip.src, dst=ip.dst, ttl=ip.ttl, id=ip.id)
        return bare / head / Raw(body)
    return packet


def told(quoted: Packet, source: str, to: str, hops: int, length: int | None) -> bytes:
    """The error as it is to be: sent to another, about another packet, some hops later."""
    body = bytes(quoted)[:length]
    if IP in quoted:
        built = IP(src=source, dst=to, ttl=64 - hops) / ICMP(type=3, code=4, nexthopmtu=1400)
    else:
        built = IPv6(src=source, dst=to, hlim=64 - hops) / ICMPv6DestUnreach(code=1)
    return bytes(built / Raw(body))


@pytest.mark.parametrize("length", [None, 28])
@pytest.mark.parametrize("name", QUOTED)
def test_an_error_about_what_a_pod_sent_reaches_it(
    masq: Rig, name: str, length: int | None
) -> None:
    """Its quote is what the pod has sent, one hop later."""
    packet, _ = QUOTED[name]
    if length and IPv6 in packet:
        length = 48
    sent = fresh(masq.out(packet).packet[1])
    router = ROUTER if IP in packet else ROUTER6
    about = told(sent, router, header(sent).src, 0, length)
    run = masq.answer(header(packet).__class__(about))
    assert run.moved == {"from_net.sent": 1}
    own = moved(packet, source=True, address=header(packet).src, port=port_of(packet, source=True))
    wanted = told(own, router, header(packet).src, 1, length)
    assert run.data == framed(Raw(wanted), mac("cni0"), POD_MAC)[:12] + run.data[12:14] + wanted


@pytest.mark.parametrize("length", [None, 28])
@pytest.mark.parametrize("name", QUOTED)
def test_a_pods_error_about_an_answer_reaches_the_remote(
    masq: Rig, name: str, length: int | None
) -> None:
    """Its quote is what the remote has sent."""
    packet, layers = QUOTED[name]
    if length and IPv6 in packet:
        length = 48
    sent = masq.out(packet).packet[1]
    back = fresh(reply_to(sent, layers))
    got = fresh(masq.answer(back).packet[1])
    about = told(got, header(packet).src, header(got).src, 0, length)
    run = masq.out(header(packet).__class__(about))
    assert run.moved == {"from_pod.sent": 1}
    address = source_of(packet)
    quoted = moved(back, source=False, address=address, port=port_of(sent, source=True))
    wanted = told(quoted, address, REMOTE if IP in packet else REMOTE6, 1, length)
    assert run.data[14:] == wanted


def test_too_big_reaches_the_pod_with_its_mtu(masq: Rig) -> None:
    """Path MTU discovery works."""
    packet = V6 / UDP(sport=1, dport=2) / Raw(bytes(100))
    sent = masq.out(packet).packet[IPv6]
    too_big = IPv6(src=ROUTER6, dst=sent.src) / ICMPv6PacketTooBig(mtu=1280) / Raw(bytes(sent))
    run = masq.answer(too_big)
    assert run.moved == {"from_net.sent": 1}
    assert run.packet[ICMPv6PacketTooBig].mtu == 1280
    assert run.packet[IPerror6].src == POD6
    assert run.packet[UDPerror].sport == 1


def test_an_error_about_a_fragment_has_the_pods_identification(masq: Rig) -> None:
    """What it was before ours took its place."""
    whole = IP(src=POD, dst=REMOTE, id=4711, flags="MF") / UDP(sport=1, dport=2) / Raw(bytes(64))
    sent = masq.out(whole).packet[IP]
    assert sent.id != 4711
    run = masq.answer(IP(src=ROUTER, dst=sent.src) / ICMP(type=11, code=0) / Raw(bytes(sent)))
    assert run.moved == {"from_net.sent": 1}
    assert run.packet[IPerror].id == 4711
    check = run.packet[IPerror].chksum
    assert fresh(IP(bytes(run.packet[IPerror]))).chksum == check


def test_errors_about_what_is_not_known(masq: Rig) -> None:
    """The node's own are the stack's; a pod's don't leave."""
    about = IP(src="192.168.0.1", dst=REMOTE) / UDP(sport=62000, dport=2)
    run = masq.answer(IP(src=ROUTER, dst="192.168.0.1") / ICMP(type=3, code=1) / about)
    assert run.moved == {"from_net.pass_local": 1}
    assert run.action == UNSPEC
    theirs = IP(src=REMOTE, dst=POD) / UDP(sport=9, dport=9)
    run = masq.out(V4 / ICMP(type=3, code=3) / theirs)
    assert run.moved == {"from_pod.drop_no_flow": 1}
    assert run.action == SHOT
