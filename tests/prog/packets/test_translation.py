# SPDX-License-Identifier: Apache-2.0
"""Packets of pods to services and what is answered, byte for byte."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP
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
    REDIRECT,
    SHOT,
    UNSPEC,
    VIP,
    VIP6,
    Rig,
    service,
)
from tests.prog.packets.oracle import answer, backend, between, framed, ports

from towpath.model.kinds import Ports
from towpath.model.service import Backend, BackendState, SourceRoute

if TYPE_CHECKING:
    from scapy.packet import Packet

    from towpath.model.service import Service

V4, V6 = IP(src=POD, dst=VIP, ttl=64), IPv6(src=POD6, dst=VIP6, hlim=64)
DATA = Raw(b"thirteen byte")
PAIRS = {
    "tcp4": (V4 / TCP(sport=40000, dport=8080, flags="S"), TCP(flags="SA")),
    "udp4": (V4 / UDP(sport=40000, dport=8080) / DATA, UDP() / DATA),
    "short4": (V4 / UDP(sport=40000, dport=8080) / Raw(b"1"), UDP() / Raw(b"2")),
    "options4": (
        IP(src=POD, dst=VIP, options=[b"\x01\x01\x01\x01"]) / TCP(sport=4, dport=8080, flags="S"),
        TCP(flags="SA"),
    ),
    "tcp6": (V6 / TCP(sport=40000, dport=8080, flags="S"), TCP(flags="SA")),
    "udp6": (V6 / UDP(sport=40000, dport=8080) / DATA, UDP() / DATA),
}


def both(backends: tuple[str, ...] = BACKENDS) -> tuple[Service, ...]:
    """The same service by TCP and by UDP."""
    vip = VIP6 if ":" in backends[0] else VIP
    return tuple(service(vip, backends, protocol=each) for each in ("tcp", "udp"))


def backends_of(packet: Packet) -> tuple[str, ...]:
    """Those of the packet's family."""
    return BACKENDS if IP in packet else BACKENDS6


@pytest.mark.parametrize("name", PAIRS)
def test_a_flow_goes_to_a_backend_and_back(rig: Rig, name: str) -> None:
    """To the one that a packet from outside would; only addresses and checksums are others."""
    packet, layers = PAIRS[name]
    packet = fresh(packet)
    rig.apply(*both(), *both(BACKENDS6))
    run = rig.out(packet)
    assert run.moved == {"from_pod.balanced": 1, "from_pod.begun": 1}
    assert run.action == UNSPEC
    chosen = backend(packet, backends_of(packet))
    sent = between(packet, None, (chosen, 8080))
    assert run.data == framed(sent, POD_MAC, NODE_MAC)

    back = answer(sent, layers)
    got = rig.to_pod(back)
    assert got.moved == {"to_pod.restored": 1}
    assert got.action == UNSPEC
    wanted = between(back, (header(packet).dst, 8080), None)
    assert got.data == framed(wanted, NODE_MAC, POD_MAC)

    again = rig.out(packet)
    assert again.moved == {"from_pod.balanced": 1}
    assert again.data == run.data


def test_a_backend_has_its_own_port(rig: Rig) -> None:
    """And the pod sees the service's."""
    rig.apply(service(VIP, [Backend(ip_address(BACKENDS[0]), port=9090)]))
    packet = fresh(V4 / TCP(sport=40000, dport=8080, flags="S"))
    sent = between(packet, None, (BACKENDS[0], 9090))
    assert rig.out(packet).data == framed(sent, POD_MAC, NODE_MAC)
    back = answer(sent, TCP(flags="SA"))
    assert ports(rig.to_pod(back).packet).sport == 8080


def test_a_service_of_many_ports_and_addresses(rig: Rig) -> None:
    """Each port of each address is its own."""
    rig.apply(service("192.0.2.128/28", BACKENDS[:1], port=Ports.of([(1000, 2000)])))
    packet = fresh(IP(src=POD, dst="192.0.2.130") / TCP(sport=4, dport=1999, flags="S"))
    run = rig.out(packet)
    assert run.data == framed(between(packet, None, (BACKENDS[0], 1999)), POD_MAC, NODE_MAC)
    packet = fresh(IP(src=POD, dst="192.0.2.130") / TCP(sport=4, dport=2001, flags="S"))
    assert rig.out(packet).moved == {"from_pod.pass_no_service": 1}


LEFT = {
    "another address": (IP(src=POD, dst="203.0.113.9") / UDP(dport=8080), "no_service"),
    "another port": (V4 / UDP(dport=8081), "no_service"),
    "in the middle of something else": (
        IP(src=POD, dst="203.0.113.9") / TCP(dport=80, flags="A"),
        "no_service",
    ),
    "a ping": (V4 / ICMP(type=8, id=7), "other"),
    "no ports": (IP(src=POD, dst=VIP, proto=47) / Raw(bytes(20)), "other"),
    "shorter than it says": (IP(src=POD, dst=VIP, len=99) / UDP(dport=8080), "other"),
    "no IP": (ARP(), "other"),
    "another family": (IP(src=POD, dst=OTHER_VIP) / UDP(dport=8080), "family"),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_is_left_to_the_stack_stays_as_it_is(rig: Rig, name: str) -> None:
    """Counted as what it is."""
    rig.apply(*both(), service(OTHER_VIP, BACKENDS6, protocol="udp"))
    packet, verdict = LEFT[name]
    run = rig.out(packet)
    assert run.moved == {f"from_pod.pass_{verdict}": 1}
    assert run.action == UNSPEC
    assert run.data == framed(packet, POD_MAC, NODE_MAC)
    assert not rig.entries()


def test_what_is_no_answer_stays_as_it_is(rig: Rig) -> None:
    """From a backend to another port, from another host, to another pod."""
    rig.apply(service(VIP, BACKENDS[:1]))
    sent = rig.out(V4 / TCP(sport=40000, dport=8080, flags="S")).packet
    back = answer(sent, TCP(flags="SA"))
    for packet in (
        between(back, (BACKENDS[0], 8081), None),
        between(back, (BACKENDS[1], 8080), None),
        between(back, None, (POD, 40001)),
    ):
        run = rig.to_pod(packet)
        assert run.moved == {"to_pod.pass_no_flow": 1}
        assert run.data == framed(packet, NODE_MAC, POD_MAC)
    assert rig.to_pod(back, "other").moved == {"to_pod.pass_no_flow": 1}
    assert rig.to_pod(back).moved == {"to_pod.restored": 1}


def test_a_service_without_backends_drops(rig: Rig) -> None:
    """And notes nothing."""
    rig.apply(service(VIP, []))
    run = rig.out(V4 / TCP(sport=1, dport=8080, flags="S"))
    assert (run.moved, run.action) == ({"from_pod.drop_no_backend": 1}, SHOT)
    assert not rig.entries()


def test_a_service_is_for_its_sources(rig: Rig) -> None:
    """Those of `allow_from`: unlike a socket, a packet has its source."""
    rig.apply(service(VIP, BACKENDS, allow_from=(ip_network("10.244.0.2/32"),)))
    assert rig.out(V4 / TCP(sport=1, dport=8080, flags="S")).moved == {
        "from_pod.balanced": 1,
        "from_pod.begun": 1,
    }
    run = rig.out(IP(src="10.244.0.3", dst=VIP) / TCP(sport=1, dport=8080, flags="S"))
    assert (run.moved, run.action) == ({"from_pod.drop_source": 1}, SHOT)


def test_a_pod_has_the_route_of_its_address(rig: Rig) -> None:
    """The longest prefix's; where none of its backends takes flows all do."""
    chosen = ip_address(BACKENDS[2])
    route = SourceRoute((ip_network("10.244.0.2/32"),), (chosen,))
    wide = SourceRoute((ip_network("10.244.0.0/16"),), (ip_address(BACKENDS[0]),))
    made = service(VIP, BACKENDS, route_from=(wide, route))
    rig.apply(made)
    backends = {
        rig.out(V4 / TCP(sport=sport, dport=8080, flags="S")).packet[IP].dst
        for sport in range(1, 21)
    }
    assert backends == {str(chosen)}
    away = tuple(
        replace(each, state=BackendState.DRAINING) if each.address == chosen else each
        for each in made.backends
    )
    rig.apply(replace(made, backends=away))
    backends = {
        rig.out(V4 / TCP(sport=sport, dport=8080, flags="S")).packet[IP].dst
        for sport in range(100, 140)
    }
    assert backends == set(BACKENDS[:2])


def test_a_reset_begins_nothing(rig: Rig) -> None:
    """It would be the first and the last of its flow."""
    rig.apply(service(VIP, BACKENDS))
    run = rig.out(V4 / TCP(sport=1, dport=8080, flags="R"))
    assert (run.moved, run.action) == ({"from_pod.drop_no_flow": 1}, SHOT)


def test_two_services_with_one_backend_are_told_apart(rig: Rig) -> None:
    """By another port of the pod's, which the backend sees."""
    rig.apply(service(VIP, BACKENDS[:1]), service(OTHER_VIP, BACKENDS[:1]))
    one = fresh(V4 / TCP(sport=40000, dport=8080, flags="S"))
    two = between(one, None, (OTHER_VIP, 8080))
    first, second = rig.out(one).packet, rig.out(two).packet
    assert ports(first).sport == 40000
    port = ports(second).sport
    assert 1024 <= port < 16000
    assert bytes(second) == bytes(between(two, (POD, port), (BACKENDS[0], 8080)))
    for sent, packet in ((second, two), (first, one)):
        back = answer(sent, TCP(flags="SA"))
        wanted = between(back, (header(packet).dst, 8080), (POD, 40000))
        assert rig.to_pod(back).data == framed(wanted, NODE_MAC, POD_MAC)
    again = rig.out(two)
    assert again.moved == {"from_pod.balanced": 1}
    assert bytes(again.packet) == bytes(second)


def test_a_pod_that_is_its_own_backend_sees_the_service_on_both_sides(rig: Rig) -> None:
    """Its packets go back by the device that they came by."""
    rig.apply(service(VIP, [Backend(ip_address(POD), port=9090)]))
    packet = fresh(V4 / TCP(sport=40000, dport=8080, flags="S"))
    run = rig.out(packet)
    assert run.moved == {"from_pod.hairpin": 1, "from_pod.begun": 1}
    assert run.action == REDIRECT
    came = between(packet, (VIP, 40000), (POD, 9090))
    assert run.data == framed(came, NODE_MAC, POD_MAC)
    assert rig.to_pod(came).moved == {"to_pod.pass_no_flow": 1}

    back = answer(came, TCP(flags="SA"))
    got = rig.out(back)
    assert got.moved == {"from_pod.hairpin": 1}
    assert got.action == REDIRECT
    assert got.data == framed(between(back, (VIP, 8080), (POD, 40000)), NODE_MAC, POD_MAC)


def test_a_pod_reaches_itself_at_a_service_of_all_ports(rig: Rig) -> None:
    """Its answers have an address and port of the service's."""
    rig.apply(service(VIP, [POD], port=Ports.of([(1, 65535)]), protocol="udp"))
    packet = fresh(V4 / UDP(sport=40000, dport=8080) / DATA)
    came = rig.out(packet).packet
    back = answer(came, UDP() / DATA)
    got = rig.out(back)
    assert got.moved == {"from_pod.hairpin": 1}
    assert bytes(got.packet) == bytes(between(back, (VIP, 8080), (POD, 40000)))


def test_large_packets_that_are_still_to_be_divided(rig: Rig) -> None:
    """With options and a fragment's worth of data behind the headers in another page."""
    rig.apply(service(VIP, BACKENDS[:1], protocol="udp"))
    packet = fresh(V4 / UDP(sport=1, dport=8080) / Raw(bytes(3000)))
    run = rig.out(packet)
    assert run.data == framed(between(packet, None, (BACKENDS[0], 8080)), POD_MAC, NODE_MAC)


def test_a_datagram_without_a_checksum_stays_without(rig: Rig) -> None:
    """0 says that there is none (RFC 768)."""
    rig.apply(service(VIP, BACKENDS[:1], protocol="udp"))
    packet = V4 / UDP(sport=1, dport=8080, chksum=0) / DATA
    assert rig.out(packet).packet[UDP].chksum == 0
