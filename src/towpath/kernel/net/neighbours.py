# SPDX-License-Identifier: Apache-2.0
"""Neighbours of the calling thread's network namespace: which MAC address a next hop has.

A *managed* entry is one that the kernel resolves by itself and keeps resolved, whether packets are
sent to it or not (``NTF_EXT_MANAGED``, since 5.16, kernel commit 7482e3841d52). Older kernels take
the flag and ignore it: read back what has become of a request.
"""

from __future__ import annotations

import errno as errnos
import os
import socket
import struct
import sys
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, NamedTuple

from towpath.kernel.errors import CAP_NET_ADMIN, KernelError, permission_hint
from towpath.kernel.net.messages import CREATE, DUMP, REPLACE, ROUTE, Netlink, attribute, attributes

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Address = IPv4Address | IPv6Address

# <linux/rtnetlink.h>, <linux/neighbour.h>
_NEW, _DELETE, _GET = 28, 29, 30
_NDMSG = struct.Struct("=BxxxiHBB")  # family, ifindex, state, flags, type
_DST, _LLADDR, _CACHEINFO, _PROBES, _PROTOCOL, _FLAGS_EXT = 1, 2, 3, 4, 12, 15
_CACHE = struct.Struct("=IIII")  # confirmed, used, updated in clock ticks ago; references
_NO_CACHE = bytes(_CACHE.size)

INCOMPLETE, REACHABLE, STALE, DELAY, PROBE, FAILED, NOARP, PERMANENT = (1 << n for n in range(8))
STATES = {
    INCOMPLETE: "incomplete",
    REACHABLE: "reachable",
    STALE: "stale",
    DELAY: "delay",
    PROBE: "probe",
    FAILED: "failed",
    NOARP: "noarp",
    PERMANENT: "permanent",
}
"""What ``ip neigh`` calls a state."""
VALID = REACHABLE | STALE | DELAY | PROBE | NOARP | PERMANENT
"""States in which the kernel sends to the MAC address that it has."""

USE, EXTERN_LEARN = 1 << 0, 1 << 4  # NTF_*, in ndm_flags
MANAGED, VALIDATED = 1 << 0, 1 << 2  # NTF_EXT_*, in NDA_FLAGS_EXT

_TICKS = os.sysconf("SC_CLK_TCK")


class Key(NamedTuple):
    """What tells one neighbour from another."""

    device: int
    """Interface index."""
    address: Address

    def __hash__(self) -> int:
        """As for any tuple, in a third of the time that an address's own takes."""
        return hash((self.device, int(self.address)))


class Neighbour(NamedTuple):
    """One entry, as the kernel tells of it."""

    key: Key
    mac: bytes
    """6 bytes on Ethernet; empty: not resolved."""
    state: int
    """One of the ``NUD_*`` bits, 0 for an entry that nobody has asked for yet."""
    flags: int
    """``NTF_*``."""
    extended: int
    """``NTF_EXT_*``."""
    protocol: int
    """Who made it, as ``RTPROT_*`` are numbered. Stays when another one changes the entry."""
    probes: int
    """Solicitations sent since it was confirmed last."""
    confirmed: float
    """Seconds since something said that it is there."""
    used: float
    """Seconds since a packet was sent to it."""
    updated: float
    """Seconds since its MAC address or its state changed."""

    @property
    def valid(self) -> bool:
        """Whether the kernel would send to ``mac``."""
        return bool(self.state & VALID)


def neighbours(family: int = socket.AF_UNSPEC) -> list[Neighbour]:
    """All neighbours of a family, in whatever state. Proxy entries aren't among them."""
    with Netlink(ROUTE) as netlink:
        return dump(netlink, family)


def dump(netlink: Netlink, family: int = socket.AF_UNSPEC) -> list[Neighbour]:
    """The same by a socket that is there. KernelError: the kernel refuses to tell."""
    try:
        found = netlink.ask(_GET, _NDMSG.pack(family, 0, 0, 0, 0), DUMP)
    except OSError as error:
        raise KernelError("list neighbours", error.errno or 0) from error
    return [each for each in map(read, found) if each is not None]


def read(body: bytes) -> Neighbour | None:
    """Read a neighbour from the body of RTM_NEWNEIGH or RTM_DELNEIGH. None: of another family."""
    family, device, state, flags, _ = _NDMSG.unpack_from(body)
    if family not in (socket.AF_INET, socket.AF_INET6):
        return None
    found = attributes(body[_NDMSG.size :])
    destination = found.get(_DST)
    if destination is None:
        return None
    confirmed, used, updated, _ = _CACHE.unpack(found.get(_CACHEINFO, _NO_CACHE))
    address = IPv4Address(destination) if family == socket.AF_INET else IPv6Address(destination)
    return Neighbour(  # by position, which takes half the time for thousands of them
        Key(device, address),
        found.get(_LLADDR, b""),
        state,
        flags,
        _number(found.get(_FLAGS_EXT)),
        _byte(found.get(_PROTOCOL)),
        _number(found.get(_PROBES)),
        confirmed / _TICKS,
        used / _TICKS,
        updated / _TICKS,
    )


class Request(NamedTuple):
    """An entry to make, or to change."""

    key: Key
    flags: int = EXTERN_LEARN
    extended: int = MANAGED
    protocol: int = 0
    state: int = 0
    """0: the kernel is to find out; with MANAGED and USE it begins at once."""
    mac: bytes = b""
    new: bool = False
    """Refuse (EEXIST) if there is an entry already."""


def put(netlink: Netlink, requests: Sequence[Request]) -> list[int]:
    """Make or change entries in order; returns 0 or an error number for each.

    Usual ones: ENODEV, ENETDOWN (the device is gone or down), EEXIST, ENOBUFS (the table is full,
    ``gc_thresh3``), EINVAL (a flag that this kernel doesn't know, or MAC of another length).
    KernelError: not allowed.
    """
    what = [(_NEW, _body(each), CREATE if each.new else REPLACE) for each in requests]
    return _allowed(netlink.ask_each(what), "make neighbours")


def delete(netlink: Netlink, keys: Iterable[Key]) -> list[int]:
    """Remove entries in order; returns 0 or an error number for each (ENOENT, ENODEV).

    A permanent entry goes too: look first whose it is. KernelError: not allowed.
    """
    what = [(_DELETE, _head(key) + _destination(key), 0) for key in keys]
    return _allowed(netlink.ask_each(what), "delete neighbours")


def _body(request: Request) -> bytes:
    parts = [
        _head(request.key, request.state, request.flags),
        _destination(request.key),
    ]
    if request.mac:
        parts.append(attribute(_LLADDR, request.mac))
    if request.protocol:
        parts.append(attribute(_PROTOCOL, bytes((request.protocol,))))
    if request.extended:
        parts.append(attribute(_FLAGS_EXT, request.extended))
    return b"".join(parts)


def _head(key: Key, state: int = 0, flags: int = 0) -> bytes:
    family = socket.AF_INET if key.address.version == 4 else socket.AF_INET6  # noqa: PLR2004
    return _NDMSG.pack(family, key.device, state, flags, 0)


def _destination(key: Key) -> bytes:
    return attribute(_DST, key.address.packed)


def _allowed(results: list[int], what: str) -> list[int]:
    if errnos.EPERM in results:
        raise KernelError(what, errnos.EPERM, permission_hint(CAP_NET_ADMIN))
    return results


def _number(value: bytes | None) -> int:
    return int.from_bytes(value, sys.byteorder) if value else 0


def _byte(value: bytes | None) -> int:
    return value[0] if value else 0
