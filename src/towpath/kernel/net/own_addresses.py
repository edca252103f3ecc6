# SPDX-License-Identifier: Apache-2.0
"""Addresses of the calling thread's network namespace, or of another, all in one question."""

from __future__ import annotations

import socket
import struct
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING

from towpath.kernel.errors import KernelError
from towpath.kernel.net.messages import DUMP, attribute, attributes

if TYPE_CHECKING:
    from towpath.kernel.net.messages import Netlink

Address = IPv4Address | IPv6Address

# <linux/rtnetlink.h>, <linux/if_addr.h>
_GET_ADDRESS = 22
_IFADDRMSG = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, ifindex
_ADDRESS, _LOCAL, _TARGET_NETNSID = 1, 2, 10


def dump(netlink: Netlink) -> frozenset[Address]:
    """All addresses of this node, on whatever device. KernelError: the kernel refuses to tell."""
    try:
        found = netlink.ask(_GET_ADDRESS, _IFADDRMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0), DUMP)
    except OSError as error:
        raise KernelError("list addresses", error.errno or 0) from error
    return frozenset(address for address in map(_read, found) if address is not None)


def elsewhere(netlink: Netlink, namespace: int) -> frozenset[Address]:
    """All addresses of the namespace that has this number here, which nobody has to enter.

    ``netlink`` asks strictly. KernelError: it is gone, or the kernel refuses to tell.
    """
    asked = _IFADDRMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + attribute(_TARGET_NETNSID, namespace)
    try:
        found = netlink.ask(_GET_ADDRESS, asked, DUMP)
    except OSError as error:
        what = f"list addresses of network namespace number {namespace}"
        raise KernelError(what, error.errno or 0) from error
    return frozenset(
        address
        for body in found
        if _TARGET_NETNSID in attributes(body[_IFADDRMSG.size :])
        and (address := _read(body)) is not None
    )


def _read(body: bytes) -> Address | None:
    if _IFADDRMSG.unpack_from(body)[0] not in (socket.AF_INET, socket.AF_INET6):
        return None
    found = attributes(body[_IFADDRMSG.size :])
    # On a point-to-point device IFA_ADDRESS is the peer's.
    own = found.get(_LOCAL) or found.get(_ADDRESS)
    return ip_address(own) if own else None
