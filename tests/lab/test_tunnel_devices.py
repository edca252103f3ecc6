# SPDX-License-Identifier: Apache-2.0
"""Backends behind a device that isn't Ethernet, as VPNs and tunnels have them.

To these no frame can be redirected, though the look-up in the FIB finds a way and names MAC
addresses; the kernel's stack sends what goes there.
"""

from __future__ import annotations

import fcntl
import os
import select
import struct
from contextlib import contextmanager
from ipaddress import IPv4Address, ip_address
from typing import TYPE_CHECKING

import pytest
from scapy.layers.inet import IP, UDP
from tests.lab.harness_handoff import (
    BALANCER,
    FAR,
    NEAR,
    PORT,
    SMALL,
    TIMEOUT,
    VIPS,
    balancing,
    client,
    frame,
    run,
    wires,
)

from towpath.datapath.balancer import Balancer
from towpath.kernel.net.netns import in_netns
from towpath.model import Backend, Device, Protocol, Service, Snat

if TYPE_CHECKING:
    from collections.abc import Iterator

TUN = "tphtun"
OWN = {4: "10.8.0.1/24", 6: "2001:db8:8::1/64"}
BACKENDS = {4: ip_address("10.8.0.9"), 6: ip_address("2001:db8:8::9")}
OUTER = {4: 20, 6: 40}
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 1, 0x1000
SENT = 5


@pytest.fixture(autouse=True)
def network() -> Iterator[None]:
    """Anew for each test."""
    with wires():
        yield


@contextmanager
def tunnel() -> Iterator[int]:
    """The load balancer's host has a tunnel device; gives its other end."""
    with in_netns(BALANCER):
        end = os.open("/dev/net/tun", os.O_RDWR)
        request = struct.pack("16sH22x", TUN.encode(), _IFF_TUN | _IFF_NO_PI)
        fcntl.ioctl(end, _TUNSETIFF, request)
    try:
        run("ip", "-n", BALANCER, "link", "set", TUN, "addrgenmode", "none")
        run("ip", "-n", BALANCER, "link", "set", TUN, "up")
        for version, own in OWN.items():
            flags = ("nodad",) if version == 6 else ()
            run("ip", "-n", BALANCER, "address", "add", own, "dev", TUN, *flags)
        yield end
    finally:
        os.close(end)


def receive(end: int) -> bytes:
    """The next packet out of the tunnel that is no multicast of the kernel's own."""
    while True:
        readable, _, _ = select.select([end], [], [], TIMEOUT)
        assert readable, "nothing came"
        packet = os.read(end, 65536)
        if packet[0] >> 4 == 4 or packet[24] != 0xFF:
            return packet


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("outside", [4, 6])
def test_a_tunnel_within_a_tunnel(outside: int, late: bool) -> None:  # noqa: FBT001 -- a case
    """Each packet arrives as by Ethernet, without a frame; also by a device that comes late."""
    made = [frame(4, 2000 + n) for n in range(SENT)]
    with client() as sender:
        if late:
            with balancing(4, BACKENDS[outside]) as balancer, tunnel() as end:
                balancer.follow()
                assert_arrive(balancer, sender, made, end, outside)
        else:
            with tunnel() as end, balancing(4, BACKENDS[outside]) as balancer:
                assert_arrive(balancer, sender, made, end, outside)


def assert_arrive(
    balancer: Balancer, sender: object, made: list[bytes], end: int, outside: int
) -> None:
    """All are handed to the kernel, and come out with the right outer header."""
    for each in made:
        sender.send(each)  # type: ignore[attr-defined]
        packet = receive(end)
        assert packet[OUTER[outside] :] == each[14:]
        assert packet[0] >> 4 == outside
        address = packet[16:20] if outside == 4 else packet[24:40]
        assert address == BACKENDS[outside].packed
    counted = balancer.counters().verdicts
    assert (counted["handoff"], counted["tx"], counted["redirect"]) == (len(made), 0, 0)


def test_translated_packets() -> None:
    """There is no frame for them either."""
    service = Service(
        "snat",
        VIPS[4],
        PORT,
        Protocol.UDP,
        (Backend(BACKENDS[4]),),
        table_size=251,
        forwarding="snat",
    )
    ours = IPv4Address("10.8.0.200")
    with tunnel() as end, client() as sender, in_netns(BALANCER):
        devices = [Device(name) for name in (NEAR, FAR)]
        with Balancer(devices, limits=SMALL, snat=Snat(ipv4=(ours,))) as balancer:
            balancer.apply([service])
            for number in range(SENT):
                sender.send(frame(4, 2000 + number))
                packet = IP(receive(end))
                assert (packet.src, packet.dst) == (str(ours), str(BACKENDS[4]))
                assert packet[UDP].dport == PORT
                assert bytes(packet[UDP].payload) == b"towpath"
            assert balancer.counters().verdicts["handoff"] == SENT
