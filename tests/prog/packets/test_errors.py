# SPDX-License-Identifier: Apache-2.0
"""ICMP errors about flows to services, and what they quote."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6DestUnreach, ICMPv6PacketTooBig, IPv6
from scapy.packet import Raw
from tests.prog.masquerade.oracle import fresh, header
from tests.prog.packets.harness import (
    BACKENDS,
    BACKENDS6,
    NODE_MAC,
    OTHER_VIP,
    POD,
    POD6,
    POD_MAC,
    UNSPEC,
    VIP,
    VIP6,
    Rig,
    service,
)
from tests.prog.packets.oracle import answer, between, framed, ports

if TYPE_CHECKING:
    from scapy.packet import Packet

ROUTER, ROUTER6 = "198.51.100.1", "2001:db8:5::1"
DATA = Raw(b"thirteen byte")
V4, V6 = IP(src=POD, dst=VIP, ttl=64), IPv6(src=POD6, dst=VIP6, hlim=64)
SENT = {
    "udp4": V4 / UDP(sport=40000, dport=8080) / DATA,
    "tcp4": V4 / TCP(sport=40000, dport=8080, flags="S"),
    "udp6": V6 / UDP(sport=40000, dport=8080) / DATA,
    "tcp6": V6 / TCP(sport=40000, dport=8080, flags="S"),
}


def told(quoted: Packet, source: str, to: str, length: int | None) -> Packet:
    """An error about a packet, or as much of it."""
    body = Raw(bytes(quoted)[:length])
    if ":" in source:
        return IPv6(bytes(IPv6(src=source, dst=to) / ICMPv6DestUnreach(code=4) / body))
    return IP(bytes(IP(src=source, dst=to) / ICMP(type=3, code=4, nexthopmtu=1400) / body))


@pytest.fixture
def balancing(rig: Rig) -> Rig:
    """Services of one backend, by both families and protocols."""
    rig.apply(
        *(service(VIP, BACKENDS[:1], protocol=each) for each in ("tcp", "udp")),
        *(service(VIP6, BACKENDS6[:1], protocol=each) for each in ("tcp", "udp")),
        *(service(OTHER_VIP, BACKENDS[:1], protocol=each) for each in ("tcp", "udp")),
    )
    return rig


@pytest.mark.parametrize("length", [None, 28])
@pytest.mark.parametrize("who", ["router", "backend"])
@pytest.mark.parametrize("name", SENT)
def test_an_error_about_what_a_pod_sent_quotes_what_it_sent(
    balancing: Rig, name: str, who: str, length: int | None
) -> None:
    """One from the backend itself is from the service; a router's stays a router's."""
    packet = fresh(SENT[name])
    four = IP in packet
    length = length and (length if four else 48)
    sent = balancing.out(packet).packet
    vip, pod = header(packet).dst, header(packet).src
    source = header(sent).dst if who == "backend" else ROUTER if four else ROUTER6
    run = balancing.to_pod(told(sent, source, pod, length))
    assert run.moved == {"to_pod.restored": 1}
    assert run.action == UNSPEC
    wanted = told(packet, vip if who == "backend" else source, pod, length)
    assert run.data == framed(wanted, NODE_MAC, POD_MAC)


@pytest.mark.parametrize("length", [None, 28])
@pytest.mark.parametrize("name", SENT)
def test_a_pods_error_about_an_answer_quotes_the_backends(
    balancing: Rig, name: str, length: int | None
) -> None:
    """And goes to it."""
    packet = fresh(SENT[name])
    length = length and (length if IP in packet else 48)
    sent = balancing.out(packet).packet
    back = answer(sent, TCP(flags="SA") if TCP in packet else UDP() / DATA)
    got = balancing.to_pod(back).packet
    pod, vip, backend = header(packet).src, header(packet).dst, header(sent).dst
    run = balancing.out(told(got, pod, vip, length))
    assert run.moved == {"from_pod.balanced": 1}
    assert run.data == framed(told(back, pod, backend, length), POD_MAC, NODE_MAC)


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_errors_about_a_flow_with_another_port_quote_the_pods(
    balancing: Rig, protocol: str
) -> None:
    """Both ways."""
    one = fresh(SENT[f"{protocol}4"])
    two = between(one, None, (OTHER_VIP, 8080))
    balancing.out(one)
    sent = balancing.out(two).packet
    assert ports(sent).sport != 40000
    run = balancing.to_pod(told(sent, ROUTER, POD, None))
    assert run.data == framed(told(two, ROUTER, POD, None), NODE_MAC, POD_MAC)

    back = answer(sent, TCP(flags="SA") if protocol == "tcp" else UDP() / DATA)
    got = balancing.to_pod(back).packet
    run = balancing.out(told(got, POD, OTHER_VIP, None))
    assert run.data == framed(told(back, POD, BACKENDS[0], None), POD_MAC, NODE_MAC)


def test_errors_in_a_pods_flow_to_itself(rig: Rig) -> None:
    """They go back, as its packets do."""
    rig.apply(service(VIP, [POD], protocol="udp"))
    packet = fresh(SENT["udp4"])
    came = rig.out(packet).packet
    run = rig.out(told(came, POD, VIP, None))
    assert run.moved == {"from_pod.hairpin": 1}
    assert run.data == framed(told(packet, VIP, POD, None), NODE_MAC, POD_MAC)


def test_too_big_reaches_the_pod_with_its_mtu(balancing: Rig) -> None:
    """Path MTU discovery works."""
    packet = fresh(V6 / UDP(sport=1, dport=8080) / Raw(bytes(100)))
    sent = balancing.out(packet).packet
    too_big = IPv6(src=ROUTER6, dst=POD6) / ICMPv6PacketTooBig(mtu=1280)
    run = balancing.to_pod(IPv6(bytes(too_big / Raw(bytes(sent)))))
    assert run.moved == {"to_pod.restored": 1}
    assert bytes(run.packet) == bytes(too_big / Raw(bytes(packet)))


def test_errors_about_what_is_not_known_stay_as_they_are(balancing: Rig) -> None:
    """They are about somebody else's."""
    about = fresh(IP(src=POD, dst=BACKENDS[0]) / UDP(sport=9, dport=9))
    error = told(about, ROUTER, POD, None)
    run = balancing.to_pod(error)
    assert run.moved == {"to_pod.pass_no_flow": 1}
    assert run.data == framed(error, NODE_MAC, POD_MAC)
    theirs = fresh(IP(src=VIP, dst=POD) / UDP(sport=8080, dport=9))
    error = told(theirs, POD, VIP, None)
    run = balancing.out(error)
    assert run.moved == {"from_pod.pass_no_flow": 1}
    assert run.data == framed(error, POD_MAC, NODE_MAC)


def test_an_error_says_nothing_of_the_flow(balancing: Rig) -> None:
    """It neither confirms nor ends it."""
    packet = fresh(SENT["tcp4"])
    sent = balancing.out(packet).packet
    balancing.to_pod(told(sent, ROUTER, POD, None))
    with balancing.program.maps["packet_flows"].mmap(writable=False) as flows:
        entries = flows.array["way"]
        life = entries[entries["ref"] != 0]["life"]
        assert (int(life["client"][0]), int(life["backend"][0])) == (0, 0)
