# SPDX-License-Identifier: Apache-2.0
"""Netlink messages put together by hand: for probes, for many at once, for following the kernel.

Everything else speaks netlink by way of pyroute2. That takes longer to import than all probes
together take to run, lacks some of what they ask for, and reads 10,000 routes in a second or two;
a socket of its that has lost messages answers nothing any more (:mod:`towpath.kernel.net.watch`).
"""

from __future__ import annotations

import os
import socket
import struct
from typing import TYPE_CHECKING, NamedTuple, Self

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType

ROUTE = 0  # NETLINK_ROUTE
GENERIC = 16  # NETLINK_GENERIC

# Flags of a request, <linux/netlink.h>.
DUMP = 0x300
CREATE = 0x400 | 0x200  # NLM_F_CREATE | NLM_F_EXCL
REPLACE = 0x400 | 0x100  # NLM_F_CREATE | NLM_F_REPLACE

_SOL_NETLINK, _GET_STRICT_CHK = 270, 12
_REQUEST, _ACK = 0x1, 0x4
_INTERRUPTED = 0x10  # NLM_F_DUMP_INTR: things changed while they were listed
_ERROR, _DONE = 2, 3  # NLMSG_ERROR, NLMSG_DONE
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
_ATTRIBUTE = struct.Struct("=HH")  # struct nlattr
_TYPE_MASK = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER
_MAX_MESSAGE = 1 << 16
# So few that all answers fit into a receive buffer of the default size, 208 KiB: a short one is
# charged 768 bytes of it, a route with many next hops up to 2 KiB.
_AT_ONCE = 64
_MAX_DUMP_TRIES = 8


class Received(NamedTuple):
    """One message: its type, flags, the number of the request that it answers, and its body."""

    kind: int
    flags: int
    sequence: int
    body: bytes


class Netlink:
    """A netlink socket in the calling thread's network namespace. A context manager."""

    def __init__(self, protocol: int, *, strict: bool = False) -> None:
        """``strict``: the kernel looks at all that a list is asked for by (4.20), or refuses."""
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
        self._sequence = 0
        if strict:
            self._socket.setsockopt(_SOL_NETLINK, _GET_STRICT_CHK, 1)

    def ask(self, kind: int, body: bytes, flags: int = 0) -> list[bytes]:
        """Send a request; the bodies of all messages that answer it. OSError: it was refused.

        A list of what changes all the time may have something twice, or not.
        """
        for _ in range(_MAX_DUMP_TRIES):
            *answers, end = self._ask(kind, body, flags)
            if not any(each.flags & _INTERRUPTED for each in (*answers, end)):
                break
        return [each.body for each in answers]

    def _ask(self, kind: int, body: bytes, flags: int) -> list[Received]:
        """What answers a request, the end of it included."""
        self._socket.send(self._message(kind, body, flags | _ACK))
        return list(self._answers())

    def first(self, kind: int, body: bytes, most: int) -> list[bytes]:
        """Ask for a list; the bodies of its first ``most`` messages, or a few more.

        For a socket that asks nothing else: the kernel waits for the rest to be read. OSError.
        """
        self._socket.send(self._message(kind, body, DUMP | _ACK))
        found: list[bytes] = []
        for each in self._answers():
            if each.kind in (_ERROR, _DONE) or len(found) >= most:
                break
            found.append(each.body)
        return found

    def ask_each(self, requests: Sequence[tuple[int, bytes, int]]) -> list[int]:
        """Send many requests (kind, body, flags) in order, some at once.

        Returns 0 or an error number for each; one that is refused doesn't keep back the others.
        """
        acked = [(kind, body, flags | _ACK) for kind, body, flags in requests]
        return [each if isinstance(each, int) else 0 for each in self._in_parts(acked)]

    def answers(self, kind: int, questions: Sequence[bytes]) -> list[bytes | int]:
        """Ask many questions, some at once: the body of each one's answer, or an error number."""
        return self._in_parts([(kind, body, 0) for body in questions])

    def _in_parts(self, requests: Sequence[tuple[int, bytes, int]]) -> list[bytes | int]:
        found: list[bytes | int] = []
        for begin in range(0, len(requests), _AT_ONCE):
            found += self._at_once(requests[begin : begin + _AT_ONCE])
        return found

    def _at_once(self, requests: Sequence[tuple[int, bytes, int]]) -> list[bytes | int]:
        """The kernel has answered all before send() returns."""
        first = self._sequence + 1
        self._socket.send(b"".join([self._message(*each) for each in requests]))
        found: dict[int, bytes | int] = {}
        unpack, size = _HEADER.unpack_from, _HEADER.size
        while len(found) < len(requests):
            # As `split` does: there may be a hundred thousand.
            received = self._socket.recv(_MAX_MESSAGE)
            at, end = 0, len(received) - size
            while at <= end:
                length, kind, _, sequence, _ = unpack(received, at)
                if length < size:
                    break
                if sequence >= first:
                    body = received[at + size : at + length]
                    found[sequence - first] = _errno(body) if kind == _ERROR else body
                at += length + -length % 4
        return [found[number] for number in range(len(requests))]

    def _message(self, kind: int, body: bytes, flags: int) -> bytes:
        self._sequence += 1
        head = (_HEADER.size + len(body), kind, flags | _REQUEST, self._sequence, 0)
        return _HEADER.pack(*head) + body + bytes(-len(body) % 4)

    def _answers(self) -> Iterator[Received]:
        while True:
            for each in split(self._socket.recv(_MAX_MESSAGE)):
                if each.sequence != self._sequence:
                    continue  # of a request whose answers nobody read to the end
                yield each
                if each.kind in (_ERROR, _DONE):
                    _check(each.body)
                    return

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
    """Take attributes apart: their values by type, the last one of each."""
    found: dict[int, bytes] = {}
    at, end, unpack = 0, len(data) - _ATTRIBUTE.size, _ATTRIBUTE.unpack_from
    while at <= end:
        length, kind = unpack(data, at)
        if length < _ATTRIBUTE.size:
            break
        found[kind & _TYPE_MASK] = data[at + _ATTRIBUTE.size : at + length]
        at += length + -length % 4
    return found


def each_attribute(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and value of each attribute, in their order."""
    at, end = 0, len(data) - _ATTRIBUTE.size
    while at <= end:
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < _ATTRIBUTE.size:
            return
        yield kind & _TYPE_MASK, data[at + _ATTRIBUTE.size : at + length]
        at += _padded(length)


def text(value: str) -> bytes:
    """A string as attributes have it: with a zero at its end."""
    return value.encode() + b"\0"


def split(received: bytes) -> Iterator[Received]:
    """The messages in what a socket gave."""
    at, end = 0, len(received) - _HEADER.size
    while at <= end:
        length, kind, flags, sequence, _ = _HEADER.unpack_from(received, at)
        if length < _HEADER.size:
            return
        yield Received(kind, flags, sequence, received[at + _HEADER.size : at + length])
        at += _padded(length)


def message(kind: int, body: bytes) -> bytes:
    """A message with its header, as others' parsers want it."""
    return _HEADER.pack(_HEADER.size + len(body), kind, 0, 0, 0) + body


def _padded(length: int) -> int:
    return length + -length % 4


def _check(body: bytes) -> None:
    """The error number at the beginning of NLMSG_ERROR and NLMSG_DONE: 0 is success."""
    number = _errno(body)
    if number:
        raise OSError(number, os.strerror(number))


def _errno(body: bytes) -> int:
    return -int(struct.unpack_from("=i", body)[0])
