# SPDX-License-Identifier: Apache-2.0
"""A connection of a check, with or without TLS.

On sockets, not on asyncio's transports: closing one is then immediate and complete, whatever
it was waiting for, and thousands of checks leave nothing behind.
"""

from __future__ import annotations

import asyncio
import errno
import os
import ssl
from contextlib import closing, contextmanager
from functools import cache
from typing import TYPE_CHECKING

from towpath.agent.health.target import CheckFailedError, CheckNotMadeError
from towpath.datapath.errors import DatapathError
from towpath.kernel.errors import KernelError

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from towpath.agent.health.target import ProbePath, Target

CHUNK = 16384
# What connect() says of this node and not of the other end: no route to the loopback device, a
# rule of a local firewall, no ports.
_OURS = (errno.ENETUNREACH, errno.EPERM, errno.EACCES, errno.EADDRNOTAVAIL, errno.ENOBUFS)


@contextmanager
def opened(path: ProbePath, target: Target) -> Iterator[socket.socket]:
    """A socket in the block that reaches the target once it is connected. CheckNotMadeError."""
    try:
        made = path.connection(target.asked)
    except (OSError, KernelError, DatapathError) as error:
        raise CheckNotMadeError(str(error)) from error
    with closing(made):
        yield made


async def connect(connection: socket.socket, target: Target) -> None:
    """Connect to the target. CheckFailedError, CheckNotMadeError."""
    loop = asyncio.get_running_loop()
    try:
        await loop.sock_connect(connection, (str(target.to), target.port))
    except OSError as error:
        kind = CheckNotMadeError if error.errno in _OURS else CheckFailedError
        raise kind(f"can't connect: {reason(error)}") from error


class Plain:
    """Bytes over a socket."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._loop = asyncio.get_running_loop()

    async def send(self, data: bytes) -> None:
        """Send all of it. CheckFailedError."""
        try:
            await self._loop.sock_sendall(self._socket, data)
        except OSError as error:
            raise CheckFailedError(f"can't send: {reason(error)}") from error

    async def receive(self) -> bytes:
        """Return some bytes, none at the end. CheckFailedError."""
        try:
            return await self._loop.sock_recv(self._socket, CHUNK)
        except OSError as error:
            raise CheckFailedError(f"can't receive: {reason(error)}") from error


class Tls:
    """Bytes over TLS over a socket.

    CheckFailedError: the other end doesn't speak it, or not rightly.
    """

    def __init__(
        self, connection: socket.socket, host: str, *, verify: bool, protocol: str | None = None
    ) -> None:
        """``protocol``: what is offered by ALPN."""
        self._stream = Plain(connection)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context(verify=verify, protocol=protocol).wrap_bio(
            self._incoming, self._outgoing, server_hostname=host
        )

    async def handshake(self) -> None:
        """Agree on keys, and look at the certificate if that is asked for."""
        while True:
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                await self._exchange()
            except ssl.SSLError as error:
                raise CheckFailedError(f"no TLS: {_tls_reason(error)}") from error
        await self._flush()

    @property
    def certificate(self) -> bytes:
        """The other end's, in DER; nothing if it has shown none."""
        return self._tls.getpeercert(binary_form=True) or b""

    async def send(self, data: bytes) -> None:
        """Send all of it."""
        try:
            self._tls.write(data)
        except ssl.SSLError as error:
            raise CheckFailedError(f"no TLS: {_tls_reason(error)}") from error
        await self._flush()

    async def receive(self) -> bytes:
        """Return some bytes, none at the end."""
        while True:
            try:
                return self._tls.read(CHUNK)
            except ssl.SSLWantReadError:
                await self._exchange()
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                return b""
            except ssl.SSLError as error:
                raise CheckFailedError(f"no TLS: {_tls_reason(error)}") from error

    async def _exchange(self) -> None:
        await self._flush()
        if data := await self._stream.receive():
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    async def _flush(self) -> None:
        if data := self._outgoing.read():
            await self._stream.send(data)


@cache
def context(*, verify: bool, protocol: str | None = None) -> ssl.SSLContext:
    """Settings for TLS, made once: reading the authorities takes milliseconds."""
    made = ssl.create_default_context() if verify else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if not verify:
        # The question is whether the backend answers, not who it is.
        made.check_hostname = False
        made.verify_mode = ssl.CERT_NONE
    if protocol is not None:
        made.set_alpn_protocols([protocol])
    return made


def reason(error: OSError) -> str:
    """What an error number means; asyncio's own words have addresses in them."""
    return os.strerror(error.errno).lower() if error.errno else str(error)


def _tls_reason(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate: {error.verify_message}"
    return (error.reason or str(error)).replace("_", " ").lower()
