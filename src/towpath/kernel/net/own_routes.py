# SPDX-License-Identifier: Apache-2.0
"""What the calling thread's network namespace would do with packets of its own."""

from __future__ import annotations

import socket
import struct
import sys
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TypeAlias

from towpath.kernel.net.messages import ROUTE, Netlink, attribute, attributes

Address: TypeAlias = IPv4Address | IPv6Address

_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
_ANY_PORT = 9  # to ask for a route needs one
_GETROUTE = 26
_ROUTE = struct.Struct("=BBBBBBBBI")  # struct rtmsg: family, dst_len, ..., type, flags
_LOOPBACK = 1  # the index of lo in every network namespace
_DST, _OIF, _MARK = 1, 4, 16  # RTA_*


def preferred_source(towards: Address) -> Address | None:
    """Return the address that this node's packets to another have; None if there is no route."""
    with socket.socket(_FAMILIES[towards.version], socket.SOCK_DGRAM) as asking:
        try:
            asking.connect((str(towards), _ANY_PORT))
        except OSError:
            return None
        return ip_address(asking.getsockname()[0])


def stays_here(towards: Address, mark: int) -> bool:
    """Whether packets to ``towards`` of sockets with this mark go out by the loopback device."""
    family, bits = _FAMILIES[towards.version], towards.max_prefixlen
    body = _ROUTE.pack(family, bits, 0, 0, 0, 0, 0, 0, 0)
    body += attribute(_DST, towards.packed) + attribute(_MARK, mark)
    with Netlink(ROUTE) as netlink:
        try:
            answer = netlink.ask(_GETROUTE, body)[0]
        except OSError:  # there is no route
            return False
    leaves_by = attributes(answer[_ROUTE.size :]).get(_OIF, b"")
    return int.from_bytes(leaves_by, sys.byteorder) == _LOOPBACK
