# SPDX-License-Identifier: Apache-2.0
"""Clients, a balancing node, and two links with peers whose addresses and links can change.

::

    clients [tp-clients] ---- [tp-in] node [tp-a] ---- [tp-peer-a] peers
                                          [tp-b] ---- [tp-peer-b] peers

Addresses are of the prefix set aside for benchmarks (RFC 2544). Namespaces have no names: with the
process, however it ends, all of it is gone.
"""

from __future__ import annotations

import socket
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address, ip_address
from typing import TYPE_CHECKING, Any

from towpath.bench.forward_network import receive_frames, set_sysctls
from towpath.bench.frames import ETHERNET, frame
from towpath.kernel.net import interfaces
from towpath.kernel.net.netns import in_netns, new_netns
from towpath.model.flow import FlowTuple
from towpath.model.service import Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

IN = "tp-in"
LINKS = {"tp-a": "tp-peer-a", "tp-b": "tp-peer-b"}
ON_LINK = IPv4Address("198.19.0.2")
"""A backend on the first link."""
GATEWAYS = {"tp-a": IPv4Address("198.19.0.9"), "tp-b": IPv4Address("198.19.1.9")}
BEHIND = IPv4Address("198.19.128.1")
"""A backend behind the first link's gateway, until its route changes."""
BEHIND_NETWORK = "198.19.128.0/24"
VIP = IPv4Address("203.0.113.10")
PORT = 4000

_NODE = {"tp-a": "198.19.0.1", "tp-b": "198.19.1.1"}
_PACE = 0.001  # seconds between two packets
_SEQUENCE = struct.Struct("!Q")
_FLOW = FlowTuple(ip_address("198.18.0.1"), 2000, VIP, PORT, Protocol.UDP)
_ALL = 0x0003  # ETH_P_ALL
_SYSCTLS = {
    "net/ipv6/conf/all/disable_ipv6": "1",
    "net/ipv6/conf/default/disable_ipv6": "1",
    "net/ipv4/conf/all/rp_filter": "0",
    "net/ipv4/conf/default/rp_filter": "0",
    "net/ipv4/ip_forward": "1",
    # Each address is asked for on the link that it is on.
    "net/ipv4/conf/all/arp_ignore": "1",
    # Says nothing by itself when a MAC address changes.
    "net/ipv4/conf/all/arp_notify": "0",
}


@dataclass
class Network:
    """The node's and the peers' namespaces, as open files."""

    clients: int
    node: int
    peers: int

    def at_node(self, change: Callable[[Any], object]) -> None:
        """Change something at the node by netlink."""
        with in_netns(self.node), interfaces.connected() as netlink:
            change(netlink)

    def at_peers(self, change: Callable[[Any], object]) -> None:
        """Change something at the other ends."""
        with in_netns(self.peers), interfaces.connected() as netlink:
            change(netlink)

    def set_link(self, peer: str, **fields: Any) -> None:
        """Change the other end of a link, such as its ``state`` or its ``address``."""
        with in_netns(self.peers):
            index = interfaces.device_index(peer)
        self.at_peers(lambda netlink: netlink.link("set", index=index, **fields))

    def mac(self, peer: str) -> bytes:
        """The MAC address that the other end of a link has now."""
        with in_netns(self.peers):
            return interfaces.mac(interfaces.device_index(peer))


@contextmanager
def neigh_network() -> Iterator[Network]:
    """Run the block with such a network, in the calling thread's own namespace."""
    with new_netns() as clients, new_netns() as peers, new_netns() as node:
        for namespace in (clients, peers, node):
            set_sysctls(namespace, _SYSCTLS)
        network = Network(clients, node, peers)
        ends = {IN: ("tp-clients", clients)} | {k: (v, peers) for k, v in LINKS.items()}
        with interfaces.connected() as netlink:
            for name, (peer, where) in ends.items():
                far = {"ifname": peer, "net_ns_fd": where}
                netlink.link("add", ifname=name, kind="veth", peer=far)
        for name, (peer, where) in ends.items():
            _up(node, name)
            _up(where, peer)
        network.at_node(_address_node)
        network.at_peers(_address_peers)
        # What is redirected to a veth is taken by a device that polls.
        with in_netns(peers):
            for peer in LINKS.values():
                receive_frames(peer)
        yield network


def _up(namespace: int, name: str) -> None:
    with in_netns(namespace), interfaces.connected() as netlink:
        netlink.link("set", index=interfaces.device_index(name), state="up")


def _address_node(netlink: Any) -> None:
    for name, address in _NODE.items():
        index = interfaces.device_index(name)
        netlink.addr("add", index=index, address=address, prefixlen=24)
    netlink.route("add", dst=BEHIND_NETWORK, gateway=str(GATEWAYS["tp-a"]))


def _address_peers(netlink: Any) -> None:
    for name, peer in LINKS.items():
        index = interfaces.device_index(peer)
        netlink.addr("add", index=index, address=str(GATEWAYS[name]), prefixlen=24)
    index = interfaces.device_index(LINKS["tp-a"])
    netlink.addr("add", index=index, address=str(ON_LINK), prefixlen=24)


@dataclass
class Stream:
    """A packet a millisecond to the VIP, and which of them came to where they belong.

    By number of the packet; times are of ``time.monotonic``.
    """

    network: Network
    sent: list[float] = field(default_factory=list)
    arrived: set[int] = field(default_factory=set)
    ended: bool = False

    def send(self) -> None:
        """Send until it is ended."""
        with in_netns(self.network.clients), closing(_raw("tp-clients")) as raw:
            head = frame(_FLOW, payload=_SEQUENCE.size)[: -_SEQUENCE.size]
            while not self.ended:
                number = len(self.sent)
                self.sent.append(time.monotonic())
                raw.send(head + _SEQUENCE.pack(number))
                time.sleep(_PACE)

    def receive(self, peer: str) -> None:
        """Take what comes to the other end of a link, until it is ended."""
        with in_netns(self.network.peers), closing(_raw(peer)) as raw:
            raw.settimeout(0.05)
            marked = frame(_FLOW)[ETHERNET + 12 : ETHERNET + 20]  # both addresses
            while not self.ended:
                try:
                    got, origin = raw.recvfrom(2048)
                except (TimeoutError, OSError):
                    continue  # OSError: the link is down
                # One for another host is no arrival, though it came by this link.
                if origin[2] == socket.PACKET_HOST and marked in got:
                    self.arrived.add(_SEQUENCE.unpack(got[-_SEQUENCE.size :])[0])

    def lost_since(self, then: float) -> list[float]:
        """When the packets were sent that were sent after ``then`` and haven't arrived."""
        return [
            when
            for number, when in enumerate(list(self.sent))
            if when >= then and number not in self.arrived
        ]


@contextmanager
def stream(network: Network) -> Iterator[Stream]:
    """Send in the block. An error of sending or receiving is raised at its end."""
    made = Stream(network)
    with ThreadPoolExecutor() as others:
        work = [others.submit(made.receive, peer) for peer in LINKS.values()]
        work.append(others.submit(made.send))
        try:
            yield made
        finally:
            made.ended = True
        for each in work:
            each.result()


def _raw(name: str) -> socket.socket:
    raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL))
    raw.bind((name, _ALL))
    return raw
