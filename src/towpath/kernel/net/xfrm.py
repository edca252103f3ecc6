# SPDX-License-Identifier: Apache-2.0
"""Policies of IPsec (``ip xfrm policy``), of the calling thread's network namespace."""

from __future__ import annotations

import socket
import struct
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import TYPE_CHECKING, NamedTuple

from towpath.kernel.net.messages import DUMP, Netlink

if TYPE_CHECKING:
    from collections.abc import Iterable

    Prefix = IPv4Network | IPv6Network

# <linux/xfrm.h>
_PROTOCOL = 6  # NETLINK_XFRM
_GET_POLICY = 21
_SELECTOR = struct.Struct("=16s16s8xHBBBxxxiI")  # struct xfrm_selector
_DIRECTION_AT = 160  # in struct xfrm_userpolicy_info
_DIRECTIONS = {0: "in", 1: "out", 2: "fwd"}
_LENGTHS = {socket.AF_INET: 4, socket.AF_INET6: 16}


class Policy(NamedTuple):
    """A policy that packets are held to."""

    source: Prefix
    destination: Prefix
    direction: str
    """in, out or fwd."""

    def __str__(self) -> str:
        return f"{self.direction} {self.source} to {self.destination}"

    def concerns(self, prefixes: Iterable[Prefix]) -> bool:
        """Whether it is for packets from one of these that leave, or to one that are forwarded."""
        ends = {"out": (self.source,), "fwd": (self.source, self.destination)}
        return any(
            end.version == each.version and end.overlaps(each)
            for end in ends.get(self.direction, ())
            for each in prefixes
        )


def policies() -> tuple[Policy, ...] | None:
    """All that there are, but those of single sockets. None: the kernel doesn't tell."""
    try:
        with Netlink(_PROTOCOL) as netlink:
            found = netlink.ask(_GET_POLICY, b"", DUMP)
    except OSError:
        return None
    return tuple(_read(each) for each in found if each[_DIRECTION_AT] in _DIRECTIONS)


def _read(body: bytes) -> Policy:
    to, of, family, to_bits, of_bits, *_ = _SELECTOR.unpack_from(body)
    length = _LENGTHS.get(family, 16)
    source, destination = (
        ip_network((address[:length], bits), strict=False)
        for address, bits in ((of, of_bits), (to, to_bits))
    )
    return Policy(source, destination, _DIRECTIONS[body[_DIRECTION_AT]])
