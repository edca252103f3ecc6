# SPDX-License-Identifier: Apache-2.0
"""The table of IPVS of the calling thread's network namespace. It is read, never written."""

from __future__ import annotations

import errno as errnos
import sys
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from socket import AF_INET6, IPPROTO_SCTP, IPPROTO_TCP, IPPROTO_UDP
from typing import TYPE_CHECKING, NamedTuple

from towpath.core.imports.lvs import UDP_TIMEOUT, Method, RealServer, ServerTunnel, VirtualServer
from towpath.kernel.errors import KernelError
from towpath.kernel.net.generic import GENL_HEADER, family
from towpath.kernel.net.messages import DUMP, GENERIC, Netlink, attribute, attributes

if TYPE_CHECKING:
    from towpath.model.kinds import Address

# <linux/ip_vs.h>
_VERSION = 1
_GET_SERVICE, _GET_DEST, _GET_CONFIG = 4, 8, 13  # IPVS_CMD_*
_SERVICE, _DEST, _TIMEOUT_UDP = 1, 2, 6  # IPVS_CMD_ATTR_*
_PERSISTENT, _ONE_PACKET = 0x1, 0x4  # IP_VS_SVC_F_*
_SCHEDULER_FLAGS = {0x8: 1, 0x10: 2, 0x20: 3}  # IP_VS_SVC_F_SCHED*
_METHOD_MASK = 0x7  # IP_VS_CONN_F_FWD_MASK
_REMOTE_CHECKSUM = 0x2  # IP_VS_TUNNEL_ENCAP_FLAG_REMCSUM
_METHODS = {0: Method.NAT, 1: Method.LOCAL, 2: Method.TUNNEL}
_TUNNELS = {0: "ipip", 1: "gue", 2: "gre"}
_PROTOCOLS = {IPPROTO_TCP: "tcp", IPPROTO_UDP: "udp", IPPROTO_SCTP: "sctp"}
_ALL_ONES = 0xFFFFFFFF
_TABLE = Path("/proc/thread-self/net/ip_vs")


class _Service(NamedTuple):
    """IPVS_SVC_ATTR_*."""

    family: int = 1
    protocol: int = 2
    address: int = 3
    port: int = 4
    mark: int = 5
    scheduler: int = 6
    flags: int = 7
    timeout: int = 8
    mask: int = 9
    engine: int = 11


class _Dest(NamedTuple):
    """IPVS_DEST_ATTR_*."""

    address: int = 1
    port: int = 2
    method: int = 3
    weight: int = 4
    upper: int = 5
    lower: int = 6
    family: int = 11
    tunnel: int = 13
    tunnel_port: int = 14
    tunnel_flags: int = 15


_SVC, _DST = _Service(), _Dest()


class Table(NamedTuple):
    """Its virtual servers, and the seconds after which it forgets a flow of UDP."""

    servers: list[VirtualServer]
    udp_timeout: int


def read_ipvs() -> Table:
    """Read it. KernelError: there is none, or it may not be read."""
    if not _TABLE.exists():  # asking for the family would load the module
        raise KernelError("read the table of IPVS", 0, "this kernel has none (module ip_vs)")
    try:
        with Netlink(GENERIC) as netlink:
            number = family(netlink, "IPVS")
            if number is None:
                raise KernelError("read the table of IPVS", errnos.ENOENT)
            answers = _asked(netlink, number, _GET_SERVICE, DUMP)
            servers = [_with_servers(netlink, number, each[_SERVICE]) for each in answers]
            (config,) = _asked(netlink, number, _GET_CONFIG)
    except OSError as error:
        raise KernelError("read the table of IPVS", error.errno or 0) from error
    return Table(servers, _number(config, _TIMEOUT_UDP) or UDP_TIMEOUT)


def _asked(
    netlink: Netlink, number: int, command: int, flags: int = 0, body: bytes = b""
) -> list[dict[int, bytes]]:
    answers = netlink.ask(number, GENL_HEADER.pack(command, _VERSION) + body, flags)
    return [attributes(each[GENL_HEADER.size :]) for each in answers]


def _with_servers(netlink: Netlink, number: int, service: bytes) -> VirtualServer:
    found = attributes(service)
    body = attribute(_SERVICE, service)
    dests = _asked(netlink, number, _GET_DEST, DUMP, body)
    default = _number(found, _SVC.family)
    reals = tuple(_real(attributes(each[_DEST]), default) for each in dests)
    return _virtual(found, reals)


def _virtual(found: dict[int, bytes], reals: tuple[RealServer, ...]) -> VirtualServer:
    of, mark = _number(found, _SVC.family), _number(found, _SVC.mark)
    flags = int.from_bytes(found[_SVC.flags][:4], sys.byteorder)
    persistent = bool(flags & _PERSISTENT)
    protocol = _number(found, _SVC.protocol)
    return VirtualServer(
        protocol="" if mark else _PROTOCOLS.get(protocol, str(protocol)),
        vip=None if mark else _address(found[_SVC.address], of),
        port=int.from_bytes(found.get(_SVC.port, b""), "big"),
        mark=mark,
        scheduler=_text(found.get(_SVC.scheduler, b"")),
        flags=frozenset(n for bit, n in _SCHEDULER_FLAGS.items() if flags & bit),
        persistence=_number(found, _SVC.timeout) if persistent else None,
        granularity=_granularity(found[_SVC.mask], of) if persistent else "",
        engine=_text(found.get(_SVC.engine, b"")),
        one_packet=bool(flags & _ONE_PACKET),
        reals=reals,
    )


def _real(found: dict[int, bytes], default: int) -> RealServer:
    """``default``: the family, where servers have none of their own (before 3.18)."""
    return RealServer(
        address=_address(found[_DST.address], _number(found, _DST.family) or default),
        port=int.from_bytes(found.get(_DST.port, b""), "big"),
        method=_METHODS.get(_number(found, _DST.method) & _METHOD_MASK, Method.ROUTE),
        weight=_number(found, _DST.weight),
        tunnel=ServerTunnel(
            _TUNNELS.get(_number(found, _DST.tunnel), "of another type"),
            int.from_bytes(found.get(_DST.tunnel_port, b""), "big"),
            bool(_number(found, _DST.tunnel_flags) & _REMOTE_CHECKSUM),
        ),
        upper=_number(found, _DST.upper),
        lower=_number(found, _DST.lower),
    )


def _number(found: dict[int, bytes], kind: int) -> int:
    """A number of whatever size; 0 if it isn't there."""
    return int.from_bytes(found.get(kind, b""), sys.byteorder)


def _address(data: bytes, of: int) -> Address:
    """A union of both families' addresses."""
    return IPv6Address(data[:16]) if of == AF_INET6 else IPv4Address(data[:4])


def _granularity(mask: bytes, of: int) -> str:
    """A netmask as on the wire, or a prefix's length."""
    if of == AF_INET6:
        length = int.from_bytes(mask, sys.byteorder)
        return "" if length == 128 else f"/{length}"  # noqa: PLR2004 - all of an address
    return "" if int.from_bytes(mask, "big") == _ALL_ONES else str(IPv4Address(mask))


def _text(data: bytes) -> str:
    return data.partition(b"\0")[0].decode(errors="replace")
