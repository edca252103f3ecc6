# SPDX-License-Identifier: Apache-2.0
"""Follows a network namespace's configuration: what the kernel tells by netlink multicast.

A socket that isn't read for too long loses messages, and is told so once (ENOBUFS). Whoever
follows anything then has to ask for all of it anew: `Watch.read` returns None, and `Watch.ask`
asks. The socket itself goes on. That is why it is one of our own: pyroute2's answers nothing any
more after that. Its message classes know all attributes, and `decoded` gives them.
"""

from __future__ import annotations

import errno as errnos
import socket
from contextlib import ExitStack, nullcontext, suppress
from enum import IntEnum
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from towpath.closeable import Closeable
from towpath.kernel.net.messages import DUMP, ROUTE, Netlink, message, split
from towpath.kernel.net.netns import in_netns

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1  # <linux/netlink.h>
_SO_RCVBUFFORCE = 33
_BUFFER = 1 << 22
"""Bytes of messages that wait to be read; some 2,000 of devices, or 10,000 of routes."""
_LARGEST = 1 << 17
_KERNEL = 0  # the port that its messages come from


class Group(IntEnum):
    """What can be followed: RTNLGRP_* of <linux/rtnetlink.h>."""

    LINK = 1
    NEIGHBOUR = 3
    TC = 4
    """Qdiscs, classes and filters."""
    IPV4_ADDRESS = 5
    IPV4_ROUTE = 7
    IPV4_RULE = 8
    IPV6_ADDRESS = 9
    IPV6_ROUTE = 11
    IPV6_RULE = 19
    IPV4_NETCONF = 24
    """Forwarding and a few other settings of devices."""
    IPV6_NETCONF = 25
    NEXT_HOP = 32
    """Objects of `ip nexthop`, since 5.3."""


class Change(NamedTuple):
    """A message: something is there, is otherwise, or is gone."""

    kind: int
    """RTM_*, such as 16 (RTM_NEWLINK)."""
    body: bytes
    """From the fixed part on, such as ``struct ifinfomsg``, in host byte order."""


class Watch(Closeable):
    """Follows some groups in a namespace: the calling thread's, or ``netns`` as `in_netns` has it.

    What changes from when this is made on is never missed without a word. So follow first, then
    `ask` for what is there. Not thread-safe. A context manager, which closes. KernelError: there
    is no such namespace. OSError: there can be no such socket, or not such a group.
    """

    def __init__(
        self,
        groups: Iterable[Group],
        netns: str | Path | int | None = None,
        *,
        buffer: int = _BUFFER,
    ) -> None:
        with ExitStack() as undo:
            with nullcontext() if netns is None else in_netns(netns):
                self._socket = undo.enter_context(
                    socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, ROUTE)
                )
                self._asking = undo.enter_context(Netlink(ROUTE))
            self._socket.setblocking(False)  # noqa: FBT003 -- its only argument
            with suppress(PermissionError):  # it is smaller then
                self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, buffer)
            self._socket.bind((0, 0))
            for group in groups:
                self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
            self._undo = undo.pop_all()

    def fileno(self) -> int:
        """The descriptor that is readable when something has changed."""
        return self._socket.fileno()

    def read(self) -> list[Change] | None:
        """What has changed since the last call, in its order; waits for nothing.

        None: some of it was lost, so that all has to be asked for again.
        """
        found: list[Change] = []
        lost = False
        while True:
            try:
                data, _, flags, sender = self._socket.recvmsg(_LARGEST)
            except BlockingIOError:
                return None if lost else found
            except OSError as error:
                if error.errno != errnos.ENOBUFS:
                    raise
                lost = True
                continue
            lost = lost or bool(flags & socket.MSG_TRUNC)
            if sender[0] == _KERNEL:
                found += (Change(each.kind, each.body) for each in split(data))

    def ask(self, kind: int, body: bytes) -> list[Change]:
        """All that there is of a kind: RTM_GET*, and the fixed part of its message.

        What changes meanwhile comes by `read`. OSError: it was refused.
        """
        return [Change(kind - 2, each) for each in self._asking.ask(kind, body, DUMP)]

    def ask_one(self, kind: int, body: bytes) -> Change:
        """The one thing of a kind that ``body`` names. OSError: there is none."""
        return Change(kind - 2, self._asking.ask(kind, body)[0])

    def close(self) -> None:
        """Follow no longer. Twice is once."""
        self._undo.close()


def decoded(change: Change) -> Any:
    """The message as pyroute2 has it: fields by ``[name]``, attributes by ``get(name)``.

    KeyError: it knows no such message.
    """
    made = _classes()[change.kind](message(*change))
    made.decode()
    return made


@cache
def _classes() -> dict[int, Any]:
    from pyroute2.netlink.rtnl.marshal import MarshalRtnl  # noqa: PLC0415 -- takes long to import

    return dict(MarshalRtnl().msg_map)
