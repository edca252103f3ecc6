# SPDX-License-Identifier: Apache-2.0
"""Routes of the calling thread's network namespace: by which next hop packets go somewhere."""

from __future__ import annotations

import errno as errnos
import socket
import struct
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import TYPE_CHECKING, Any, NamedTuple

from towpath.kernel.errors import KernelError
from towpath.kernel.net.messages import (
    DUMP,
    ROUTE,
    Netlink,
    attribute,
    attributes,
    each_attribute,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

Address = IPv4Address | IPv6Address

# <linux/rtnetlink.h>
_GET_ROUTE, _GET_NEXT_HOP = 26, 106
_RTMSG = struct.Struct(
    "=BBBBBBBBI"
)  # family, dst_len, src_len, tos, table, protocol, scope, type, flags
_FIB_MATCH = 0x2000  # RTM_F_FIB_MATCH, since 4.13 (IPv4) and 4.20 (IPv6)
_DST, _SRC, _OIF, _GATEWAY, _PRIORITY, _PREFSRC, _METRICS, _MULTIPATH = 1, 2, 4, 5, 6, 7, 8, 9
_TABLE = 15
_MARK, _VIA, _NH_ID = 16, 18, 30
_METRIC_MTU = 2
_SIZE_V4 = 4
_NEXT_HOP = struct.Struct("=HBBi")  # struct rtnexthop: length, flags, hops, ifindex
_DEAD = 1  # RTNH_F_DEAD
_NHMSG = struct.Struct("=BBBBI")  # struct nhmsg
_NHA_ID, _NHA_GROUP, _NHA_OIF, _NHA_GATEWAY = 1, 2, 5, 6
_GROUP_MEMBER = struct.Struct("=IBBH")  # struct nexthop_grp

KINDS = {
    1: "unicast",
    2: "local",
    3: "broadcast",
    4: "anycast",
    5: "multicast",
    6: "blackhole",
    7: "unreachable",
    8: "prohibit",
    9: "throw",
}
"""Types of routes, as ``ip route`` calls them."""

# What the kernel answers instead of a route of that type.
_REFUSALS = {
    errnos.EINVAL: "blackhole",
    errnos.EHOSTUNREACH: "unreachable",
    errnos.EACCES: "prohibit",
    errnos.ENETUNREACH: "none",
    errnos.ESRCH: "none",
}


class Hop(NamedTuple):
    """One way that a route goes."""

    device: int
    """Interface index."""
    gateway: Address | None
    """The next hop, which may be of the other family (RFC 5549); None: the destination itself."""


class Place(NamedTuple):
    """Where a route is: those of one place differ in their metric."""

    table: int
    bits: int
    destination: bytes | None
    """The prefix as it lies in messages; None: the default route."""
    family: int
    """AF_INET or AF_INET6."""

    @property
    def prefix(self) -> IPv4Network | IPv6Network:
        """Whom the route is for."""
        zero = bytes(4 if self.family == socket.AF_INET else 16)
        return ip_network((self.destination or zero, self.bits), strict=False)


@dataclass(frozen=True, slots=True)
class Route:
    """What the kernel has for a destination."""

    kind: str
    """One of KINDS; "none": there is no route."""
    hops: tuple[Hop, ...] = ()
    """All that packets may take; several for ECMP. Those whose link is down are left out."""
    source: Address | None = None
    """The source address that the route prefers, if it names one."""
    mtu: int = 0
    """The route's own, in bytes; 0: its device's."""
    bits: int = 0
    """Of the prefix that it is for; 0: the default route."""

    @property
    def forwards(self) -> bool:
        """Whether packets leave this node by it."""
        return self.kind == "unicast" and bool(self.hops)


NO_ROUTE = Route("none")


class Question(NamedTuple):
    """What to ask the kernel's routes for."""

    destination: Address
    source: Address | None = None
    """An address of this node, for rules that look at it."""
    mark: int = 0


def routes(questions: Iterable[Question]) -> list[Route]:
    """Ask for many, in order."""
    with Netlink(ROUTE) as netlink:
        return ask(netlink, list(questions))


def ask(netlink: Netlink, questions: Sequence[Question]) -> list[Route]:
    """The same by a socket that is there: the route that packets of this node itself would take.

    Rules are followed, with all of their conditions that a question names. Questions that have one
    route for an answer get one object.
    """
    objects = NextHopObjects(netlink)
    answers = netlink.answers(_GET_ROUTE, [_question(each) for each in questions])
    # Many destinations have one route, whose answers are alike: one Route for all of them.
    read: dict[bytes | int, Route] = {}
    for each in answers:
        if each not in read:
            read[each] = _answer(each, objects)
    return [read[each] for each in answers]


LOOKED_AT = 20_000
"""Of a family, how many routes are looked at by `differences`."""


class Differences(NamedTuple):
    """By what routes send packets to one destination different ways."""

    several: bool
    """Some route has several next hops (ECMP)."""
    sources: bool
    """Some route is for some sources only, as those of IPv6 may be."""
    doubled: frozenset[Place] = frozenset()
    """Of IPv4: where there are two of one metric, of which the kernel takes the first."""


def differences() -> dict[int, Differences]:
    """What routes of IPv4 and of IPv6 there are, by version.

    Of tables with more than LOOKED_AT routes only so many are read. KernelError: the kernel
    refuses to tell.
    """
    return {4: _differences(socket.AF_INET), 6: _differences(socket.AF_INET6)}


def several_ways() -> dict[int, bool]:
    """Whether some route of IPv4, and of IPv6, has several next hops, as `differences`."""
    return {version: each.several for version, each in differences().items()}


def _differences(family: int) -> Differences:
    with Netlink(ROUTE) as netlink, Netlink(ROUTE) as asking:
        try:
            found = netlink.first(
                _GET_ROUTE, _RTMSG.pack(family, 0, 0, 0, 0, 0, 0, 0, 0), LOOKED_AT
            )
        except OSError as error:
            raise KernelError("list routes", error.errno or 0) from error
        return _look_through(found, NextHopObjects(asking))


def _look_through(listed_: Iterable[bytes], objects: NextHopObjects) -> Differences:
    several = sources = False
    before: tuple[Any, ...] = ()
    doubled: set[Place] = set()
    for body in listed_:
        kinds = dict(each_attribute(body[_RTMSG.size :]))
        several = several or _has_several(kinds, objects)
        if body[0] != socket.AF_INET:
            sources = sources or has_sources(body)
            continue
        # Those of one prefix, type of service and metric come one after the other.
        which = kinds.get(_DST), kinds.get(_PRIORITY), kinds.get(_TABLE), body[1], body[3]
        if which == before:
            doubled.add(_place(body, kinds))
        before = which
    return Differences(several, sources, frozenset(doubled))


def _place(body: bytes, kinds: dict[int, bytes]) -> Place:
    return Place(_number(kinds.get(_TABLE)) or body[4], body[1], kinds.get(_DST), body[0])


def has_sources(body: bytes) -> bool:
    """Whether a route is for some sources only, by the body of RTM_NEWROUTE."""
    return bool(_RTMSG.unpack_from(body)[2])


def has_several(body: bytes, objects: NextHopObjects | None = None) -> bool:
    """Whether a route has several next hops, by the body of RTM_NEWROUTE.

    Of one that names an object of ``ip nexthop`` and nothing more, it is if there is no telling.
    """
    return _has_several(dict(each_attribute(body[_RTMSG.size :])), objects)


def _has_several(kinds: dict[int, bytes], objects: NextHopObjects | None) -> bool:
    if _MULTIPATH in kinds:
        return sum(1 for _ in _several(kinds[_MULTIPATH])) > 1
    if _NH_ID not in kinds or _OIF in kinds:
        return False
    return objects is None or len(objects.hops(_number(kinds[_NH_ID]))) > 1


def places(netlink: Netlink, destinations: Sequence[Address]) -> list[Place | None]:
    """Which routes packets for these take; None: there is none. In order."""
    answers = netlink.answers(_GET_ROUTE, [_question(Question(each)) for each in destinations])
    return [
        None if isinstance(each, int) else _place(each, dict(each_attribute(each[_RTMSG.size :])))
        for each in answers
    ]


def _answer(answer: bytes | int, objects: NextHopObjects) -> Route:
    if isinstance(answer, int):
        return Route(_REFUSALS.get(answer, "none"))
    return _read(answer, objects)


class Listed(NamedTuple):
    """A route of the kernel's tables, by one of its ways."""

    prefix: IPv4Network | IPv6Network
    device: int
    gateway: Address | None
    source: Address | None
    """That it prefers, if it names one."""


def listed(netlink: Netlink) -> Iterator[Listed]:
    """All unicast routes of all tables, whatever rules lead to them. OSError."""
    objects = NextHopObjects(netlink)
    for family in (socket.AF_INET, socket.AF_INET6):
        body = _RTMSG.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)
        for answer in netlink.ask(_GET_ROUTE, body, DUMP):
            yield from _listed(answer, family, objects)


def _listed(answer: bytes, family: int, objects: NextHopObjects) -> Iterator[Listed]:
    length = _RTMSG.unpack_from(answer)[1]
    kind = _RTMSG.unpack_from(answer)[7]
    found = attributes(answer[_RTMSG.size :])
    if KINDS.get(kind) != "unicast":
        return
    zero = bytes(4 if family == socket.AF_INET else 16)
    prefix = ip_network((found.get(_DST, zero), length))
    source = ip_address(found[_PREFSRC]) if _PREFSRC in found else None
    for hop in _hops(found, 0, objects):
        yield Listed(prefix, hop.device, hop.gateway, source)


def _question(question: Question) -> bytes:
    destination, source, mark = question
    packed = destination.packed
    begin, end = _around(len(packed), source, mark)
    return begin + packed + end


@lru_cache(maxsize=64)
def _around(size: int, source: Address | None, mark: int) -> tuple[bytes, bytes]:
    """What stands before and after the bytes of a destination: for thousands it is the same."""
    family = socket.AF_INET if size == _SIZE_V4 else socket.AF_INET6
    bits = 8 * size
    head = _RTMSG.pack(family, bits, bits if source else 0, 0, 0, 0, 0, 0, _FIB_MATCH)
    after = attribute(_SRC, source.packed) if source else b""
    if mark:
        after += attribute(_MARK, mark)
    return head + attribute(_DST, bytes(size))[:-size], after


def _read(body: bytes, objects: NextHopObjects) -> Route:
    _, bits, _, _, _, _, _, kind, flags = _RTMSG.unpack_from(body)
    found = attributes(body[_RTMSG.size :])
    hops = tuple(_hops(found, flags, objects))
    preferred = found.get(_PREFSRC)
    metrics = attributes(found.get(_METRICS, b""))
    return Route(
        kind=KINDS.get(kind, str(kind)),
        hops=hops,
        source=ip_address(preferred) if preferred else None,
        mtu=_number(metrics.get(_METRIC_MTU)),
        bits=bits,
    )


def _hops(found: dict[int, bytes], flags: int, objects: NextHopObjects) -> Iterator[Hop]:
    if _MULTIPATH in found:
        yield from _several(found[_MULTIPATH])
    elif _OIF in found:
        if not flags & _DEAD:
            yield Hop(_number(found[_OIF]), _gateway(found))
    elif _NH_ID in found:
        # All that there is where nexthop_compat_mode is 0.
        yield from objects.hops(_number(found[_NH_ID]))


def _several(data: bytes) -> Iterator[Hop]:
    while len(data) >= _NEXT_HOP.size:
        length, flags, _, device = _NEXT_HOP.unpack_from(data)
        if length < _NEXT_HOP.size:
            return
        if not flags & _DEAD:
            yield Hop(device, _gateway(attributes(data[_NEXT_HOP.size : length])))
        data = data[length + -length % 4 :]


def _gateway(found: dict[int, bytes]) -> Address | None:
    if _VIA in found:
        return ip_address(found[_VIA][2:])  # struct rtvia
    return ip_address(found[_GATEWAY]) if _GATEWAY in found else None


class NextHopObjects:
    """``ip nexthop``, each asked for once while this is in use."""

    def __init__(self, netlink: Netlink) -> None:
        self._netlink = netlink
        self._known: dict[int, tuple[Hop, ...]] = {}

    def hops(self, number: int) -> tuple[Hop, ...]:
        """Those of an object, or of all members of a group. None: it is gone, or a blackhole."""
        if number not in self._known:
            self._known[number] = tuple(self._ask(number))
        return self._known[number]

    def _ask(self, number: int) -> Iterator[Hop]:
        body = _NHMSG.pack(0, 0, 0, 0, 0) + attribute(_NHA_ID, number)
        (answer,) = self._netlink.answers(_GET_NEXT_HOP, [body])
        if isinstance(answer, int):
            return
        flags = _NHMSG.unpack_from(answer)[4]
        found = attributes(answer[_NHMSG.size :])
        for begin in range(0, len(found.get(_NHA_GROUP, b"")), _GROUP_MEMBER.size):
            yield from self.hops(_GROUP_MEMBER.unpack_from(found[_NHA_GROUP], begin)[0])
        if _NHA_OIF in found and not flags & _DEAD:
            gateway = found.get(_NHA_GATEWAY)
            yield Hop(_number(found[_NHA_OIF]), ip_address(gateway) if gateway else None)


def _number(value: bytes | None) -> int:
    return int(struct.unpack("=I", value)[0]) if value else 0
