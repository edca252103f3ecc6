# SPDX-License-Identifier: Apache-2.0
"""Netlink messages put together by hand, for probes.

Everything else speaks netlink by way of pyroute2, which takes longer to import than all probes
together take to run, and which lacks some of what they ask for.
"""

from __future__ import annotations

import os
import socket
import struct
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

ROUTE = 0  # NETLINK_ROUTE
GENERIC = 16  # NETLINK_GENERIC

# Flags of a request, <linux/netlink.h>.
DUMP = 0x300
CREATE = 0x400 | 0x200  # NLM_F_CREATE | NLM_F_EXCL

_REQUEST, _ACK = 0x1, 0x4
_ERROR, _DONE = 2, 3  # NLMSG_ERROR, NLMSG_DONE
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
_ATTRIBUTE = struct.Struct("=HH")  # struct nlattr
_TYPE_MASK = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER
_MAX_MESSAGE = 1 << 16


class Netlink:
    """A netlink socket in the calling thread's network namespace. A context manager."""

    def __init__(self, protocol: int) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
        self._sequence = 0

    def ask(self, kind: int, body: bytes, flags: int = 0) -> list[bytes]:
        """Send a request; the bodies of all messages that answer it. OSError: it was refused."""
        self._sequence += 1
        flags |= _REQUEST | _ACK
        length = _HEADER.size + len(body)
        self._socket.send(_HEADER.pack(length, kind, flags, self._sequence, 0) + body)
        return list(self._answers())

    def _answers(self) -> Iterator[bytes]:
        while True:
            received = self._socket.recv(_MAX_MESSAGE)
            for kind, sequence, body in _split(received):
                if sequence != self._sequence:
                    continue  # of a request whose answers nobody read to the end
                if kind in (_ERROR, _DONE):
                    _check(body)
                    return
                yield body

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._socket.close()


def attribute(kind: int, value: bytes | int) -> bytes:
    """One attribute; a number is a ``__u32``. Attributes nest by concatenation."""
    data = struct.pack("=I", value) if isinstance(value, int) else value
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(data), kind) + data + bytes(-len(data) % 4)


def attributes(data: bytes) -> dict[int, bytes]:
    """Take attributes apart: their values by type."""
    found = {}
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        if length < _ATTRIBUTE.size:
            break
        found[kind & _TYPE_MASK] = data[_ATTRIBUTE.size : length]
        data = data[_padded(length) :]
    return found


def text(value: str) -> bytes:
    """A string as attributes have it: with a zero at its end."""
    return value.encode() + b"\0"


def _split(received: bytes) -> Iterator[tuple[int, int, bytes]]:
    while len(received) >= _HEADER.size:
        length, kind, _, sequence, _ = _HEADER.unpack_from(received)
        yield kind, sequence, received[_HEADER.size : length]
        received = received[_padded(length) :]


def _padded(length: int) -> int:
    return length + -length % 4


def _check(body: bytes) -> None:
    """The error number at the beginning of NLMSG_ERROR and NLMSG_DONE: 0 is success."""
    number = -struct.unpack_from("=i", body)[0]
    if number:
        raise OSError(number, os.strerror(number))
