# SPDX-License-Identifier: Apache-2.0
"""A path MTU that the kernel has learnt of a backend holds for what is sent there by XDP."""

from __future__ import annotations

import json
import socket
import subprocess
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import ICMPv6PacketTooBig, IPv6
from scapy.layers.l2 import Ether
from tests.prog.lb.frames import VIPS, frame
from tests.prog.lb.harness import Rig, rigged, service
from tests.prog.lb.network import IN, MACS, NEAR, OWN, Network, network
from tests.prog.lb.oracle import OUTER_HEADER, TOO_BIG, TX

from towpath.kernel.bpf.probe_fib import fib_lookup
from towpath.lab.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.prog.lb.oracle_parse import Address

MTU = {4: 1000, 6: 1400}
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
PORT = 4789


@pytest.fixture
def net() -> Iterator[Network]:
    """A network of the test's own: what was learnt stays for ten minutes."""
    with network() as made:
        yield made


@pytest.fixture
def rig(net: Network) -> Iterator[Rig]:
    """The load balancer on two devices of it."""
    with rigged(net) as made:
        yield made


def told(sender: Address, backend: Address, port: int) -> bytes:
    """What a router says of a datagram of this node's that was too large for it."""
    link = Ether(dst=MACS[IN], src="02:00:00:00:00:99")
    quoted = UDP(sport=port, dport=PORT)
    src, dst = str(sender), str(backend)
    if backend.version == 4:
        inside = IP(src=src, dst=dst, flags="DF") / quoted
        error = ICMP(type=3, code=4, nexthopmtu=MTU[4]) / inside
        return bytes(link / IP(src=dst, dst=src) / error)
    inside = IPv6(src=src, dst=dst) / quoted
    return bytes(link / IPv6(src=dst, dst=src) / ICMPv6PacketTooBig(mtu=MTU[6]) / inside)


def learnt(backend: Address) -> int:
    """The path MTU that the kernel has for a backend, 0 for none."""
    command = ["ip", "-j", "route", "get", str(backend)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    (route,) = json.loads(ran.stdout)
    return next((int(each["mtu"]) for each in route.get("metrics", ()) if "mtu" in each), 0)


@pytest.mark.parametrize("family", [4, 6])
def test_what_the_kernel_has_learnt_holds(net: Network, rig: Rig, family: int) -> None:
    """Up to it packets go, larger ones are answered with what is left of it within the tunnel."""
    if not fib_lookup().mtu:
        pytest.skip("this kernel's look-up tells no MTU")
    backend, own = NEAR[family][0], OWN[IN][family]
    rig.serve(service(VIPS[4], backend))
    room = MTU[family] - OUTER_HEADER[family] - len(frame(4, payload=b"")) + 14
    rig.expect(frame(4, payload=bytes(room + 1)), TX)
    with (
        socket.socket(FAMILY[family], socket.SOCK_DGRAM) as asking,
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire,
    ):
        asking.bind((str(own), 0))
        asking.connect((str(backend), PORT))
        wire.bind((f"{IN}p", 0))
        wire.send(told(own, backend, asking.getsockname()[1]))
        wait_until(lambda: learnt(backend) == MTU[family], seconds=30, what="the kernel to learn")
    rig.world.ways[backend] = replace(net.ways[backend], mtu=MTU[family])
    rig.forget_ways()
    rig.expect(frame(4, payload=bytes(room)), TX)
    rig.expect(frame(4, payload=bytes(room + 1)), TOO_BIG)
    rig.serve(service(VIPS[4], NEAR[family][1]))
    rig.expect(frame(4, payload=bytes(room + 1)), TX)
