# SPDX-License-Identifier: Apache-2.0
"""One link with load balancers, backends and clients on it, as forwarding l2 wants it.

A switch (a bridge in a namespace of its own) and hosts on its ports. Backends have the VIPs on
their loopback and don't answer for them on the link; the first load balancer does.
"""

from __future__ import annotations

import socket
import subprocess
import threading
from contextlib import ExitStack, contextmanager
from ipaddress import ip_address
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingTCPServer
from typing import TYPE_CHECKING

from towpath import LoadBalancer
from towpath.kernel.bpf.fragments import taking_fragments
from towpath.kernel.bpf.links import attach_xdp
from towpath.kernel.bpf.object import BpfObject
from towpath.kernel.net.netns import in_netns
from towpath.lab.network import SENDERS_OFFLOADS, switch_off
from towpath.model import Limits

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from ipaddress import IPv4Address, IPv6Address

    Address = IPv4Address | IPv6Address

SWITCH, CLIENT = "tpn-switch", "tpn-client"
BALANCERS = ("tpn-lb1", "tpn-lb2")
BACKENDS = ("tpn-be1", "tpn-be2", "tpn-be3")
DEVICE = "eth0"
HOSTS = (CLIENT, *BALANCERS, *BACKENDS)
NETWORKS = {4: "192.0.2.{}/24", 6: "2001:db8:2::{:x}/64"}
VIPS = {4: ip_address("192.0.2.100"), 6: ip_address("2001:db8:2::100")}
CLIENT_ADDRESSES = range(200, 216)
PORT = 7000
TIMEOUT = 60.0  # seconds, for what takes milliseconds
SMALL = Limits(services=8, backends=32, flows=4096, table_slots=1 << 14, clients=1024)


def ip(where: str, *commands: str) -> None:
    """Run commands of the ip tool in a namespace."""
    batch = ["ip", "-n", where, "-batch", "-"]
    subprocess.run(batch, input="\n".join(commands), text=True, check=True)


def own(host: str, version: int) -> Address:
    """A host's address on the link."""
    return ip_address(on_link(HOSTS.index(host) + 1, version).partition("/")[0])


def client_addresses(version: int) -> list[Address]:
    """More addresses of the client's: each is a client."""
    return [ip_address(on_link(n, version).partition("/")[0]) for n in CLIENT_ADDRESSES]


def on_link(number: int, version: int) -> str:
    """A host's address on the link with the link's prefix length, by the host's number."""
    return NETWORKS[version].format(number)


@contextmanager
def lan(vips: Sequence[Address] = tuple(VIPS.values())) -> Iterator[None]:
    """The switch and its hosts, and a server on each backend; gone afterwards."""
    with ExitStack() as undo:
        for name in (SWITCH, *HOSTS):
            subprocess.run(["ip", "netns", "add", name], check=True)
            undo.callback(subprocess.run, ["ip", "netns", "delete", name], check=False)
            with in_netns(name):
                for which in ("all", "default"):
                    Path(f"/proc/sys/net/ipv6/conf/{which}/accept_dad").write_text("0")
                    Path(f"/proc/sys/net/ipv4/conf/{which}/rp_filter").write_text("0")
        ip(SWITCH, "link add br0 type bridge", "link set br0 up")
        for name in HOSTS:
            _plug_in(name)
        for name in BALANCERS:
            undo.enter_context(_polling(name))
        ip(
            CLIENT,
            *(
                f"address add {on_link(n, v)} dev {DEVICE}"
                for v in (4, 6)
                for n in CLIENT_ADDRESSES
            ),
        )
        ip(BALANCERS[0], *(f"address add {vip} dev {DEVICE}" for vip in vips))
        for name in BACKENDS:
            _silent_owner(name, vips)
            undo.enter_context(_server(name))
        yield


def _plug_in(name: str) -> None:
    """Connect a host to the switch."""
    port = name.removeprefix("tpn-")
    peer = f"peer name {DEVICE} netns {name}"
    ip(SWITCH, f"link add {port} type veth {peer}", f"link set {port} master br0 up")
    addresses = [on_link(HOSTS.index(name) + 1, version) for version in (4, 6)]
    ip(
        name,
        "link set lo up",
        f"link set {DEVICE} up",
        *(f"address add {each} dev {DEVICE}" for each in addresses),
    )
    if name == CLIENT:
        # What a device does before a packet is on a wire: see the lab's network.
        switch_off(name, DEVICE, *SENDERS_OFFLOADS)


@contextmanager
def _polling(name: str) -> Iterator[None]:
    """Have the switch take what a load balancer sends by XDP: see ``bpf/lab/pass.bpf.c``."""
    with in_netns(SWITCH), taking_fragments(BpfObject.packaged("lab_pass")) as obj:
        obj.load()
        index = socket.if_nametoindex(name.removeprefix("tpn-"))
        with attach_xdp(obj.programs["pass"], index, "native"):
            yield


def _silent_owner(name: str, vips: Sequence[Address]) -> None:
    """Give a backend the VIPs. On the link it keeps quiet about them: IPv6 does by itself."""
    with in_netns(name):
        Path("/proc/sys/net/ipv4/conf/all/arp_ignore").write_text("1")
        Path("/proc/sys/net/ipv4/conf/all/arp_announce").write_text("2")
    ip(name, *(f"address add {vip} dev lo" for vip in vips))


class _Server(ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 128
    address_family = socket.AF_INET6  # and IPv4 by it
    name = ""


class _Handler(BaseRequestHandler):
    """Reads until the client has sent all, then says who it is, who asked, and how much it was."""

    server: _Server

    def handle(self) -> None:
        received = 0
        while block := self.request.recv(1 << 16):
            received += len(block)
        asked = ip_address(self.client_address[0])
        plain = getattr(asked, "ipv4_mapped", None) or asked
        self.request.sendall(f"{self.server.name} {plain} {received}".encode())


@contextmanager
def _server(name: str) -> Iterator[None]:
    with in_netns(name), _Server(("::", PORT), _Handler) as server:
        server.name = name
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def balancing(*names: str) -> Iterator[list[LoadBalancer]]:
    """A load balancer on each of these hosts."""
    with ExitStack() as stack:
        found = []
        for name in names:
            with in_netns(name):
                found.append(stack.enter_context(LoadBalancer(DEVICE, limits=SMALL)))
        yield found


def ask(vip: Address, source: Address, size: int = 1) -> str:
    """Send so many bytes from one of the client's addresses; returns who has them all."""
    with in_netns(CLIENT):
        connection = socket.create_connection(
            (str(vip), PORT), timeout=TIMEOUT, source_address=(str(source), 0)
        )
    with connection:
        connection.sendall(bytes(size))
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while block := connection.recv(1000):
            answer += block
    backend, asked, received = answer.decode().split()
    assert (ip_address(asked), int(received)) == (source, size)
    return backend
