# SPDX-License-Identifier: Apache-2.0
"""Takes connections from a listening socket."""

from __future__ import annotations

import asyncio
import errno
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

# Of one connection that is gone before it was taken, not of the listener (accept(2)).
_PASSING = (
    errno.ECONNABORTED,
    errno.ENETDOWN,
    errno.EPROTO,
    errno.ENOPROTOOPT,
    errno.EHOSTDOWN,
    errno.ENONET,
    errno.EHOSTUNREACH,
    errno.EOPNOTSUPP,
    errno.ENETUNREACH,
)


async def accept(listener: socket.socket, make: Callable[[], asyncio.Protocol]) -> None:
    """Give every connection a protocol that ``make`` makes, until this is cancelled.

    OSError: no connection can be taken now, as when there are too many open files; those that
    come wait until this is called again. asyncio's own server logs such an error, with its
    traceback, as often as its backlog is long, and does so every second.
    """
    loop = asyncio.get_running_loop()
    while True:
        try:
            connection, _ = await loop.sock_accept(listener)
        except OSError as error:
            if error.errno in _PASSING:
                continue
            raise
        try:
            await loop.connect_accepted_socket(make, connection)
        except BaseException:
            connection.close()
            raise
