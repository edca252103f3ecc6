# SPDX-License-Identifier: Apache-2.0
"""A load balancer with many links: clients come in by any of three, backends are behind others.

The FIB decides which way each packet leaves. Real devices, real resolution, real packets.
"""

from __future__ import annotations

import os
import select
import socket
import subprocess
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING, Any

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from towpath import LoadBalancer
from towpath.kernel.bpf.links import attach_xdp
from towpath.kernel.bpf.object import BpfObject
from towpath.kernel.net.netns import in_netns, new_netns
from towpath.lab.waiting import wait_until
from towpath.model import Limits, Snat

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from towpath.model import Address

CLIENTS, BACKENDS = ("tpmc0", "tpmc1", "tpmc2"), ("tpmb0", "tpmb1", "tpmb2")
BITS = {4: 24, 6: 64}
VIP: dict[int, Address] = {4: IPv4Address("203.0.113.10"), 6: IPv6Address("2001:db8:113::10")}
OURS: dict[int, Address] = {4: IPv4Address("203.0.113.200"), 6: IPv6Address("2001:db8:113::200")}
SMALL = Limits(services=4, backends=16, flows=4096, table_slots=4096, nat_flows=4096)
PORT = 80
FLOWS = 24
EVERYTHING = 3  # ETH_P_ALL
BOTH = pytest.mark.parametrize("version", [4, 6])


def subnet(version: int, device: str, host: int) -> Address:
    """The address of a host on a device's link."""
    number = (*CLIENTS, *BACKENDS).index(device) + 1
    texts = {4: f"198.18.{number}.{host}", 6: f"2001:db8:{number}::{host:x}"}
    return ip_address(texts[version])


def far(version: int) -> Address:
    """The backend behind a gateway, on the last link."""
    return ip_address({4: "198.19.0.9", 6: "2001:db8:19::9"}[version])


@dataclass
class Wires:
    """The node, and the hosts at the other ends of its devices, each in a namespace."""

    node: int
    ends: dict[str, int] = field(default_factory=dict)
    macs: dict[str, str] = field(default_factory=dict)
    heard: dict[str, socket.socket] = field(default_factory=dict)
    """What comes to each end, frame by frame."""

    def send(self, device: str, packet: Any) -> None:
        """Have a host send a packet to the node."""
        self.heard[device].send(bytes(Ether(dst=self.macs[device]) / packet))

    def come(self, wanted: Callable[[Any], bool], count: int) -> dict[str, list[Any]]:
        """So many packets that are wanted, by the device that they went out of."""
        found: dict[str, list[Any]] = {device: [] for device in self.ends}
        by_socket = {each: device for device, each in self.heard.items()}
        while sum(map(len, found.values())) < count:
            readable, _, _ = select.select(list(by_socket), [], [], 30)
            assert readable, f"only these came: { {k: len(v) for k, v in found.items()} }"
            for each in readable:
                frame, (_, _, kind, *_) = each.recvfrom(65536)
                packet = Ether(frame)
                if kind != socket.PACKET_OUTGOING and wanted(packet):
                    found[by_socket[each]].append(packet)
        return {device: packets for device, packets in found.items() if packets}


@pytest.fixture
def wires() -> Iterator[Wires]:
    """Six links; the node doesn't forward by itself."""
    with ExitStack() as undo:
        ends = {name: undo.enter_context(new_netns()) for name in (*CLIENTS, *BACKENDS)}
        made = Wires(undo.enter_context(new_netns()), ends)
        run("link set lo up")
        for name, end in ends.items():
            undo.enter_context(wire(made, name, end))
        for version in BITS:
            gateway = subnet(version, BACKENDS[2], 9)
            run(f"route add {far(version)} via {gateway} dev {BACKENDS[2]}")
        yield made


@contextmanager
def wire(made: Wires, name: str, end: int) -> Iterator[None]:
    """One link, with a host at its end that takes what is redirected to it by XDP."""
    run(f"link add {name} type veth peer name wire netns /proc/{os.getpid()}/fd/{end}")
    run(f"link set {name} up")
    for version, bits in BITS.items():
        run(f"addr add {subnet(version, name, 1)}/{bits} dev {name} {'nodad' * (version == 6)}")
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind((name, 0))
        made.macs[name] = raw.getsockname()[4].hex(":")
    with ExitStack() as undo:
        with in_netns(end):
            run("link set wire up")
            for version, bits in BITS.items():
                host = subnet(version, name, 9)
                run(f"addr add {host}/{bits} dev wire {'nodad' * (version == 6)}")
            obj = undo.enter_context(BpfObject.packaged("lab_pass"))
            obj.load()
            undo.enter_context(
                attach_xdp(obj.programs["pass"], socket.if_nametoindex("wire"), "native")
            )
            heard = undo.enter_context(
                socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(EVERYTHING))
            )
            heard.bind(("wire", EVERYTHING))
        made.heard[name] = heard
        yield


def run(command: str) -> None:
    """Run iproute2."""
    subprocess.run(["ip", *command.split()], check=True, capture_output=True, timeout=30)


def datagram(version: int, device: str, sport: int) -> Any:
    """Of a client on a link to the VIP."""
    layer = IP if version == 4 else IPv6
    header = layer(src=str(subnet(version, device, 9)), dst=str(VIP[version]))
    return header / UDP(sport=sport, dport=PORT) / Raw(b"towpath")


@contextmanager
def balancing(version: int, **options: Any) -> Iterator[LoadBalancer]:
    """On all devices, with a backend on each of two links and one behind a gateway."""
    forwarding = options.pop("forwarding", "dsr")
    backends = [subnet(version, BACKENDS[0], 9), subnet(version, BACKENDS[1], 9), far(version)]
    with LoadBalancer(*CLIENTS, *BACKENDS, limits=SMALL, **options) as balancer:
        balancer.add_service(
            "web",
            vip=VIP[version],
            port=PORT,
            protocol="udp",
            backends=backends,
            table_size=251,
            forwarding=forwarding,
        )
        wait_until(
            lambda: resolved(balancer), seconds=60, what="next hops to be resolved on three links"
        )
        yield balancer


def resolved(balancer: LoadBalancer) -> bool:
    """Whether there is a next hop on each of the backends' links, with a MAC address."""
    found = balancer.next_hops().next_hops
    return {each.device for each in found if each.mac} == set(BACKENDS)


def is_tunnel(version: int) -> Callable[[Any], bool]:
    """What says whether a frame is of a tunnel with our packets."""
    layer, inner = (IP, 4) if version == 4 else (IPv6, 41)
    return lambda p: layer in p and (p[layer].proto if version == 4 else p[layer].nh) == inner


@BOTH
def test_clients_of_any_link_get_to_backends_of_others(wires: Wires, version: int) -> None:
    """Each packet leaves by the device that leads to its backend, and by no other."""
    leads = {
        str(subnet(version, BACKENDS[0], 9)): BACKENDS[0],
        str(subnet(version, BACKENDS[1], 9)): BACKENDS[1],
        str(far(version)): BACKENDS[2],
    }
    with balancing(version) as balancer:
        sent = {}
        for device in CLIENTS:
            for sport in range(2000, 2000 + FLOWS):
                packet = datagram(version, device, sport)
                sent[device, sport] = packet
                wires.send(device, packet)
        came = wires.come(is_tunnel(version), len(sent))
        assert set(came) == set(BACKENDS)
        inner = set()
        layer = IP if version == 4 else IPv6
        for device, packets in came.items():
            for packet in packets:
                outer = packet[layer]
                assert leads[outer.dst] == device
                assert outer.src == str(subnet(version, device, 1))
                inner.add(bytes(outer.payload))
        assert inner == {bytes(each) for each in sent.values()}
        counted = balancer.counters().verdicts
        assert (counted["redirect"], counted["tx"]) == (len(sent), 0)
        assert not {name: n for name, n in counted.items() if n and name.startswith("drop")}


@BOTH
def test_a_backend_that_moves_to_another_link_is_followed(wires: Wires, version: int) -> None:
    """By its route alone, in the midst of traffic: what is sent after it leaves by the new one."""
    wanted = is_tunnel(version)
    layer = IP if version == 4 else IPv6
    with balancing(version) as balancer:
        balancer.set_backends("web", [far(version)], force=True)
        wires.send(CLIENTS[0], datagram(version, CLIENTS[0], 2000))
        assert set(wires.come(wanted, 1)) == {BACKENDS[2]}
        gateway = subnet(version, BACKENDS[0], 9)
        run(f"-{version} route replace {far(version)} via {gateway} dev {BACKENDS[0]}")
        wait_until(
            lambda: {h.device for h in balancer.next_hops().next_hops if h.mac} == {BACKENDS[0]},
            seconds=60,
            what="the new next hop",
        )
        for sport in range(3000, 3000 + FLOWS):
            wires.send(CLIENTS[1], datagram(version, CLIENTS[1], sport))
        came = wires.come(wanted, FLOWS)
        assert set(came) == {BACKENDS[0]}
        assert {p[layer].dst for p in came[BACKENDS[0]]} == {str(far(version))}


@BOTH
def test_translated_packets_find_their_way_there_and_back(wires: Wires, version: int) -> None:
    """Answers that come in by a backend's link go back to the client's."""
    snat = Snat(ipv4=(OURS[4],)) if version == 4 else Snat(ipv6=(OURS[6],))  # type: ignore[arg-type]
    layer = IP if version == 4 else IPv6
    with balancing(version, forwarding="snat", snat=snat):
        for device in CLIENTS:
            for sport in range(2000, 2000 + FLOWS):
                wires.send(device, datagram(version, device, sport))
        there = wires.come(lambda p: UDP in p and p[layer].src == str(OURS[version]), 3 * FLOWS)
        assert set(there) == set(BACKENDS)
        for device, packets in there.items():
            for packet in packets:
                ports = UDP(sport=packet[UDP].dport, dport=packet[UDP].sport)
                answer = (
                    layer(src=packet[layer].dst, dst=packet[layer].src) / ports / Raw(b"answer")
                )
                wires.send(device, answer)
        back = wires.come(lambda p: UDP in p and p[layer].src == str(VIP[version]), 3 * FLOWS)
        assert {device: len(packets) for device, packets in back.items()} == dict.fromkeys(
            CLIENTS, FLOWS
        )
        for device, packets in back.items():
            assert {p[layer].dst for p in packets} == {str(subnet(version, device, 9))}
            assert sorted(p[UDP].dport for p in packets) == list(range(2000, 2000 + FLOWS))
