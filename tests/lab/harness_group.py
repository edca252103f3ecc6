# SPDX-License-Identifier: Apache-2.0
"""Two load balancers of a group in the lab, between which the router shares flows out.

It does so as ECMP routers do, by the hash of a packet's own addresses and ports. ICMP errors have
none: where those go is the test's to say.
"""

from __future__ import annotations

import select
import socket
import struct
import subprocess
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from typing import TYPE_CHECKING, Any, Self

from pyroute2 import IPRoute
from tests.lab.harness_transfer import BLOCK, FAMILIES, PORT, TIMEOUT, connected

from towpath import LoadBalancer
from towpath.kernel.bpf.links import attach_xdp
from towpath.kernel.bpf.object import BpfObject
from towpath.kernel.net.interfaces import device_index
from towpath.kernel.net.netns import in_netns
from towpath.lab import namespaces, network
from towpath.lab.topology import (
    BALANCER,
    CLIENT,
    CORE_MTU,
    DEVICE,
    ROUTER,
    VIP4,
    VIP4_NETWORK,
    VIP6,
    VIP6_NETWORK,
    Link,
)
from towpath.model import Limits

if TYPE_CHECKING:
    from collections.abc import Iterator

    from towpath.lab import Lab
    from towpath.lab.traffic import Address

SECOND = "tp-lb2"
GROUP = (BALANCER, SECOND)
KEEPING = PORT + 1  # of the service with affinity
VIPS: dict[int, Address] = {4: VIP4, 6: VIP6}
LIMITS = Limits(services=8, backends=32, flows=4096, table_slots=8192, clients=1024)
ICMP = {4: socket.IPPROTO_ICMP, 6: socket.IPPROTO_ICMPV6}
_NETWORKS = {4: VIP4_NETWORK, 6: VIP6_NETWORK}
_ICMP = {4: 1, 6: 58}  # by number: names need an /etc/protocols
_ICMP_TABLE = "100"
_SECOND_LINK = Link(
    SECOND, "lb2", IPv4Network("192.0.2.252/30"), IPv6Network("2001:db8:2:63::/64"), CORE_MTU
)
_ANY_HASH = {
    # By ports too, as routers in front of such groups do.
    "net/ipv4/fib_multipath_hash_policy": "1",
    "net/ipv6/fib_multipath_hash_policy": "1",
}
_UNLIMITED = {"net/ipv4/icmp_ratelimit": "0", "net/ipv6/icmp/ratelimit": "0"}


def ip(where: str, *words: object) -> None:
    """Run the ip tool in a namespace."""
    subprocess.run(["ip", "-n", where, *map(str, words)], check=True)


class Group:
    """The load balancers by their namespaces, and the router's routes to them."""

    def __init__(self, lab: Lab, members: dict[str, LoadBalancer]) -> None:
        self.lab = lab
        self.members = members

    def share(self, *names: str) -> None:
        """Have packets for the VIPs go to these, as the router likes; to all if none is named."""
        for version, vips in _NETWORKS.items():
            hops = (f"nexthop via {gateway(self.lab, each, version)}" for each in names or GROUP)
            ip(ROUTER, f"-{version}", "route", "replace", vips, *" ".join(hops).split())

    def icmp_to(self, name: str) -> None:
        """Have ICMP for the VIPs go to one of them, whoever has the flow that it is about."""
        for version, vips in _NETWORKS.items():
            via = gateway(self.lab, name, version)
            ip(ROUTER, f"-{version}", "route", "replace", vips, "via", via, "table", _ICMP_TABLE)

    def packets(self, service: str) -> dict[str, int]:
        """How many packets of a service each of them has had."""
        return {
            name: self._counted(each, service, "packets") for name, each in self.members.items()
        }

    def flows(self, service: str) -> dict[str, int]:
        """How many new flows."""
        return {name: self._counted(each, service, "flows") for name, each in self.members.items()}

    @staticmethod
    def _counted(balancer: LoadBalancer, service: str, unit: str) -> int:
        return int(getattr(balancer.counters().service(service), unit))

    def verdicts(self) -> dict[str, dict[str, int]]:
        """What has been counted by each, without what is for the kernel."""
        return {
            name: {
                verdict: packets
                for verdict, packets in each.counters().verdicts.items()
                if packets and not verdict.startswith("pass")
            }
            for name, each in self.members.items()
        }


def gateway(lab: Lab, name: str, version: int) -> Address:
    """A load balancer's address on its link with the router."""
    link = lab.topology.balancer if name == BALANCER else _SECOND_LINK
    return (link.node4 if version == 4 else link.node6)[0].ip


def other(name: str) -> str:
    """The other one of the group."""
    return GROUP[1 - GROUP.index(name)]


@contextmanager
def group(lab: Lab) -> Iterator[Group]:
    """The group in the block, with services for streams and datagrams of both VIPs."""
    with ExitStack() as undo:
        _join_second(undo)
        network._set_sysctls(ROUTER, _ANY_HASH | _UNLIMITED)
        network._set_sysctls(CLIENT, _UNLIMITED)
        members: dict[str, LoadBalancer] = {}
        for name in GROUP:
            with in_netns(name):
                members[name] = undo.enter_context(LoadBalancer(DEVICE, limits=LIMITS))
        made = Group(lab, members)
        for name, reverse in zip(GROUP, (False, True), strict=True):
            for service in services(lab, reverse=reverse):
                members[name].add_service(**service)
        made.icmp_to(BALANCER)
        for version, protocol in _ICMP.items():
            ip(ROUTER, f"-{version}", "rule", "add", "ipproto", protocol, "lookup", _ICMP_TABLE)
        made.share()
        yield made


def _join_second(undo: ExitStack) -> None:
    """Connect one more load balancer with the router."""
    namespaces.create(SECOND)
    undo.callback(namespaces.remove, SECOND)
    network._set_sysctls(SECOND, network.EVERYWHERE | network.FORWARDING)
    with IPRoute(netns=ROUTER) as router:
        network._connect(router, _SECOND_LINK)
    with in_netns(ROUTER):
        program = undo.enter_context(BpfObject.packaged("lab_pass"))
        program.load()
        index = device_index(_SECOND_LINK.port)
        undo.enter_context(attach_xdp(program.programs["pass"], index, "native"))


def services(lab: Lab, *, reverse: bool) -> list[dict[str, Any]]:
    """All services; each load balancer is told of the backends in an order of its own."""
    links = lab.topology.backend_links[:: -1 if reverse else 1]
    made = []
    for version, vip in VIPS.items():
        common = {
            "vip": vip,
            "backends": [(each.node4 if version == 4 else each.node6)[0].ip for each in links],
            "table_size": 251,
        }
        made += [
            common | {"name": f"tcp{version}", "port": PORT},
            common | {"name": f"udp{version}", "port": PORT, "protocol": "udp"},
            common
            | {"name": f"keeping{version}", "port": KEEPING, "protocol": "udp"}
            | {"affinity": "10m"},
        ]
    return made


class Stream:
    """A client's connection to the VIP."""

    def __init__(self, version: int) -> None:
        self._socket = connected(VIPS[version])
        self._file = self._socket.makefile("rb")
        self.name = self.get(0)

    def get(self, size: int) -> str:
        """Fetch so many bytes, each of them right; who sent them."""
        self._socket.sendall(b"GET %d\n" % size)
        name = self._file.readline().decode().strip()
        for _ in range(size // len(BLOCK)):
            assert self._file.read(len(BLOCK)) == BLOCK
        return name

    @property
    def client(self) -> str:
        """The client's address."""
        return str(self._socket.getsockname()[0])

    def close(self) -> None:
        """End it."""
        self._file.close()
        self._socket.close()


@dataclass(frozen=True)
class Told:
    """An ICMP error that a socket has been told of."""

    type: int
    code: int
    mtu: int


@dataclass
class Ends:
    """Sockets of the backends at one VIP and port, for datagrams and for ICMP to the VIP."""

    lab: Lab
    vip: Address
    port: int
    datagrams: dict[str, socket.socket] = field(default_factory=dict)
    errors: dict[str, socket.socket] = field(default_factory=dict)

    def __enter__(self) -> Self:
        family = FAMILIES[self.vip.version]
        for link in self.lab.topology.backend_links:
            with in_netns(link.node):
                server = socket.socket(family, socket.SOCK_DGRAM)
                watch = socket.socket(family, socket.SOCK_RAW, ICMP[self.vip.version])
            self.datagrams[link.port], self.errors[link.port] = server, watch
            server.bind((str(self.vip), self.port))
            server.setsockopt(*_RECVERR[self.vip.version], 1)
            watch.setblocking(False)  # noqa: FBT003 -- its only argument
        return self

    def __exit__(self, *_: object) -> None:
        for each in (*self.datagrams.values(), *self.errors.values()):
            each.close()

    def receive(self) -> tuple[str, bytes, tuple[Any, ...]]:
        """Who gets the next datagram, what it is and from whom."""
        readable, _, _ = select.select(list(self.datagrams.values()), [], [], TIMEOUT)
        (name,) = (name for name, each in self.datagrams.items() if each in readable)
        data, sender = self.datagrams[name].recvfrom(1 << 16)
        return name, data, sender

    def told(self, name: str) -> Told:
        """The error that a backend's socket is told of next."""
        poll = select.poll()
        poll.register(self.datagrams[name], 0)  # errors only
        assert poll.poll(TIMEOUT * 1000), "no error came"
        _, ancillary, _, _ = self.datagrams[name].recvmsg(100, 512, socket.MSG_ERRQUEUE)
        ((_, _, data),) = ancillary
        _, _, kind, code, _, info, _ = struct.unpack_from("=IBBBBII", data)
        return Told(kind, code, info)

    def errors_of(self, name: str) -> int:
        """How many ICMP errors have come to a backend since the last time."""
        kinds = {4: (3, 11, 12), 6: (1, 2, 3, 4)}[self.vip.version]
        at = 20 if self.vip.version == 4 else 0
        found = 0
        while True:
            try:
                found += self.errors[name].recv(2048)[at] in kinds
            except BlockingIOError:
                return found


# <linux/in.h>, <linux/in6.h>: IP_RECVERR, IPV6_RECVERR, IP_MTU_DISCOVER, IPV6_MTU_DISCOVER.
_RECVERR = {4: (socket.IPPROTO_IP, 11), 6: (socket.IPPROTO_IPV6, 25)}
MTU_DISCOVER = {4: (socket.IPPROTO_IP, 10), 6: (socket.IPPROTO_IPV6, 23)}
HOPS = {
    4: (socket.IPPROTO_IP, socket.IP_TTL),
    6: (socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS),
}
DISCOVER_DO = 2


@contextmanager
def datagram_client(version: int, port: int = PORT, source: str = "") -> Iterator[socket.socket]:
    """A client's socket for datagrams to the VIP."""
    with in_netns(CLIENT), socket.socket(FAMILIES[version], socket.SOCK_DGRAM) as made:
        made.settimeout(TIMEOUT)
        if source:
            made.bind((source, 0))
        made.connect((str(VIPS[version]), port))
        yield made
