# SPDX-License-Identifier: Apache-2.0
"""The way past the stack: only what the stack would simply forward takes it."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw
from tests.prog.bandwidth.harness import MARK, REDIRECT, UNSPEC, Rig
from tests.prog.masquerade.harness import (
    GATEWAY_MAC,
    LAN,
    POD,
    POD6,
    POD_MAC,
    REMOTE,
    REMOTE6,
    WAN,
    mac,
    node,
)

from towpath.datapath.bandwidth.limits import Limit
from towpath.kernel.bpf import probe

if TYPE_CHECKING:
    from collections.abc import Iterator

DATA = Raw(bytes(100))
V4, V6 = IP(src=POD, dst=REMOTE, ttl=64), IPv6(src=POD6, dst=REMOTE6, hlim=64)


@pytest.fixture(scope="module")
def network() -> Iterator[None]:
    """The node that the module's tests run in: pods behind cni0, and wan."""
    with node():
        yield


@pytest.fixture
def bw(request: pytest.FixtureRequest) -> Iterator[Rig]:
    """The programs, with a pod at cni0 and wan as the device that paces."""
    request.getfixturevalue("network")
    if not probe.test_run_context():
        pytest.skip("this kernel runs no program as if its packet had come in by a device")
    made = Rig(atomic=probe.atomics(), direct=True)
    made.limit(3, Limit(egress=10_000_000))
    made.pod(socket.if_nametoindex("cni0"), 3)
    made.program.maps["bw_devices"].update(socket.if_nametoindex("wan"), 1)
    yield made
    made.close()


def sent(packet: Packet) -> Packet:
    """As the pod sends it to its gateway."""
    return Ether(src=POD_MAC, dst=mac("cni0")) / packet


@pytest.mark.parametrize(
    "packet",
    [V4 / UDP(sport=1, dport=2) / DATA, V4 / TCP(sport=1, dport=2), V6 / UDP(sport=1, dport=2)],
    ids=["udp4", "tcp4", "udp6"],
)
def test_a_packet_to_another_host_goes_there(bw: Rig, packet: Packet) -> None:
    """One hop further, and otherwise as it came; the kernel puts it into a frame."""
    run = bw.run("tag", sent(packet), device=socket.if_nametoindex("cni0"))
    assert (run.action, run.mark, run.moved) == (REDIRECT, MARK | 3, {"3.routed": 1})
    expected = packet.copy()
    if IP in expected:
        expected.ttl = 63
    else:
        expected.hlim = 63
    assert run.data == bytes(sent(expected))


STACK = {
    "for the node": IP(src=POD, dst=WAN) / UDP() / DATA,
    "by another device": IP(src=POD, dst="10.0.0.100") / UDP() / DATA,
    "from somebody else": IP(src="10.244.9.9", dst=REMOTE) / UDP() / DATA,
    "from the node's address": IP(src=LAN, dst=REMOTE) / UDP() / DATA,
    "at its last hop": IP(src=POD, dst=REMOTE, ttl=1) / UDP() / DATA,
    "multicast": IP(src=POD, dst="224.0.0.251") / UDP() / DATA,
    "broadcast": IP(src=POD, dst="255.255.255.255") / UDP() / DATA,
    "link-local": IP(src=POD, dst="169.254.169.254") / UDP() / DATA,
    "with options": IP(src=POD, dst=REMOTE, options=[b"\x01\x01\x01\x01"]) / UDP() / DATA,
    "without a route": IP(src=POD, dst="10.7.0.1") / UDP() / DATA,
    "too long": IP(src=POD, dst=REMOTE) / UDP() / Raw(bytes(1500)),
    "of one link": IPv6(src=POD6, dst="fe80::1") / UDP() / DATA,
    "at its last hop, IPv6": IPv6(src=POD6, dst=REMOTE6, hlim=1) / UDP() / DATA,
}


@pytest.mark.parametrize("name", STACK)
def test_all_else_is_the_stacks(bw: Rig, name: str) -> None:
    """As it came, but for its mark."""
    run = bw.run("tag", sent(STACK[name]), device=socket.if_nametoindex("cni0"))
    assert (run.action, run.mark) == (UNSPEC, MARK | 3)
    assert run.data == bytes(sent(STACK[name]))
    assert run.moved == {"3.tagged": 1}


def test_frames_for_others_are_left_alone(bw: Rig) -> None:
    """A bridge's device sees them too."""
    frame = Ether(src=POD_MAC, dst=GATEWAY_MAC) / STACK["at its last hop"]
    run = bw.run("tag", frame, device=socket.if_nametoindex("cni0"))
    assert (run.action, run.moved) == (UNSPEC, {"3.tagged": 1})
