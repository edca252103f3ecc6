# SPDX-License-Identifier: Apache-2.0
"""Sockets of the calling thread's network namespace (sock_diag): their ports, their end."""

from __future__ import annotations

import errno as errnos
import socket
import struct
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, NamedTuple

from towpath.kernel.errors import KernelError
from towpath.kernel.net.messages import DUMP, Netlink, attribute, attributes

if TYPE_CHECKING:
    from collections.abc import Sequence

_SOCK_DIAG = 4  # NETLINK_SOCK_DIAG
_BY_FAMILY = 20  # SOCK_DIAG_BY_FAMILY
_REQUEST = struct.Struct("=BBBBI48x")  # struct inet_diag_req_v2, of whatever address
_BYTECODE = 1  # INET_DIAG_REQ_BYTECODE
_OP = struct.Struct("=BBHHH")  # struct inet_diag_bc_op, and the one with its operand
_AT_LEAST, _AT_MOST = 2, 3  # INET_DIAG_BC_S_GE, INET_DIAG_BC_S_LE
_SOURCE_PORT = struct.Struct("!4xH")  # of struct inet_diag_msg
# All TCP_* states but TIME_WAIT and NEW_SYN_RECV, which are nobody's sockets. BOUND_INACTIVE (13)
# is told since 6.8 only. UDP has some of them.
_STATES = (0xFFF | 1 << 13) & ~(1 << 6)

_DESTROY = 21  # SOCK_DESTROY
# struct inet_diag_req_v2 with its struct inet_diag_sockid: ports and addresses as on the wire.
_ONE = struct.Struct("=BBBBI2s2s16s16sIII")
_ANY_STATE = 0xFFFFFFFF
_LOW = 0xFFFFFFFF

PROTOCOLS = (socket.IPPROTO_TCP, socket.IPPROTO_UDP)

# TCP_LISTEN, and TCP_CLOSE, which sockets of UDP have that aren't connected.
_LISTENING = {socket.IPPROTO_TCP: 1 << 10, socket.IPPROTO_UDP: 1 << 7}
_ENDS = struct.Struct("!4xHH16s")  # of struct inet_diag_msg: ports, and the own address
_MESSAGE_SIZE = 72
_ONLY_V6 = 11  # INET_DIAG_SKV6ONLY


def bound_ports(protocol: int, first: int, last: int) -> frozenset[int]:
    """The ports from ``first`` to ``last`` that sockets have, of whatever address and family.

    KernelError: the kernel doesn't tell.
    """
    found = _listed(protocol, _STATES, first, last)
    return frozenset(_SOURCE_PORT.unpack_from(body)[0] for _, body in found)


class Listener(NamedTuple):
    """Where connections, or datagrams of anyone, are taken."""

    address: IPv4Address | IPv6Address
    """0.0.0.0 or :: for all."""
    port: int


def listening(protocol: int, first: int, last: int) -> frozenset[Listener]:
    """Who takes what comes to the ports from ``first`` to ``last``.

    A socket of both families is there twice. KernelError: the kernel doesn't tell.
    """
    found: set[Listener] = set()
    for family, body in _listed(protocol, _LISTENING[protocol], first, last):
        port, _, own = _ENDS.unpack_from(body)
        if family == socket.AF_INET:
            found.add(Listener(IPv4Address(own[:4]), port))
            continue
        address = IPv6Address(own)
        found.add(Listener(address.ipv4_mapped or address, port))
        alone = attributes(body[_MESSAGE_SIZE:]).get(_ONLY_V6, b"\0")[0]
        if address.is_unspecified and not alone:
            found.add(Listener(IPv4Address(0), port))
    return frozenset(found)


def _listed(protocol: int, states: int, first: int, last: int) -> list[tuple[int, bytes]]:
    """Family and struct inet_diag_msg of each socket with a port of these. KernelError."""
    found: list[tuple[int, bytes]] = []
    try:
        with Netlink(_SOCK_DIAG) as netlink:
            for family in (socket.AF_INET, socket.AF_INET6):
                request = _REQUEST.pack(family, protocol, 0, 0, states)
                request += attribute(_BYTECODE, _range(first, last))
                found += ((family, body) for body in netlink.ask(_BY_FAMILY, request, DUMP))
    except OSError as error:
        hint = "the module inet_diag is missing" if error.errno == errnos.ENOENT else ""
        raise KernelError("list sockets", error.errno or 0, hint) from error
    return found


def _range(first: int, last: int) -> bytes:
    """The kernel's filter. An operation says how far it is to the next one, and to past the end."""
    end = 2 * _OP.size + 4
    return _OP.pack(_AT_LEAST, _OP.size, end, 0, first) + _OP.pack(
        _AT_MOST, _OP.size, end - _OP.size, 0, last
    )


class Ends(NamedTuple):
    """A connected socket, by what it is connected to and by its cookie."""

    family: int
    """AF_INET or AF_INET6."""
    protocol: int
    local: tuple[bytes, int]
    """Address, 16 bytes of which an IPv4 one is the last four, and port."""
    remote: tuple[bytes, int]
    ifindex: int
    """The device that it is bound to, 0 for none."""
    cookie: int


def destroy(sockets: Sequence[Ends]) -> list[int]:
    """End connections, with ECONNABORTED for those who have them (4.5; UDP 4.9).

    Returns 0 or an error number for each: ENOENT where there is no such socket (any more),
    EOPNOTSUPP where the kernel was built without (CONFIG_INET_DIAG_DESTROY). KernelError.
    """
    try:
        with Netlink(_SOCK_DIAG) as netlink:
            return netlink.ask_each([(_DESTROY, _request(each), 0) for each in sockets])
    except OSError as error:
        raise KernelError("end sockets", error.errno or 0) from error


def _request(ends: Ends) -> bytes:
    (local, local_port), (remote, remote_port) = ends.local, ends.remote
    if ends.family == socket.AF_INET:
        local, remote = (each[12:] + bytes(12) for each in (local, remote))
    return _ONE.pack(
        ends.family,
        ends.protocol,
        0,
        0,
        _ANY_STATE,
        local_port.to_bytes(2, "big"),
        remote_port.to_bytes(2, "big"),
        local,
        remote,
        ends.ifindex,
        ends.cookie & _LOW,
        ends.cookie >> 32,
    )
