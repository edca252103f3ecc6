# SPDX-License-Identifier: Apache-2.0
"""Builds the lab's namespaces, devices, addresses and routes over netlink."""

from __future__ import annotations

import socket
from contextlib import closing
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute
from pyroute2.ethtool.ioctl import IoctlEthtool

from towpath.kernel.net.netns import in_netns
from towpath.lab import namespaces
from towpath.lab.topology import (
    BALANCER,
    CLIENT,
    CLIENT_MTU,
    DEVICE,
    ROUTER,
    VIP4,
    VIP4_NETWORK,
    VIP6,
    VIP6_NETWORK,
    Link,
    Topology,
)

# Before any device exists: "default" is what a new device starts from.
EVERYWHERE = {
    # An address may be used at once. Duplicate detection takes a second, and until
    # it is done a router may not ask for its neighbours.
    "net/ipv6/conf/all/accept_dad": "0",
    "net/ipv6/conf/default/accept_dad": "0",
    # Static addresses and routes only.
    "net/ipv6/conf/default/accept_ra": "0",
    # Backends answer from the VIP, towards which the router's route is another.
    "net/ipv4/conf/all/rp_filter": "0",
    "net/ipv4/conf/default/rp_filter": "0",
}
# A sender without these computes checksums and cuts segments itself.
#
# veth hands packets over with both left undone, since no wire would spoil them.
# An XDP program sends such a packet on as it is, and the receiver then finds a
# wrong checksum. A real device has finished both before a packet is on the wire.
SENDERS_OFFLOADS = (
    "tx-checksumming",
    "tcp-segmentation-offload",
    "generic-segmentation-offload",
)
FORWARDING = {
    "net/ipv4/ip_forward": "1",
    "net/ipv6/conf/all/forwarding": "1",
}


def build(topology: Topology) -> None:
    """Make everything; on an error what has been made is left for the caller to undo."""
    for name in topology.namespaces:
        namespaces.create(name)
        forwards = name in {ROUTER, BALANCER}
        _set_sysctls(name, EVERYWHERE | (FORWARDING if forwards else {}))
    with IPRoute(netns=ROUTER) as router:
        _up(router, "lo")
        for link in topology.links:
            _connect(router, link)
        _route(router, VIP4_NETWORK, topology.balancer.node4[0].ip)
        _route(router, VIP6_NETWORK, topology.balancer.node6[0].ip)
    for link in topology.backend_links:
        _own_vips(link.node)
    switch_off(CLIENT, DEVICE, *SENDERS_OFFLOADS)


def _set_sysctls(name: str, values: dict[str, str]) -> None:
    # /proc/sys/net shows the namespace of whoever looks.
    with in_netns(name):
        for key, value in values.items():
            Path("/proc/sys", key).write_text(value)


def _connect(router: Any, link: Link) -> None:
    """Make one veth pair with its addresses, and the node's default routes."""
    router.link(
        "add",
        ifname=link.port,
        kind="veth",
        mtu=link.mtu,
        peer={"ifname": DEVICE, "net_ns_fd": link.node, "mtu": link.mtu},
    )
    port = _up(router, link.port)
    for address in link.of_router:
        _add_address(router, port, address)
    with IPRoute(netns=link.node) as node:
        _up(node, "lo")
        device = _up(node, DEVICE)
        for address in link.of_node:
            _add_address(node, device, address)
        # Larger packets have no way past the client's link.
        _route(node, "0.0.0.0/0", link.router4.ip, mtu=CLIENT_MTU)
        _route(node, "::/0", link.router6.ip, mtu=CLIENT_MTU)


def _up(netlink: Any, name: str) -> int:
    """Set a device up; its index."""
    (index,) = netlink.link_lookup(ifname=name)
    netlink.link("set", index=index, state="up")
    return int(index)


def _add_address(netlink: Any, index: int, address: Any) -> None:
    netlink.addr("add", index=index, address=str(address.ip), prefixlen=address.network.prefixlen)


def _route(netlink: Any, network: Any, gateway: Any, *, mtu: int | None = None) -> None:
    family = socket.AF_INET if gateway.version == 4 else socket.AF_INET6  # noqa: PLR2004
    metrics = {"metrics": {"mtu": mtu}} if mtu else {}
    netlink.route("add", dst=str(network), gateway=str(gateway), family=family, **metrics)


def _own_vips(name: str) -> None:
    """Give a backend the VIPs, on its loopback: it answers for them and owns no link's."""
    with IPRoute(netns=name) as node:
        (lo,) = node.link_lookup(ifname="lo")
        node.addr("add", index=lo, address=str(VIP4), prefixlen=VIP4.max_prefixlen)
        node.addr("add", index=lo, address=str(VIP6), prefixlen=VIP6.max_prefixlen)


def switch_off(name: str, device: str, *offloads: str) -> None:
    """Switch off what a device in a namespace does for the stack, by ethtool's long names."""
    with in_netns(name), closing(IoctlEthtool(device)) as control:
        for offload in offloads:
            control.set_offload_flag(offload, 0)
