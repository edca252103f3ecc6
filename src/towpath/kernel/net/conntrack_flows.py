# SPDX-License-Identifier: Apache-2.0
"""Flows that connection tracking translates, both ways: read, and entered for it to go on with.

Of the calling thread's network namespace. Addresses and ports are as they are in packets.
"""

from __future__ import annotations

import struct
import time
from pathlib import Path
from socket import AF_INET, AF_INET6, IPPROTO_TCP, IPPROTO_UDP
from typing import TYPE_CHECKING, NamedTuple

from towpath.closeable import Closeable
from towpath.kernel.errors import KernelError
from towpath.kernel.net.conntrack import DELETE, HEADER, NETFILTER, listed
from towpath.kernel.net.messages import CREATE, Netlink, attribute, attributes

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# <linux/netfilter/nfnetlink_conntrack.h>; NFNL_SUBSYS_CTNETLINK above IPCTNL_MSG_CT_*.
_NEW = 1 << 8
_ORIGINAL, _REPLY, _STATUS, _PROTOINFO, _NAT_SOURCE, _TIMEOUT, _NAT_DESTINATION = (
    *(1, 2, 3, 4, 6, 7, 13),
)
_IP, _PROTO = 1, 2  # CTA_TUPLE_*
_ADDRESSES: dict[int, tuple[int, int]] = {AF_INET: (1, 2), AF_INET6: (3, 4)}
_NUMBER, _SOURCE_PORT, _PORT = 1, 2, 3  # CTA_PROTO_*
_NAT_ADDRESSES: dict[int, tuple[int, int]] = {AF_INET: (1, 2), AF_INET6: (4, 5)}
_NAT_PROTO, _PORT_LEAST, _PORT_MOST = 3, 1, 2  # CTA_NAT_PROTO, CTA_PROTONAT_PORT_*
_TCP, _TCP_STATE, _FLAGS_THERE, _FLAGS_BACK = 1, 1, 4, 5  # CTA_PROTOINFO_TCP, _TCP_*
_ESTABLISHED, _TIME_WAIT = 3, 7  # TCP_CONNTRACK_*
# IP_CT_TCP_FLAG_BE_LIBERAL, and which flag is meant: nobody knows the windows of what went before.
_LIBERAL = b"\x08\x08"
_SEEN, _FIXED = 1 << 1 | 1 << 2, 1 << 10  # IPS_SEEN_REPLY and IPS_ASSURED; IPS_FIXED_TIMEOUT
_CONFIRMED = struct.pack(">I", _SEEN | 1 << 3)  # IPS_CONFIRMED
_NESTED = 0x8000
_PROTOCOLS = (IPPROTO_TCP, IPPROTO_UDP)
_UDP_TIMEOUT = Path("/proc/sys/net/netfilter/nf_conntrack_udp_timeout")
_UDP_SECONDS = 30
"""What the kernel begins with."""


class Ends(NamedTuple):
    """One direction of a flow."""

    family: int
    protocol: int
    source: bytes
    destination: bytes
    source_port: bytes
    port: bytes


class Rewritten(NamedTuple):
    """A flow that is answered by somebody else than who was asked."""

    original: Ends
    reply: Ends
    until: int = 0
    """Of UDP, when it is forgotten if no packet comes, by time.monotonic_ns(); to a second, sooner
    rather than later. Else 0."""
    status: int = 0
    """IPS_*."""

    @property
    def kept(self) -> bool:
        """Whether `keep` was called for it."""
        return bool(self.status & _FIXED)


class Handed(NamedTuple):
    """A flow to be translated: what its client sends goes to a backend, from whatever address."""

    original: Ends
    backend: bytes
    backend_port: bytes
    seen: tuple[bytes, bytes]
    """The address and port that the backend sees."""
    passed: bool
    """The kernel has seen its packets as they were translated: it goes on when it is entered."""
    seconds: int
    """It is forgotten after that time without a packet."""
    ending: bool = False
    """Both sides have said that nothing more comes, or one has reset it."""

    @property
    def of_tcp(self) -> bool:
        """Whether what is lost is sent again."""
        return self.original.protocol == IPPROTO_TCP


def rewritten() -> list[Rewritten]:
    """All flows of TCP and UDP that are. KernelError: there is no connection tracking."""
    now = time.monotonic_ns()
    return listed(lambda family, body: _read(family, body, now))


def both_ways() -> list[tuple[Ends, Ends]]:
    """What is sent and what is answered, of all flows of TCP and UDP. KernelError, as above."""
    return listed(_read_both)


def sources() -> dict[Ends, tuple[bytes, bytes]]:
    """What is seen of each client that has another address or port behind this host. KernelError.

    The kernel has a client seen with another port if answers couldn't be told from another flow's.
    """
    return dict(filter(None, listed(_read_source)))


def hand_over(flows: Iterable[Handed]) -> list[int]:
    """Have the kernel translate these from now on: 0, or an error number, for each. KernelError.

    What the kernel knows of either direction has the place of this one, and is forgotten: a flow
    that is over, or the same one as it was seen between what translated it and its backend.
    """
    requests, of = [], []
    for each in flows:
        requests += [_forget(each.original), _forget(_answer(each))]
        of.append(len(requests))
        requests.append((_NEW, _entered(each), CREATE))
    try:
        with Netlink(NETFILTER) as netlink:
            results = netlink.ask_each(requests)
    except OSError as error:
        raise KernelError("enter tracked flows", error.errno or 0) from error
    return [results[number] for number in of]


def udp_seconds() -> int:
    """How long at least a flow of UDP is known after a packet."""
    try:
        return int(_UDP_TIMEOUT.read_text(encoding="ascii"))
    except (OSError, ValueError):  # no connection tracking, yet
        return _UDP_SECONDS


def keep(flows: Sequence[Rewritten], seconds: int) -> list[int]:
    """Have the kernel know these for so long, whatever packets come, or until `end`. KernelError.

    0, or an error number, for each: it may be gone by now. It can't be undone.
    """
    requests = [
        (
            _NEW,
            _head(each.original)
            + attribute(_STATUS, struct.pack(">I", each.status | _SEEN | _FIXED))
            + attribute(_TIMEOUT, struct.pack(">I", seconds)),
            0,
        )
        for each in flows
    ]
    try:
        with Netlink(NETFILTER) as netlink:
            return netlink.ask_each(requests)
    except OSError as error:
        raise KernelError("keep tracked flows", error.errno or 0) from error


class Ending(Closeable):
    """Ends flows, one by one and each at once. OSError: it can't be."""

    def __init__(self) -> None:
        self._netlink = Netlink(NETFILTER)

    def end(self, flow: Rewritten) -> None:
        """Have the kernel forget a flow. That it has already is fine."""
        self._netlink.ask_each([_forget(flow.original)])

    def close(self) -> None:
        """Nothing more is to end."""
        self._netlink.__exit__(None, None, None)


def _head(original: Ends) -> bytes:
    """What names a flow."""
    return HEADER.pack(original.family, 0, 0) + _named(_ORIGINAL, original)


def _read(family: int, body: bytes, now: int) -> Rewritten | None:
    found = attributes(body[HEADER.size :])
    original, reply = _ends(family, found[_ORIGINAL]), _ends(family, found[_REPLY])
    if original is None or reply is None:
        return None
    there = (original.destination, original.port)
    if there == (reply.source, reply.source_port):
        return None
    status = int.from_bytes(found.get(_STATUS, b""), "big")
    if original.protocol != IPPROTO_UDP:
        return Rewritten(original, reply, 0, status)
    seconds = int.from_bytes(found.get(_TIMEOUT, b""), "big")
    return Rewritten(original, reply, now + seconds * 10**9, status)


def _read_both(family: int, body: bytes) -> tuple[Ends, Ends] | None:
    found = attributes(body[HEADER.size :])
    original, reply = _ends(family, found[_ORIGINAL]), _ends(family, found[_REPLY])
    return None if original is None or reply is None else (original, reply)


def _read_source(family: int, body: bytes) -> tuple[Ends, tuple[bytes, bytes]] | None:
    found = attributes(body[HEADER.size :])
    original, reply = _ends(family, found[_ORIGINAL]), _ends(family, found[_REPLY])
    if original is None or reply is None:
        return None
    seen = reply.destination, reply.port
    return None if seen == (original.source, original.source_port) else (original, seen)


def _ends(family: int, named: bytes) -> Ends | None:
    parts = attributes(named)
    proto = attributes(parts[_PROTO])
    number = proto[_NUMBER][0]
    if number not in _PROTOCOLS:
        return None
    ip, (source, destination) = attributes(parts[_IP]), _ADDRESSES[family]
    return Ends(family, number, ip[source], ip[destination], proto[_SOURCE_PORT], proto[_PORT])


def _forget(ends: Ends) -> tuple[int, bytes, int]:
    return DELETE, _head(ends), 0


def _answer(flow: Handed) -> Ends:
    address, port = flow.seen
    return flow.original._replace(
        source=flow.backend, source_port=flow.backend_port, destination=address, port=port
    )


def _entered(flow: Handed) -> bytes:
    there = flow.original
    back = there._replace(
        source=there.destination,
        destination=there.source,
        source_port=there.port,
        port=there.source_port,
    )
    parts = [
        _head(there),
        # As if it weren't translated: what follows has the kernel do it.
        _named(_REPLY, back),
        attribute(_STATUS, _CONFIRMED),
        attribute(_TIMEOUT, struct.pack(">I", flow.seconds)),
        _translation(_NAT_DESTINATION, there.family, flow.backend, flow.backend_port),
    ]
    if flow.seen != (there.source, there.source_port):
        parts.append(_translation(_NAT_SOURCE, there.family, *flow.seen))
    if there.protocol == IPPROTO_TCP:
        state = attribute(_TCP_STATE, bytes([_TIME_WAIT if flow.ending else _ESTABLISHED]))
        flags = attribute(_FLAGS_THERE, _LIBERAL) + attribute(_FLAGS_BACK, _LIBERAL)
        tcp = attribute(_TCP | _NESTED, state + flags)
        parts.append(attribute(_PROTOINFO | _NESTED, tcp))
    return b"".join(parts)


def _named(kind: int, ends: Ends) -> bytes:
    source, destination = _ADDRESSES[ends.family]
    ip = attribute(source, ends.source) + attribute(destination, ends.destination)
    proto = (
        attribute(_NUMBER, bytes([ends.protocol]))
        + attribute(_SOURCE_PORT, ends.source_port)
        + attribute(_PORT, ends.port)
    )
    return attribute(
        kind | _NESTED, attribute(_IP | _NESTED, ip) + attribute(_PROTO | _NESTED, proto)
    )


def _translation(kind: int, family: int, address: bytes, port: bytes) -> bytes:
    least, most = _NAT_ADDRESSES[family]
    ports = attribute(_PORT_LEAST, port) + attribute(_PORT_MOST, port)
    inner = (
        attribute(least, address)
        + attribute(most, address)
        + attribute(_NAT_PROTO | _NESTED, ports)
    )
    return attribute(kind | _NESTED, inner)
