# SPDX-License-Identifier: Apache-2.0
"""Connections that netfilter has translated, of the calling thread's network namespace."""

from __future__ import annotations

import struct
from ipaddress import ip_address
from socket import AF_INET, AF_INET6, IPPROTO_SCTP, IPPROTO_TCP, IPPROTO_UDP
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from towpath.kernel.errors import KernelError
from towpath.kernel.net.messages import DUMP, Netlink, attribute, attributes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from towpath.model.kinds import Address

Found = TypeVar("Found")

NETFILTER = 12  # NETLINK_NETFILTER
# <linux/netfilter/nfnetlink_conntrack.h>
GET, DELETE = 1 << 8 | 1, 1 << 8 | 2  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_*
_ORIGINAL, _STATUS, _PROTOINFO, _ID = 1, 3, 4, 12  # CTA_*
_IP, _PROTO = 1, 2  # CTA_TUPLE_*
_DESTINATION: dict[int, int] = {AF_INET: 2, AF_INET6: 4}  # CTA_IP_V4_DST, CTA_IP_V6_DST
_NUMBER, _PORT = 1, 3  # CTA_PROTO_NUM, CTA_PROTO_DST_PORT
_TCP, _TCP_STATE = 1, 1  # CTA_PROTOINFO_TCP, CTA_PROTOINFO_TCP_STATE
_TRANSLATED = 1 << 5  # IPS_DST_NAT
_ENDING = {6, 7, 8}  # LAST_ACK, TIME_WAIT, CLOSE
HEADER = struct.Struct("=BBH")  # struct nfgenmsg
_PROTOCOLS = {IPPROTO_TCP: "tcp", IPPROTO_UDP: "udp", IPPROTO_SCTP: "sctp"}


class Translated(NamedTuple):
    """A connection whose destination was translated."""

    address: Address
    """What its client has asked for."""
    port: int
    protocol: str
    ending: bool
    """Nothing more comes of it."""
    family: int
    tuple: bytes
    """How the kernel names it."""
    id: bytes


def translated() -> list[Translated]:
    """All of them. KernelError: there is no connection tracking, or it may not be asked."""
    return listed(_read)


def listed(read: Callable[[int, bytes], Found | None]) -> list[Found]:
    """What is read of the kernel's connections, by family and message. KernelError, as above.

    ``read`` gives None for one that is not of interest.
    """
    try:
        with Netlink(NETFILTER) as netlink:
            return [
                found
                for family in (AF_INET, AF_INET6)
                for body in netlink.ask(GET, HEADER.pack(family, 0, 0), DUMP)
                if (found := read(family, body)) is not None
            ]
    except OSError as error:
        raise KernelError("list tracked connections", error.errno or 0) from error


def forget(connections: Iterable[Translated]) -> None:
    """Have the kernel forget them; what has ended meanwhile is no error. KernelError."""
    try:
        with Netlink(NETFILTER) as netlink:
            requests = [
                (
                    DELETE,
                    HEADER.pack(each.family, 0, 0)
                    + attribute(_ORIGINAL | 0x8000, each.tuple)
                    + attribute(_ID, each.id),
                    0,
                )
                for each in connections
            ]
            netlink.ask_each(requests)
    except OSError as error:
        raise KernelError("forget tracked connections", error.errno or 0) from error


def _read(family: int, body: bytes) -> Translated | None:
    found = attributes(body[HEADER.size :])
    if not int.from_bytes(found.get(_STATUS, b""), "big") & _TRANSLATED:
        return None
    named = attributes(found[_ORIGINAL])
    proto = attributes(named[_PROTO])
    destination = attributes(named[_IP])[_DESTINATION[family]]
    number = proto[_NUMBER][0]
    return Translated(
        ip_address(destination),
        int.from_bytes(proto.get(_PORT, b""), "big"),
        _PROTOCOLS.get(number, str(number)),
        _state(found.get(_PROTOINFO, b"")) in _ENDING,
        family,
        found[_ORIGINAL],
        found[_ID],
    )


def _state(protoinfo: bytes) -> int:
    tcp = attributes(attributes(protoinfo).get(_TCP, b""))
    return tcp.get(_TCP_STATE, b"\0")[0]
