# SPDX-License-Identifier: Apache-2.0
"""Clients, a node that forwards, and backends: a network namespace each, a veth between two.

::

    clients [tp-clients] ---- [tp-in] node [tp-out] ---- [tp-backends] backends

Addresses are of the prefix set aside for benchmarks (RFC 2544). Namespaces have no names: with the
process, however it ends, all of it is gone.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING, Any

from towpath.kernel.net import interfaces, napi
from towpath.kernel.net.netns import in_netns, new_netns

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_BACKENDS = 1000
FIRST_CLIENT = IPv4Address("198.18.0.0")
FIRST_BACKEND = IPv4Address("198.19.1.0")
NODE = IPv4Address("198.19.0.1")
"""The node's address towards backends."""

IN, OUT = "tp-in", "tp-out"
_CLIENTS, _BACKENDS = "tp-clients", "tp-backends"
_CLIENT_NETWORK = "198.18.0.0/16"
_BACKEND_PREFIX = 16
_NODE_IN, _ROUTER, _LINK_PREFIX = "192.0.2.1", "192.0.2.2", 24
_PERMANENT = 0x80  # NUD_PERMANENT

_EVERYWHERE = {
    # Nobody speaks IPv6 here, not even to look for others who do.
    "net/ipv6/conf/all/disable_ipv6": "1",
    "net/ipv6/conf/default/disable_ipv6": "1",
    "net/ipv4/conf/all/rp_filter": "0",
    "net/ipv4/conf/default/rp_filter": "0",
}
_FORWARDING = {"net/ipv4/ip_forward": "1"}


@dataclass(frozen=True, slots=True)
class End:
    """A device: an open file that stands for its namespace, its index and its MAC address."""

    namespace: int
    index: int
    mac: bytes


@dataclass(frozen=True, slots=True)
class Network:
    """The four devices in order of a packet's way; ``enter`` and ``leave`` are the node's."""

    clients: End
    enter: End
    leave: End
    backends: End
    number: int
    """How many backends there are."""

    def node_threads(self) -> tuple[int, ...]:
        """Have threads take what comes in at the node; their process ids, if they can be seen."""
        return napi.in_threads(self.enter.namespace, IN)

    def backend_threads(self) -> tuple[int, ...]:
        """The same of what comes in at the backends."""
        return napi.in_threads(self.backends.namespace, _BACKENDS)


def backend_mac(number: int) -> bytes:
    """The address on the link of a backend: its number is in the last two bytes."""
    return b"\x02\0\0\0" + number.to_bytes(2, "big")


@contextmanager
def forward_network(backends: int) -> Iterator[Network]:
    """Run the block with such a network. The calling thread is in it, somewhere."""
    with new_netns() as clients, new_netns() as servers, new_netns() as node:
        for namespace in (clients, servers, node):
            set_sysctls(namespace, _EVERYWHERE)
        set_sysctls(node, _FORWARDING)
        with interfaces.connected() as wire:
            for name, peer, where in ((IN, _CLIENTS, clients), (OUT, _BACKENDS, servers)):
                far = {"ifname": peer, "net_ns_fd": where}
                wire.link("add", ifname=name, kind="veth", peer=far)
        made = Network(
            _up(clients, _CLIENTS),
            _up(node, IN),
            _up(node, OUT),
            _up(servers, _BACKENDS),
            backends,
        )
        with in_netns(node), interfaces.connected() as wire:
            _address(wire, made)
        for name in (IN, OUT):
            receive_frames(name)
        yield made


def set_sysctls(namespace: int, values: dict[str, str]) -> None:
    """Write switches below /proc/sys in a namespace, as far as its kernel has them."""
    with in_netns(namespace):
        for key, value in values.items():
            path = Path("/proc/sys", key)
            if path.exists():  # a kernel without IPv6 has nothing to switch off
                path.write_text(value)


def _up(namespace: int, name: str) -> End:
    with in_netns(namespace), interfaces.connected() as wire:
        index = interfaces.device_index(name)
        wire.link("set", index=index, state="up")
        return End(namespace, index, interfaces.mac(index))


def _address(wire: Any, network: Network) -> None:
    """The node's addresses and routes, and everyone's link addresses: nobody has to ask."""
    enter, leave = network.enter.index, network.leave.index
    wire.addr("add", index=enter, address=_NODE_IN, prefixlen=_LINK_PREFIX)
    wire.addr("add", index=leave, address=str(NODE), prefixlen=_BACKEND_PREFIX)
    _neighbour(wire, enter, _ROUTER, network.clients.mac)
    wire.route("add", dst=_CLIENT_NETWORK, gateway=_ROUTER)
    for number in range(network.number):
        _neighbour(wire, leave, str(FIRST_BACKEND + number), backend_mac(number))


def _neighbour(wire: Any, index: int, address: str, mac: bytes) -> None:
    wire.neigh("add", ifindex=index, dst=address, lladdr=mac.hex(":"), state=_PERMANENT)


def receive_frames(name: str) -> None:
    """Let a veth without an XDP program take frames that were redirected to it.

    It does so only while it polls (NAPI), and GRO is what else makes it poll. It then makes each
    frame a packet of the kernel's (an skb), as a network card's driver does.
    """
    from pyroute2.ethtool.ioctl import IoctlEthtool  # noqa: PLC0415 -- takes long to import

    device = IoctlEthtool(name)
    try:
        device.set_offload_flag("generic-receive-offload", 1)
    finally:
        device.close()


def schedule(process: int, cpu: int, *, above: bool = False) -> None:
    """Keep a thread on a CPU, with this thread's real-time priority if it has one.

    ``above``: with one that goes before this thread's.
    """
    os.sched_setaffinity(process, {cpu})
    policy, priority = os.sched_getscheduler(0), os.sched_getparam(0).sched_priority
    if above or policy in {os.SCHED_FIFO, os.SCHED_RR}:
        os.sched_setscheduler(process, os.SCHED_FIFO, os.sched_param(priority + above))
