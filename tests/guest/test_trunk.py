# SPDX-License-Identifier: Apache-2.0
"""802.1Q devices of the kernel on top of the load balancer's: a trunk that carries two VLANs."""

from __future__ import annotations

import socket
import struct
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from tests.guest.harness_guest import (
    COMBINATIONS,
    PORT,
    VIPS,
    ask,
    ask_by_datagram,
    balancing,
    ip,
    network,
    passing,
)

from towpath.kernel.net import sysctl
from towpath.kernel.net.interfaces import device_index, set_forwarding
from towpath.kernel.net.netns import in_netns
from towpath.lab.network import switch_off
from towpath.lab.topology import BALANCER, DEVICE, ROUTER, VIP4_NETWORK, VIP6_NETWORK
from towpath.lab.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from towpath import LoadBalancer
    from towpath.lab import Topology


CLIENTS, BACKENDS = 10, 20  # the VLANs: what comes from clients, what goes to backends
_SOL_PACKET, _PACKET_AUXDATA, _VLAN_VALID = 263, 8, 1 << 4
_AUXILIARY = (_SOL_PACKET, _PACKET_AUXDATA)
_AUXDATA = struct.Struct("IIIHHHH")  # struct tpacket_auxdata


@pytest.fixture(scope="module")
def topology() -> Iterator[Topology]:
    """Between router and load balancer a trunk, whose own untagged frames lead nowhere."""
    with network() as topology:
        make_trunk(topology)
        with passing(topology.balancer.port):
            yield topology


def make_trunk(topology: Topology) -> None:
    """Put a trunk between router and load balancer in place of the wire."""
    link = topology.balancer
    port = link.port
    for namespace, device in ((ROUTER, port), (BALANCER, DEVICE)):
        # As a wire has it: a tag in the frame, not beside it.
        switch_off(namespace, device, "tx-vlan-offload")
        ip(
            namespace,
            f"address flush dev {device}",
            *(
                f"link add {device}.{vid} link {device} type vlan id {vid}"
                for vid in (CLIENTS, BACKENDS)
            ),
            *(f"link set {device}.{vid} up" for vid in (CLIENTS, BACKENDS)),
        )
    ip(
        ROUTER,
        *(f"address add {each} dev {port}.{CLIENTS}" for each in link.of_router),
        f"address add 10.20.0.1/24 dev {port}.{BACKENDS}",
        f"address add fd20::1/64 dev {port}.{BACKENDS}",
        f"route replace {VIP4_NETWORK} via {link.node4[0].ip}",
        f"route replace {VIP6_NETWORK} via {link.node6[0].ip}",
    )
    ip(
        BALANCER,
        *(f"address add {each} dev {DEVICE}.{CLIENTS}" for each in link.of_node),
    )
    join_backends(topology)


def join_backends(topology: Topology) -> None:
    """Give the load balancer's VLAN device of the backends its addresses and routes."""
    backend = topology.backend_links[0]
    ip(
        BALANCER,
        f"address add 10.20.0.2/24 dev {DEVICE}.{BACKENDS}",
        f"address add fd20::2/64 dev {DEVICE}.{BACKENDS} nodad",
        f"route add {backend.ipv4} via 10.20.0.1",
        f"route add {backend.ipv6} via fd20::1",
    )


@pytest.fixture(autouse=True)
def _not_forwarding() -> None:
    """Nothing was set for forwarding before."""
    with in_netns(BALANCER):
        for family in ("ipv4", "ipv6"):
            set_forwarding("all", family, on=False)


@pytest.mark.parametrize(("inside", "outside"), COMBINATIONS)
def test_packets_change_their_vlan(topology: Topology, inside: int, outside: int) -> None:
    """From clients tagged, to backends with the other tag; no packet of ours is without."""
    (vip,) = (each for each in VIPS if each.version == inside)
    protocol = {4: socket.IPPROTO_IPIP, 6: socket.IPPROTO_IPV6}[inside]
    with balancing(topology, outside=outside) as balancer, captured(topology) as seen:
        ask(vip, 50_000)
        ask_by_datagram(vip)
        sent = balancer.counters().verdicts["tx"]
        assert sent > 30
        seen.read_until(protocol, outside, sent)
    assert set(seen.tags) == {BACKENDS}, seen.tags


def wait_for_the_trunk(balancer: LoadBalancer) -> None:
    """Until packets leave by it: before the kernel knows the next hop they are handed to it."""

    def way() -> tuple[int | None, str | None]:
        trace = balancer.trace(f"198.51.100.2:4000 -> {VIPS[0]}:{PORT} tcp")
        return trace.vlan, trace.egress

    wait_until(lambda: way() == (BACKENDS, DEVICE), seconds=60, what="the way by the trunk")


def test_vlan_devices_are_found(topology: Topology) -> None:
    """By both ways: which device a tag means, and which tag a device has."""
    with balancing(topology) as balancer:
        maps = balancer._balancer._program.maps
        index = {
            name: device_index(name)
            for name in (DEVICE, f"{DEVICE}.{CLIENTS}", f"{DEVICE}.{BACKENDS}")
        }
        by_tag = {
            (int(key["ifindex"]), int(key["vid"])): int(value)
            for key, value in maps["vlan_devices"].items()
        }
        assert by_tag == {
            (index[DEVICE], vid): index[f"{DEVICE}.{vid}"] for vid in (CLIENTS, BACKENDS)
        }
        wait_for_the_trunk(balancer)


@pytest.mark.parametrize(("inside", "outside"), COMBINATIONS)
def test_a_vlan_device_that_is_made_again_is_followed(
    topology: Topology, inside: int, outside: int
) -> None:
    """It has another index then; packets have its tag again at once, and it forwards."""
    (vip,) = (each for each in VIPS if each.version == inside)
    protocol = {4: socket.IPPROTO_IPIP, 6: socket.IPPROTO_IPV6}[inside]
    name = f"{DEVICE}.{BACKENDS}"
    with balancing(topology, outside=outside) as balancer:
        with in_netns(BALANCER):
            before = device_index(name)
        ip(BALANCER, f"link delete {name}")
        assert balancer.follow() == ()
        ip(
            BALANCER,
            f"link add {name} link {DEVICE} type vlan id {BACKENDS}",
            f"link set {name} up",
        )
        join_backends(topology)
        assert balancer.follow() == ()
        with in_netns(BALANCER):
            assert device_index(name) != before
        with captured(topology) as seen:
            already = balancer.counters().verdicts["tx"]
            ask(vip, 50_000)
            ask_by_datagram(vip)
            sent = balancer.counters().verdicts["tx"] - already
            assert sent > 30
            seen.read_until(protocol, outside, sent)
        assert set(seen.tags) == {BACKENDS}, seen.tags
        wait_for_the_trunk(balancer)


def test_a_vlan_device_of_clients_that_is_made_later_forwards(topology: Topology) -> None:
    """Packets come in by it from then on, as far as the FIB is concerned; and then no more."""
    name = f"{DEVICE}.77"
    with balancing(topology) as balancer:
        ip(BALANCER, f"link add {name} link {DEVICE} type vlan id 77")
        assert balancer.follow() == ()
        with in_netns(BALANCER):
            assert sysctl.FORWARDING["ipv4"].read(name) == "1"
            index = device_index(name)
        maps = balancer._balancer._program.maps
        assert index in {int(value) for _, value in maps["vlan_devices"].items()}
        ip(BALANCER, f"link delete {name}")
        assert balancer.follow() == ()
        assert index not in {int(value) for _, value in maps["vlan_devices"].items()}
        assert index not in {int(key) for key, _ in maps["egress_devices"].items()}


class Seen:
    """Encapsulated packets that came to the router's end of the trunk, by tag."""

    def __init__(self, capture: socket.socket) -> None:
        self._capture = capture
        self.tags: Counter[int | None] = Counter()

    def read_until(self, protocol: int, outside: int, count: int) -> None:
        """Return when so many tunnel packets were seen. AssertionError in time if not."""
        wait_until(
            lambda: self._read(protocol, outside) >= count, seconds=120, what=f"{count} packets"
        )

    def _read(self, protocol: int, outside: int) -> int:
        while (read := self._next()) is not None:
            packet, tag = read
            if packet[:1] == (b"\x45" if outside == 4 else b"\x60") and (
                packet[9 if outside == 4 else 6] == protocol
            ):
                self.tags[tag] += 1
        return self.tags.total()

    def _next(self) -> tuple[bytes, int | None] | None:
        try:
            frame, ancillary, _, sender = self._capture.recvmsg(128, 256)
        except BlockingIOError:
            return None
        if sender[2] == socket.PACKET_OUTGOING:
            return b"\0" * 40, None
        (data,) = (each for level, kind, each in ancillary if (level, kind) == _AUXILIARY)
        status, _, _, _, _, tag, _ = _AUXDATA.unpack(data)
        return frame[14:], tag & 0xFFF if status & _VLAN_VALID else None


@contextmanager
def captured(topology: Topology) -> Iterator[Seen]:
    """Capture what comes to the router's end of the trunk, with the tags."""
    with in_netns(ROUTER):
        capture = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    with capture:
        capture.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 23)
        capture.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
        with in_netns(ROUTER):
            capture.bind((topology.balancer.port, 3))
        capture.setblocking(False)  # noqa: FBT003 -- its only argument
        yield Seen(capture)
