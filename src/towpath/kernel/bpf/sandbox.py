# SPDX-License-Identifier: Apache-2.0
"""A network of a probe's own, in which nothing it tries can disturb anyone."""

from __future__ import annotations

import socket
import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from towpath.kernel.net.messages import CREATE, ROUTE, Netlink, attribute, text
from towpath.kernel.net.netns import new_netns

if TYPE_CHECKING:
    from collections.abc import Iterator

LOOPBACK = 1  # its index in every network namespace
NAMES = ("probe0", "probe1")
ADDRESS, PREFIX = "192.0.2.1", 24  # of probe0
MTU = 1400  # of probe0

RTM_NEWLINK, RTM_NEWADDR = 16, 20
_IFLA_IFNAME, _IFLA_MTU, _IFLA_LINKINFO, _IFLA_AF_SPEC = 3, 4, 18, 26
_IFLA_INFO_KIND, _IFLA_INFO_DATA, _VETH_INFO_PEER = 1, 2, 1
_IFLA_INET_CONF, _FORWARDING = 1, 1  # IPV4_DEVCONF_FORWARDING
_IFA_LOCAL = 2
_IFF_UP = 1


class Sandbox(NamedTuple):
    """``near`` and ``far`` are the indexes of two devices, each the other's cable end."""

    netlink: Netlink
    near: int
    far: int


@contextmanager
def sandbox() -> Iterator[Sandbox]:
    """A network namespace for the block, with a veth pair that is up and forwarding on loopback.

    ``near`` has an address and a route to its network. KernelError: there can be no namespace;
    OSError: no veth device. The kernel loads its module if it has to.
    """
    with new_netns(), Netlink(ROUTE) as netlink:
        netlink.ask(RTM_NEWLINK, _link() + _pair(), CREATE)
        near, far = (socket.if_nametoindex(name) for name in NAMES)
        for index in (LOOPBACK, near, far):
            netlink.ask(RTM_NEWLINK, _link(index, up=True))
        inet = attribute(socket.AF_INET, attribute(_IFLA_INET_CONF, attribute(_FORWARDING, 1)))
        netlink.ask(RTM_NEWLINK, _link(LOOPBACK) + attribute(_IFLA_AF_SPEC, inet))
        netlink.ask(RTM_NEWADDR, _address(near), CREATE)
        yield Sandbox(netlink, near, far)


def _link(index: int = 0, *, up: bool = False) -> bytes:
    """Struct ifinfomsg."""
    flags = _IFF_UP if up else 0
    return struct.pack("=BxHiII", socket.AF_UNSPEC, 0, index, flags, flags)


def _pair() -> bytes:
    peer = _link() + attribute(_IFLA_IFNAME, text(NAMES[1]))
    info = attribute(_IFLA_INFO_KIND, text("veth"))
    info += attribute(_IFLA_INFO_DATA, attribute(_VETH_INFO_PEER, peer))
    name, mtu = attribute(_IFLA_IFNAME, text(NAMES[0])), attribute(_IFLA_MTU, MTU)
    return name + mtu + attribute(_IFLA_LINKINFO, info)


def _address(index: int) -> bytes:
    """Struct ifaddrmsg with an address."""
    message = struct.pack("=BBBBi", socket.AF_INET, PREFIX, 0, 0, index)
    return message + attribute(_IFA_LOCAL, socket.inet_aton(ADDRESS))
