# SPDX-License-Identifier: Apache-2.0
"""A node with a link to a network of peers, each in a namespace of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from contextlib import ExitStack
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from scapy.layers.inet6 import ICMPv6ND_NA, ICMPv6NDOptDstLLAddr, IPv6
from scapy.layers.l2 import ARP, Ether

from towpath.datapath.neigh.keeper import Keeper
from towpath.kernel.bpf.probe_net import managed_neighbours
from towpath.kernel.net.messages import ROUTE, Netlink
from towpath.kernel.net.neighbours import Key
from towpath.kernel.net.netns import in_netns, new_netns

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from towpath.datapath.neigh.keeper import Kept

LIMIT = 120.0  # seconds; ends a hang. Without managed entries each is asked for twice a minute


def ip(command: str) -> None:
    """Run iproute2."""
    subprocess.run(["ip", *command.split()], check=True, timeout=LIMIT)


def ip_batch(commands: Iterable[str]) -> None:
    """Run many commands of iproute2's."""
    lines = "\n".join(commands)
    subprocess.run(["ip", "-batch", "-"], input=lines, text=True, check=True, timeout=LIMIT)


class Network:
    """A node that the test runs in, and what is at the other end of its device n0."""

    def __init__(self, node: int, peer: int) -> None:
        self.node = node
        self.peer = peer
        self.mac = self.ask_mac()

    @property
    def device(self) -> int:
        """The interface index of n0."""
        return socket.if_nametoindex("n0")

    def there(self, command: str) -> None:
        """Run iproute2 at the other end."""
        with in_netns(self.peer):
            ip(command)

    def ask_mac(self) -> bytes:
        """Return the MAC address of the other end."""
        with in_netns(self.peer), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
            raw.bind(("p0", 0))
            return bytes(raw.getsockname()[4])

    def announce(self, address: str, mac: bytes) -> None:
        """Say at the other end, without having been asked, who has an address."""
        with in_netns(self.peer), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
            raw.bind(("p0", 0))
            raw.send(announcement(address, mac))

    def key(self, address: str) -> Key:
        """Return the key of a neighbour on n0."""
        return Key(self.device, ip_address(address))

    def send(self, address: str) -> None:
        """Send a datagram, for which the kernel has to resolve something."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as made:
            made.sendto(b"", (address, 9))


@pytest.fixture
def network() -> Iterator[Network]:
    """A node with 192.0.2.1 and 2001:db8::1 on n0; at its other end are .2 to .9."""
    with ExitStack() as undo:
        node, peer = undo.enter_context(new_netns()), undo.enter_context(new_netns())
        ip("link set lo up")
        ip(f"link add p0 type veth peer name n0 netns /proc/{os.getpid()}/fd/{node}")
        ip("link set p0 up")
        for number in range(2, 10):
            ip(f"addr add 192.0.2.{number}/24 dev p0")
            ip(f"addr add 2001:db8::{number}/64 dev p0 nodad")
        undo.enter_context(in_netns(node))
        ip("link set lo up")
        ip("link set n0 up")
        ip("addr add 192.0.2.1/24 dev n0")
        ip("addr add 2001:db8::1/64 dev n0 nodad")
        yield Network(node, peer)


@pytest.fixture
def keeper(network: Network) -> Iterator[Keeper]:
    """Keeps next hops of the node."""
    assert network
    with Netlink(ROUTE) as netlink:
        made = Keeper(netlink, managed=managed_neighbours())
        made.resync()
        yield made


def worked(keeper: Keeper, until: Callable[[], bool], now: float | None = None) -> None:
    """Have a keeper work until something is so, reading all anew before each turn.

    ``now``: the time that the keeper is told each time; None: the clock's.
    """
    end = time.monotonic() + LIMIT
    while not until():
        assert time.monotonic() < end, "it never was so"
        keeper.resync()
        keeper.work(time.monotonic() if now is None else now)
        time.sleep(0.02)


def kept(keeper: Keeper, key: Key) -> Kept:
    """Return the entry of a next hop; there has to be one."""
    found = keeper.entries()[key]
    assert found
    return found


PROC = Path("/proc/sys/net")


def announcement(address: str, mac: bytes) -> bytes:
    """Return a gratuitous ARP request, or an unsolicited advertisement that overrides."""
    text = mac.hex(":")
    if ":" not in address:
        arp = ARP(op=1, hwsrc=text, psrc=address, pdst=address)
        return bytes(Ether(src=text, dst="ff:ff:ff:ff:ff:ff") / arp)
    told = ICMPv6ND_NA(R=0, S=0, O=1, tgt=address) / ICMPv6NDOptDstLLAddr(lladdr=text)
    packet = IPv6(src=address, dst="ff02::1", hlim=255) / told
    return bytes(Ether(src=text, dst="33:33:00:00:00:01") / packet)
