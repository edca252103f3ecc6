# SPDX-License-Identifier: Apache-2.0
"""Addresses of the calling thread's network namespace, all in one question."""

from __future__ import annotations

import socket
import struct
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING

from towpath.kernel.errors import KernelError
from towpath.kernel.net.messages import DUMP, attributes

if TYPE_CHECKING:
    from towpath.kernel.net.messages import Netlink

Address = IPv4Address | IPv6Address

# <linux/rtnetlink.h>, <linux/if_addr.h>
_GET_ADDRESS = 22
_IFADDRMSG = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, ifindex
_ADDRESS, _LOCAL = 1, 2


def dump(netlink: Netlink) -> frozenset[Address]:
    """All addresses of this node, on whatever device. KernelError: the kernel refuses to tell."""
    try:
        found = netlink.ask(_GET_ADDRESS, _IFADDRMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0), DUMP)
    except OSError as error:
        raise KernelError("list addresses", error.errno or 0) from error
    return frozenset(address for address in map(_read, found) if address is not None)


def _read(body: bytes) -> Address | None:
    if _IFADDRMSG.unpack_from(body)[0] not in (socket.AF_INET, socket.AF_INET6):
        return None
    found = attributes(body[_IFADDRMSG.size :])
    # On a point-to-point device IFA_ADDRESS is the peer's.
    own = found.get(_LOCAL) or found.get(_ADDRESS)
    return ip_address(own) if own else None
