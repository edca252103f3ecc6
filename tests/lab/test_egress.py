# SPDX-License-Identifier: Apache-2.0
"""What is counted as sent arrives, by whatever device it leaves: real devices, real packets."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest
from scapy.layers.inet import ICMP, IP
from scapy.layers.inet6 import ICMPv6EchoReply, ICMPv6EchoRequest, IPv6
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Raw
from tests.lab import harness_egress as egress
from tests.lab.harness_egress import (
    BACKEND,
    NEAR_BACKEND,
    NEAR_MAC,
    balancing,
    received,
    set_gro,
    taking,
    wire,
)
from tests.lab.harness_handoff import (
    BALANCER,
    CARRIED,
    CLIENTS,
    MACS,
    NEAR,
    VIPS,
    WIRE,
    client,
    frame,
    until,
)

from towpath.kernel.net.netns import in_netns

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.lab.harness_egress import Peer

    from towpath.datapath.balancer import Balancer

COMBINATIONS = [(4, 4), (4, 6), (6, 6)]  # what is inside, what is outside
SENT = 600  # more than what a veth's ring keeps for good
LEAVES = {
    "veth": ("redirect", egress.veth),
    "tap": ("redirect", egress.tap),
    "bridge": ("handoff", egress.bridge),
    "macvlan": ("handoff", egress.macvlan),
    "vxlan": ("handoff", egress.vxlan),
    "tun": ("handoff", egress.tun),
}


def verdicts(balancer: Balancer) -> dict[str, int]:
    """What has been counted, without what hosts say to each other by themselves."""
    counted = balancer.counters().verdicts
    return {name: n for name, n in counted.items() if n and not name.startswith("pass")}


def all_arrive(
    balancer: Balancer, inside: int, read: Callable[[int], bytes], verdict: str, outer: int
) -> None:
    """Send packets one by one, and read each where it arrives, its bytes as they were sent."""
    before = verdicts(balancer).get(verdict, 0)
    with client() as sender:
        for number in range(SENT):
            sent = frame(inside, 1024 + number, payload=number.to_bytes(4, "big") * 20)
            sender.send(sent)
            assert read(CARRIED[inside])[outer:] == sent[14:], number
    until(lambda: verdicts(balancer).get(verdict, 0) - before == SENT, verdict)


@pytest.mark.parametrize("kind", LEAVES)
@pytest.mark.parametrize(("inside", "outside"), COMBINATIONS)
def test_out_of_another_device(kind: str, inside: int, outside: int) -> None:
    """Of every kind: by XDP where the driver takes it, else by the kernel."""
    verdict, leaves = LEAVES[kind]
    with wire(), leaves() as read, balancing(inside, BACKEND[outside]) as balancer:
        all_arrive(balancer, inside, read, verdict, {4: 20, 6: 40}[outside])
        assert verdicts(balancer) == {verdict: SENT}
        (backend,) = balancer.counters().services[0].backends
        assert backend.packets == SENT


@pytest.mark.parametrize("kind", ["bridge", "tun"])
def test_out_of_another_device_in_generic_mode(kind: str) -> None:
    """There the kernel sends what XDP redirects; only what has no frames is left to it."""
    verdict = {"bridge": "redirect", "tun": "handoff"}[kind]
    with wire(), LEAVES[kind][1]() as read, balancing(4, BACKEND[4], mode="generic") as balancer:
        all_arrive(balancer, 4, read, verdict, 20)
        assert verdicts(balancer) == {verdict: SENT}


@pytest.mark.parametrize("peer", ["nothing", "gro"])
def test_to_a_veth_whose_peer_has_no_program(peer: Peer) -> None:
    """With GRO it takes what is redirected."""
    verdict = {"nothing": "handoff", "gro": "redirect"}[peer]
    with wire(), egress.veth(peer) as read, balancing(4, BACKEND[4]) as balancer:
        all_arrive(balancer, 4, read, verdict, 20)
        assert verdicts(balancer) == {verdict: SENT}


@pytest.mark.parametrize("peer", ["nothing", "gro", "program"])
@pytest.mark.parametrize(("inside", "outside"), COMBINATIONS)
def test_back_out_of_a_veth(peer: Peer, inside: int, outside: int) -> None:
    """Whatever its peer has: XDP_TX would need a program there."""
    verdict = "handoff" if peer == "nothing" else "tx"
    with wire(peer), balancing(inside, NEAR_BACKEND[outside]) as balancer:
        with received(NEAR, WIRE) as read:
            all_arrive(balancer, inside, read, verdict, {4: 20, 6: 40}[outside])
        assert verdicts(balancer) == {verdict: SENT}


def test_what_a_device_can_may_change() -> None:
    """The next look at the devices finds it."""
    with wire("nothing"), balancing(4, NEAR_BACKEND[4]) as balancer, received(NEAR, WIRE) as read:
        peers: list[tuple[Peer, str]] = [("program", "tx"), ("nothing", "handoff"), ("gro", "tx")]
        for peer, verdict in peers:
            with taking(NEAR, WIRE, peer):
                with in_netns(BALANCER):
                    balancer.refresh_devices()
                all_arrive(balancer, 4, read, verdict, 20)
        with in_netns(NEAR):
            set_gro(WIRE, on=False)
        with in_netns(BALANCER):
            balancer.refresh_devices()
        all_arrive(balancer, 4, read, "handoff", 20)


# ---- Answers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("vlan", [None, 7])
@pytest.mark.parametrize("peer", ["nothing", "gro", "program"])
@pytest.mark.parametrize("family", [4, 6])
def test_pings_are_answered_on_every_veth(peer: Peer, family: int, vlan: int | None) -> None:
    """As often as they are asked, in the VLAN in which they are."""
    with (
        wire(peer),
        balancing(family, NEAR_BACKEND[4]) as balancer,
        client() as sender,
        egress.frames_to(NEAR, WIRE) as read,
    ):
        for number in range(SENT):
            question, answer = ping(family, number, vlan)
            sender.send(question)
            assert read() == answer, number
        assert verdicts(balancer) == {"tx_echo": SENT}


def ping(family: int, number: int, vlan: int | None) -> tuple[bytes, bytes]:
    """An echo request's frame and that of its answer, as scapy makes them."""
    ends = str(VIPS[family]), CLIENTS[family]
    link, back = Ether(src=NEAR_MAC, dst=MACS[NEAR]), Ether(src=MACS[NEAR], dst=NEAR_MAC)
    if vlan is not None:
        link, back = link / Dot1Q(vlan=vlan), back / Dot1Q(vlan=vlan)
    if family == 4:
        message = {"id": 1, "seq": number}
        question = IP(src=ends[1], dst=ends[0]) / ICMP(type=8, **message)
        answer = IP(src=ends[0], dst=ends[1]) / ICMP(type=0, **message)
    else:
        question = IPv6(src=ends[1], dst=ends[0]) / ICMPv6EchoRequest(seq=number)
        answer = IPv6(src=ends[0], dst=ends[1]) / ICMPv6EchoReply(seq=number)
    return bytes(link / question / Raw(b"towpath")), bytes(back / answer / Raw(b"towpath"))


@pytest.mark.parametrize("peer", ["nothing", "gro", "program"])
def test_senders_of_what_is_too_large_are_told_on_every_veth(peer: Peer) -> None:
    """As often as a CPU answers in a jiffy, so one by one."""
    with (
        wire(peer),
        balancing(4, NEAR_BACKEND[4]) as balancer,
        client() as sender,
        received(NEAR, WIRE) as read,
    ):
        large = frame(4, 2000, payload=bytes(1472), flags="DF")
        for number in range(1, 21):
            sender.send(large)
            told = IP(read(socket.IPPROTO_ICMP))
            assert (told.src, told.dst) == (str(VIPS[4]), CLIENTS[4])
            assert (told[ICMP].type, told[ICMP].code, told[ICMP].nexthopmtu) == (3, 4, 1480)
            until(lambda: verdicts(balancer) == {"tx_too_big": number}, "an answer")  # noqa: B023
