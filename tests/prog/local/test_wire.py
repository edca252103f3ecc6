# SPDX-License-Identifier: Apache-2.0
"""Backends on the node, byte for byte: what clients send and what is answered."""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, fragment
from scapy.layers.inet6 import ICMPv6PacketTooBig, IPv6, IPv6ExtHdrFragment, fragment6
from scapy.packet import Raw
from tests.prog.local.harness import (
    BACKEND_PORT,
    CLIENT,
    CLIENT6,
    NODE,
    POD,
    POD6,
    PORT,
    REMOTE,
    REMOTE6,
    VIP,
    VIP6,
    Rig,
    rigged,
    routed,
    service,
)
from tests.prog.masquerade.oracle import fresh, header
from tests.prog.packets.oracle import answer, between

from towpath.model import Backend, BackendState, FlowTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scapy.packet import Packet

ROUTER = "203.0.113.9"
BODY = Raw(bytes(range(256)) * 12)
BEGUN = {"local": 1, "in.balanced": 1, "in.begun": 1}
BALANCED = {"local": 1, "in.balanced": 1}
ELSEWHERE = {"handoff": 1, "out.pass_no_flow": 1}
RESTORED = {"out.restored": 1}
_ports = iter(range(20000, 60000))


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    """One for all: each test has ports of its own."""
    with rigged() as made:
        yield made


@pytest.fixture
def pods(rig: Rig) -> Rig:
    """A service of each kind, whose backend is the pod, at a port of its own."""
    backends = (Backend(ip_address(each), port=BACKEND_PORT) for each in (POD, POD6))
    rig.serve(*(service(each, protocol=p) for each in backends for p in Protocol))
    return rig


def sent(version: int, layers: Packet) -> Packet:
    """What a client sends, from a port that no other test has."""
    ip = IP(src=CLIENT, dst=VIP, id=4711) if version == 4 else IPv6(src=CLIENT6, dst=VIP6)
    transport = layers.copy()
    transport.sport, transport.dport = next(_ports), PORT
    return fresh(ip / transport)


def delivered(packet: Packet) -> Packet:
    """The same as the pod gets it."""
    return routed(between(packet, None, (POD if IP in packet else POD6, BACKEND_PORT)))


KINDS = {
    "syn": TCP(flags="S", options=[("MSS", 1460)]),
    "datagram": UDP() / Raw(b"thirteen byte"),
    "empty": UDP(),
    "odd": UDP() / Raw(b"1"),
}


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back(pods: Rig, version: int, kind: str) -> None:
    """Only the destination changes, and on the way back the source; one hop less each way."""
    packet = sent(version, KINDS[kind])
    data, moved = pods.out(packet)
    assert moved == BEGUN
    assert data == pods.pod.framed(delivered(packet))
    layers = TCP(flags="SA") if kind == "syn" else UDP()
    back = answer(delivered(packet), layers)
    data, moved = pods.back(back)
    assert moved == RESTORED
    wanted = routed(between(back, (header(packet).dst, PORT), None))
    assert data == pods.client.framed(wanted)
    again, moved = pods.out(packet)
    assert moved == BALANCED
    assert again == pods.pod.framed(delivered(packet))


def test_a_datagram_without_checksum_stays_without(pods: Rig) -> None:
    """In IPv4."""
    packet = sent(4, UDP() / Raw(b"x"))
    packet[UDP].chksum = 0
    data, _ = pods.out(packet)
    wanted = delivered(packet)
    wanted[UDP].chksum = 0
    assert data == pods.pod.framed(wanted)


@pytest.mark.parametrize("version", [4, 6])
def test_fragments(pods: Rig, version: int) -> None:
    """Each goes to the pod, and what is answered in fragments is one packet again."""
    split, size = (fragment, 1000) if version == 4 else (fragment6, 1280)
    number, ports = 4712, UDP(sport=next(_ports), dport=PORT)
    if version == 4:
        whole = fresh(IP(src=CLIENT, dst=VIP, id=number) / ports / BODY)
    else:
        ip6 = IPv6(src=CLIENT6, dst=VIP6) / IPv6ExtHdrFragment(id=number)
        whole = IPv6(bytes(ip6 / ports / BODY))
    parts = split(whole, size)
    runs = [pods.out(part) for part in parts]
    assert [moved for _, moved in runs] == [BEGUN, *[BALANCED] * (len(parts) - 1)]
    wanted = delivered_parts(whole, split, size)
    assert [data for data, _ in runs] == [pods.pod.framed(each) for each in wanted]


def delivered_parts(whole: Packet, split: object, size: int) -> list[Packet]:
    """The fragments of a packet as the pod gets them."""
    made = between(whole, None, (POD if IP in whole else POD6, BACKEND_PORT))
    return [routed(each) for each in split(made, size)]  # type: ignore[operator]


def test_a_fragment_without_its_first_one_is_dropped(pods: Rig) -> None:
    """As of any service."""
    whole = fresh(IP(src=CLIENT, dst=VIP, id=9) / UDP(sport=next(_ports), dport=PORT) / BODY)
    pods.client.send(fragment(whole, 1000)[1])
    assert pods.pod.is_quiet()
    assert pods.moved() == {"drop_fragment": 1}


@pytest.mark.parametrize("version", [4, 6])
def test_errors_about_answers_get_to_the_pod(pods: Rig, version: int) -> None:
    """With what they quote, whoever on the way they are from."""
    packet = sent(version, UDP() / Raw(b"thirteen byte"))
    pods.out(packet)
    back = answer(delivered(packet), UDP() / Raw(b"a longer answer"))
    got, _ = pods.back(back)
    quoted = Raw(got[14:])
    if version == 4:
        error = IP(bytes(IP(src=ROUTER, dst=VIP) / ICMP(type=3, code=4, nexthopmtu=1400) / quoted))
    else:
        error = IPv6(bytes(IPv6(src=CLIENT6, dst=VIP6) / ICMPv6PacketTooBig(mtu=1400) / quoted))
    data, moved = pods.out(error)
    assert moved == BALANCED
    # As the pod has sent it, but for the hop that it has gone since.
    inner = bytes(routed(back))
    if version == 4:
        wanted = IP(src=ROUTER, dst=POD) / ICMP(type=3, code=4, nexthopmtu=1400) / Raw(inner)
        assert data == pods.pod.framed(routed(IP(bytes(wanted))))
    else:
        wanted = IPv6(src=CLIENT6, dst=POD6) / ICMPv6PacketTooBig(mtu=1400) / Raw(inner)
        assert data == pods.pod.framed(routed(IPv6(bytes(wanted))))


@pytest.mark.parametrize("version", [4, 6])
def test_errors_of_pods_get_to_clients(pods: Rig, version: int) -> None:
    """From the service, about what the client has sent."""
    packet = sent(version, UDP() / Raw(b"thirteen byte"))
    got, _ = pods.out(packet)
    quoted = Raw(got[14:])
    if version == 4:
        error = IP(bytes(IP(src=POD, dst=CLIENT) / ICMP(type=3, code=3) / quoted))
    else:
        error = IPv6(bytes(IPv6(src=POD6, dst=CLIENT6) / ICMPv6PacketTooBig(mtu=1300) / quoted))
    data, moved = pods.back(error)
    assert moved == RESTORED
    inner = bytes(routed(packet))
    if version == 4:
        wanted = routed(IP(bytes(IP(src=VIP, dst=CLIENT) / ICMP(type=3, code=3) / Raw(inner))))
    else:
        made = IPv6(src=VIP6, dst=CLIENT6) / ICMPv6PacketTooBig(mtu=1300) / Raw(inner)
        wanted = routed(IPv6(bytes(made)))
    assert data == pods.client.framed(wanted)


def test_two_services_with_one_backend_are_two_flows(rig: Rig) -> None:
    """The second one from the same port has another port to the pod, and each its own answers."""
    first = service(Backend(ip_address(POD), port=BACKEND_PORT))
    second = service(Backend(ip_address(POD), port=BACKEND_PORT), port=PORT + 1, name="other")
    rig.serve(first, second)
    packet = sent(4, TCP(flags="S"))
    other = between(packet, None, (VIP, PORT + 1))
    one, moved = rig.out(packet)
    assert (one, moved) == (rig.pod.framed(delivered(packet)), BEGUN)
    two, moved = rig.out(other)
    assert moved == BEGUN
    seen = IP(two[14:])
    assert seen[TCP].sport != packet[TCP].sport
    wanted = routed(between(packet, (CLIENT, seen[TCP].sport), (POD, BACKEND_PORT)))
    assert two == rig.pod.framed(wanted)
    back, moved = rig.back(answer(seen, TCP(flags="SA")))
    assert moved == RESTORED
    assert IP(back[14:])[TCP].sport == PORT + 1
    assert IP(back[14:])[TCP].dport == packet[TCP].sport


def test_what_is_not_a_flow_of_a_service(pods: Rig) -> None:
    """A pod's own traffic stays as it is; a reset of no flow goes nowhere."""
    own = fresh(IP(src=POD, dst=CLIENT) / UDP(sport=BACKEND_PORT, dport=next(_ports)))
    data, moved = pods.back(own)
    assert moved == {"out.pass_no_flow": 1}
    assert data == pods.client.framed(routed(own))
    pods.client.send(sent(4, TCP(flags="R")))
    assert pods.pod.is_quiet()
    assert pods.moved() == {"drop_no_flow": 1}


def test_the_backend_itself_is_no_client(pods: Rig) -> None:
    """A packet of a pod's that comes back from outside would be forged to the pod."""
    pods.client.send(fresh(IP(src=POD, dst=VIP) / UDP(sport=next(_ports), dport=PORT)))
    assert pods.pod.is_quiet()
    assert pods.moved() == {"drop_martian": 1}


def test_a_closed_connection_may_begin_anew(pods: Rig) -> None:
    """By the same ports, and at another port if the backend has one by now."""
    packet = sent(4, TCP(flags="S"))
    pods.out(packet)
    pods.back(answer(delivered(packet), TCP(flags="RA")))
    backend = Backend(ip_address(POD), port=BACKEND_PORT + 1)
    pods.serve(service(backend))
    data, moved = pods.out(packet)
    assert moved == BEGUN
    assert data == pods.pod.framed(routed(between(packet, None, (POD, BACKEND_PORT + 1))))


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("ended_by", ["client", "backend"])
def test_a_port_that_is_used_again_for_another_backend(
    rig: Rig, version: int, ended_by: str
) -> None:
    """Elsewhere, as the one here drains: all packets of the new connection go there.

    A client whose connection was reset says nothing more, and its port is free at once.
    """
    pod, remote = ((POD, REMOTE), (POD6, REMOTE6))[version == 6]
    rig.serve(service(pod))
    packet = sent(version, TCP(flags="S"))
    for flags, wanted in (("S", BEGUN), ("A", BALANCED)):
        packet[TCP].flags = flags
        assert rig.out(fresh(packet))[1] == wanted
    if ended_by == "client":
        packet[TCP].flags = "FA"
        assert rig.out(fresh(packet))[1] == BALANCED
    else:
        reset = answer(routed(between(packet, None, (pod, PORT))), TCP(flags="RA"))
        assert rig.back(reset)[1] == RESTORED
    drains = Backend(ip_address(pod), state=BackendState.DRAINING)
    rig.serve(service(drains, Backend(ip_address(remote))))
    for flags in ("S", "A", "PA"):
        packet[TCP].flags = flags
        rig.client.send(fresh(packet))
        frame = rig.client.receive()
        assert rig.moved() == ELSEWHERE
        seen = (IP if version == 4 else IPv6)(frame[14:])
        assert (seen.dst, seen[TCP].flags) == (remote, flags)
    assert rig.pod.is_quiet()


def test_a_connection_that_goes_on_stays_where_it_is(rig: Rig) -> None:
    """Whatever SYN comes for it: it may be forged."""
    rig.serve(service(POD))
    packet = sent(4, TCP(flags="S"))
    for flags, wanted in (("S", BEGUN), ("A", BALANCED)):
        packet[TCP].flags = flags
        assert rig.out(fresh(packet))[1] == wanted
    back = answer(routed(between(packet, None, (POD, PORT))), TCP(flags="FA"))
    assert rig.back(back)[1] == RESTORED
    drains = Backend(ip_address(POD), state=BackendState.DRAINING)
    rig.serve(service(drains, Backend(ip_address(REMOTE))))
    for flags in ("S", "A"):
        packet[TCP].flags = flags
        assert rig.out(fresh(packet))[1] == BALANCED


def test_trace_and_counters_say_so(pods: Rig) -> None:
    """The verdict, where it goes, and of the backend that it is here."""
    flow = FlowTuple.parse(f"{CLIENT}:1 -> {VIP}:{PORT} tcp")
    found = pods.balancer.trace(flow)
    assert (found.verdict, str(found.backend)) == ("local", POD)
    assert (found.forwarding, found.destination_port) == ("snat", BACKEND_PORT)
    assert found.fib_result is None
    assert {str(each.address) for each in pods.balancer.local_backends()} == {POD, POD6}
    packet = sent(4, UDP() / Raw(b"x"))
    pods.out(packet)
    counted = pods.balancer.counters()
    assert counted.local["in"]["balanced"] > 0
    (backend,) = counted.service(service(POD, protocol=Protocol.UDP).key).backends
    assert backend.packets > 0


def test_host(rig: Rig) -> None:
    """Of dsr and l2 what is for the node itself passes as it came."""
    for forwarding in ("dsr", "l2"):
        rig.serve(service(NODE, forwarding=forwarding))
        rig.client.send(sent(4, TCP(flags="S")))
        assert rig.pod.is_quiet()
        assert rig.moved().pop("local") == 1
