# SPDX-License-Identifier: Apache-2.0
"""What is lost where a kernel lacks something, and that nothing else is.

Each test finds out by the project's own probes what this kernel has, and then holds what happens
against it: it runs on every kernel, and says something on each.
"""

from __future__ import annotations

import socket
import subprocess
from contextlib import contextmanager
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Raw
from tests.lab.harness_balancer import DEVICE, FLOW, PEER, SMALL, VIP, ip, state

from towpath import LoadBalancer
from towpath.cli.main import cli
from towpath.datapath.balancer import Balancer
from towpath.doctor import doctor
from towpath.kernel.bpf import probe
from towpath.kernel.bpf.links import attach_xdp
from towpath.kernel.bpf.object import BpfObject
from towpath.kernel.bpf.probe_fib import fib_lookup
from towpath.kernel.net import clsact, interfaces
from towpath.kernel.net.interfaces import device_index
from towpath.kernel.net.netns import in_netns, new_netns
from towpath.lab.waiting import wait_until
from towpath.model import Backend, Device, Protocol, Service

if TYPE_CHECKING:
    from collections.abc import Iterator


# The first two are DEVICE's. Of the others one is known and one has to be asked for.
OWN, PREFERRED, BACKEND, BEHIND = "192.0.2.1", "192.0.2.9", "192.0.2.11", "192.0.2.77"
MTU, OUTER, INNER = 1500, 20, 28

IPIP = 4
NETWORK = f"""
link set lo up
address add {OWN}/24 dev {DEVICE}
address add {PREFERRED}/24 dev {DEVICE}
link set {DEVICE} up
neighbour add {BACKEND} lladdr 02:00:00:00:00:11 dev {DEVICE}
"""


@pytest.fixture
def peer() -> Iterator[int]:
    """DEVICE here, with two addresses; PEER in a namespace of its own, which is given."""
    with new_netns() as far:
        ip("link set lo up")
        with new_netns():
            ip(f"link add {DEVICE} type veth peer name {PEER}")
            subprocess.run(
                ["ip", "link", "set", PEER, "netns", f"/proc/self/fd/{far}"],
                check=True,
                pass_fds=[far],
            )
            with in_netns(far):
                ip(f"address add {BEHIND}/24 dev {PEER}\nlink set {PEER} up")
            ip(NETWORK)
            yield far


@contextmanager
def balancing(backend: str) -> Iterator[LoadBalancer]:
    """A load balancer with one service of one backend."""
    with LoadBalancer(DEVICE, limits=SMALL) as balancer:
        service: dict[str, Any] = {"vip": VIP, "port": 80, "table_size": 251, "backends": [backend]}
        balancer.add_service("tcp", protocol="tcp", **service)
        balancer.add_service("udp", protocol="udp", **service)
        yield balancer


class Wire:
    """The other end of the cable: frames in, and what comes back."""

    def __init__(self, far: int) -> None:
        self._mac = interfaces.mac(device_index(DEVICE)).hex(":")
        with in_netns(far):
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
            self._socket.bind((PEER, 3))
        self._socket.setblocking(False)  # noqa: FBT003 -- its only argument
        self.tunnelled: list[IP] = []

    def close(self) -> None:
        """No more."""
        self._socket.close()

    def send(self, payload: int) -> None:
        """A datagram to the VIP with so many bytes in it."""
        packet = IP(src="198.51.100.7", dst=str(VIP)) / UDP(sport=4000, dport=80)
        self._socket.send(bytes(Ether(dst=self._mac) / packet / Raw(bytes(payload))))

    def came(self, count: int = 1) -> bool:
        """Whether so many encapsulated packets have come."""
        while True:
            try:
                frame, sender = self._socket.recvfrom(4096)
            except BlockingIOError:
                return len(self.tunnelled) >= count
            if sender[2] != socket.PACKET_OUTGOING and frame[12:14] == b"\x08\x00":
                packet = IP(frame[14:])
                if packet.proto == IPIP:
                    self.tunnelled.append(packet)


@pytest.fixture
def wire(peer: int) -> Iterator[Wire]:
    """The other end; XDP's packets arrive there."""
    with in_netns(peer), BpfObject.packaged("lab_pass") as passing:
        passing.load()
        link = attach_xdp(passing.programs["pass"], device_index(PEER), "native")
    with link:
        wire = Wire(peer)
        yield wire
        wire.close()


def test_handed_over_packets_reach_a_backend_with_or_without_tcx(wire: Wire) -> None:
    """By a TCX link or by a classic filter: the kernel asks for the neighbour and sends them.

    A LoadBalancer would have had the neighbour resolved before.
    """
    before, index = state(), device_index(DEVICE)
    service = Service("udp", VIP, 80, Protocol.UDP, (Backend(ip_address(BEHIND)),), table_size=251)
    with Balancer([Device(DEVICE)], limits=SMALL) as balancer:
        balancer.apply([service])
        filtered = clsact.attached_id(index)
        loaded = balancer._program.object.programs.values()
        assert (filtered in {program.id for program in loaded}) == (not probe.tcx())
        wire.send(100)
        wait_until(wire.came, seconds=120, what="the packet")
        assert balancer.counters().verdicts["handoff"] == 1
        (packet,) = wire.tunnelled
        assert (packet.dst, packet[IP:2].dst) == (BEHIND, str(VIP))
    assert state() == before
    assert "clsact" not in _output("tc", "qdisc", "show", "dev", DEVICE)


def test_packets_larger_than_the_mtu_are_dropped_by_someone(wire: Wire) -> None:
    """By the program, which tells their sender, where it is told the MTU; else by the device."""
    fits = MTU - OUTER - INNER
    with balancing(BACKEND) as balancer:
        wire.send(fits)
        wait_until(wire.came, seconds=120, what="the packet that fits")
        # What is more than the MTU by less than a VLAN tag, veth takes.
        wire.send(fits + 8)
        wire.send(fits - 1)
        wait_until(lambda: wire.came(2), seconds=120, what="the packet after it")
        verdicts = balancer.counters().verdicts
    assert [packet.len for packet in wire.tunnelled] == [MTU, MTU - 1]
    told = fib_lookup().mtu
    assert (verdicts["tx"], verdicts["tx_too_big"]) == ((2, 1) if told else (3, 0))


@pytest.mark.usefixtures("wire")
def test_the_source_is_what_the_route_prefers() -> None:
    """Where the look-up doesn't tell, the kernel is asked beforehand."""
    ip(f"route add 10.9.0.1/32 via {BACKEND} dev {DEVICE} src {PREFERRED}")
    with balancing("10.9.0.1") as balancer:
        trace = balancer.trace(FLOW)
    assert (trace.verdict, str(trace.outer_source)) == ("tx", PREFERRED)


@pytest.mark.usefixtures("peer")
def test_the_doctor_tells_of_managed_neighbours_what_the_kernel_does() -> None:
    """Older kernels take the request and ignore it: only reading back tells."""
    (found,) = (each for each in doctor() if each.name == "managed neighbours")
    ip(f"neighbour add 192.0.2.55 dev {DEVICE} managed")
    kept = "managed" in _output("ip", "neighbour", "show", "192.0.2.55", "dev", DEVICE)
    assert found.state == ("available" if kept else "missing")
    assert (found.loses == "") == kept


def test_benchmarks_need_a_kernel_that_is_told_the_device() -> None:
    """Where there is none the command says what it needs."""
    command = ["bench", "lb", "--runs", "1", "--scenario", "pass-v4-no-vip"]
    result = CliRunner().invoke(cli, command)
    assert result.exit_code == (0 if probe.test_run_context() else 1)
    assert ("Linux 5.15 and newer do" in result.output) == (not probe.test_run_context())


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
