# SPDX-License-Identifier: Apache-2.0
"""The lab's network with backends whose decapsulation is the kernel's own.

A client, a router, the load balancer and backends, as `towpath lab` has them. What joins the router
and the load balancer is exchanged for other things: a VLAN trunk, a bond, virtio_net.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import socketserver
import subprocess
import threading
from contextlib import ExitStack, contextmanager
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Any

from towpath import LoadBalancer
from towpath.kernel.bpf.fragments import taking_fragments
from towpath.kernel.bpf.links import attach_xdp, xdp_mode
from towpath.kernel.bpf.object import BpfObject
from towpath.kernel.net.interfaces import device_index
from towpath.kernel.net.netns import in_netns
from towpath.lab import namespaces
from towpath.lab.network import build
from towpath.lab.topology import (
    BALANCER,
    CLIENT,
    DEVICE,
    ROUTER,
    VIP4,
    VIP4_NETWORK,
    VIP6,
    VIP6_NETWORK,
    Topology,
)
from towpath.model import Backend, Device, Limits, Protocol, Service

if TYPE_CHECKING:
    from collections.abc import Iterator

Address = IPv4Address | IPv6Address

SMALL = Limits(services=8, backends=32, flows=4096, table_slots=8192)
PORT = 7777
TIMEOUT = 60.0  # seconds, for what takes a few at most
TIMES = 4  # as much is answered as was asked
VIPS: tuple[Address, ...] = (VIP4, VIP6)
TUNNEL4, TUNNEL6 = "tpipip", "tpip6tnl"
COMBINATIONS = [(4, 4), (6, 6), (4, 6)]  # what is inside, what is outside


def ip(namespace: str, *commands: str) -> None:
    """Run commands of ip in a namespace, all in one process."""
    run(namespace, ["ip", "-batch", "-"], "\n".join(commands))


def run(namespace: str, command: list[str], given: str = "") -> str:
    """Run a command in a namespace; its output. AssertionError with its words if it fails."""
    done = namespaces.run(
        namespace, command, input=given, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert done.returncode == 0, f"{command} {given}: {done.stdout}"
    return str(done.stdout)


@contextmanager
def network(backends: int = 1, *, tunnels: bool = True) -> Iterator[Topology]:
    """The lab's network, with a server on every backend behind tunnel devices of the kernel.

    Without ``tunnels`` the test has to unwrap what comes there.
    """
    topology = Topology(backends)
    with ExitStack() as undo:
        for name in topology.namespaces:
            undo.callback(namespaces.remove, name)
        build(topology)
        for link in topology.backend_links:
            if tunnels:
                _decapsulate(link.node, link.node4[0].ip, link.node6[0].ip)
            undo.enter_context(_serving(link.node))
        yield topology


def _decapsulate(node: str, ipv4: IPv4Address, ipv6: IPv6Address) -> None:
    """Unwrap what comes to these addresses, from anyone."""
    ip(
        node,
        f"link add {TUNNEL4} type ipip local {ipv4}",
        f"link add {TUNNEL6} type ip6tnl mode any local {ipv6}",
        f"link set {TUNNEL4} up",
        f"link set {TUNNEL6} up",
    )


def rejoin(topology: Topology, of_router: str, of_balancer: str) -> None:
    """Give devices the addresses and routes of those that joined router and load balancer."""
    link = topology.balancer
    ip(
        ROUTER,
        *(f"address add {each} dev {of_router}" for each in link.of_router),
        f"link set {of_router} up",
        f"route add {VIP4_NETWORK} via {link.node4[0].ip}",
        f"route add {VIP6_NETWORK} via {link.node6[0].ip}",
    )
    ip(
        BALANCER,
        *(f"address add {each} dev {of_balancer}" for each in link.of_node),
        f"link set {of_balancer} up",
        f"route add default via {link.router4.ip}",
        f"route add default via {link.router6.ip}",
    )


@contextmanager
def passing(*devices: str) -> Iterator[None]:
    """Let the router's devices take what XDP sends them: that needs a program on veth."""
    with in_netns(ROUTER), ExitStack() as undo:
        program = undo.enter_context(taking_fragments(BpfObject.packaged("lab_pass")))
        program.load()
        for device in devices:
            link = attach_xdp(program.programs["pass"], device_index(device), "native")
            undo.enter_context(link)
        yield


@contextmanager
def balancing(
    topology: Topology, device: str = DEVICE, outside: int = 0, **options: Any
) -> Iterator[LoadBalancer]:
    """A load balancer in native mode on its node, for all services over ``outside``.

    0: IPv4 over IPv4 and IPv6 over IPv6. ``options``: what else a service has.
    """
    with in_netns(BALANCER), LoadBalancer(Device(device, "native"), limits=SMALL) as balancer:
        assert xdp_mode(device_index(device)) == "native"
        balancer.apply(services(topology, outside, **options))
        yield balancer


def services(topology: Topology, outside: int = 0, **options: Any) -> list[Service]:
    """TCP and UDP on both VIPs, as far as ``outside`` can carry them."""
    return [
        Service(
            f"{protocol}{vip.version}",
            vip,
            PORT,
            protocol,
            tuple(map(Backend, addresses(topology, outside or vip.version))),
            table_size=251,
            **options,
        )
        for vip in VIPS
        for protocol in Protocol
        if (vip.version, outside) != (6, 4)
    ]


def addresses(topology: Topology, version: int) -> list[Address]:
    """The backends' addresses of a family."""
    return [(link.node4 if version == 4 else link.node6)[0].ip for link in topology.backend_links]


# ---- The kernel's tunnel devices ---------------------------------------------------------------


def received(node: str, device: str) -> tuple[int, int]:
    """How many packets a device has received, and how many of them with errors."""
    (shown,) = json.loads(run(node, ["ip", "-j", "-s", "link", "show", device]))
    counted = shown["stats64"]["rx"]
    return counted["packets"], counted["errors"] + counted["dropped"]


def sent_to(balancer: LoadBalancer, address: Address) -> int:
    """Packets that the load balancer has sent to a backend, whichever service they were for."""
    services = balancer.counters().services
    backends = (backend for each in services for backend in each.backends)
    return sum(backend.packets for backend in backends if backend.address == address)


# ---- Servers and clients -----------------------------------------------------------------------


class Stream(socketserver.BaseRequestHandler):
    """Answer all that was asked, several times over."""

    request: socket.socket

    def handle(self) -> None:
        """One connection."""
        self.request.settimeout(TIMEOUT)
        self.request.sendall(_read_all(self.request) * TIMES)


class _Datagrams(socketserver.BaseRequestHandler):
    """Answer each as it came."""

    def handle(self) -> None:
        """One datagram."""
        data, answering = self.request
        answering.sendto(data, self.client_address)


class _Tcp4(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 64


class _Udp4(socketserver.UDPServer):
    pass


class Tcp6(_Tcp4):
    """And IPv4, if for all addresses."""

    address_family = socket.AF_INET6


class _Udp6(_Udp4):
    address_family = socket.AF_INET6


@contextmanager
def _serving(node: str) -> Iterator[None]:
    """TCP and UDP on both VIPs, which the node has on its loopback."""
    with ExitStack() as undo:
        for tcp, udp, vip in ((_Tcp4, _Udp4, VIP4), (Tcp6, _Udp6, VIP6)):
            for kind, handler in ((tcp, Stream), (udp, _Datagrams)):
                with in_netns(node):
                    server = undo.enter_context(kind((str(vip), PORT), handler))
                thread = threading.Thread(target=server.serve_forever, args=(0.1,))
                thread.start()
                undo.callback(thread.join)
                undo.callback(server.shutdown)
        yield


def ask(vip: Address, size: int) -> None:
    """Send so many random bytes by TCP from the client; the answer has to be the right one."""
    question = os.urandom(size)
    with in_netns(CLIENT):
        connection = socket.create_connection((str(vip), PORT), timeout=TIMEOUT)
    with connection:
        connection.sendall(question)
        connection.shutdown(socket.SHUT_WR)
        answer = _read_all(connection)
    assert hashlib.sha256(answer).digest() == hashlib.sha256(question * TIMES).digest()


def ask_by_datagram(vip: Address, size: int = 1000, *, seconds: float = TIMEOUT) -> None:
    """Send a datagram from a port of its own; the answer has to be the right one.

    TimeoutError: none has come.
    """
    question = os.urandom(size)
    with in_netns(CLIENT):
        client = socket.socket(_family(vip), socket.SOCK_DGRAM)
    with client:
        client.settimeout(seconds)
        client.connect((str(vip), PORT))  # from then on only what comes from the VIP is taken
        client.send(question)
        assert client.recv(2048) == question


def _family(address: Address) -> socket.AddressFamily:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def _read_all(connection: socket.socket) -> bytes:
    chunks = []
    while chunk := connection.recv(65536):
        chunks.append(chunk)
    return b"".join(chunks)
