# SPDX-License-Identifier: Apache-2.0
"""The sockets that the agent listens on: a unix socket for the API, TCP for metrics."""

from __future__ import annotations

import os
import socket
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING

from towpath.agent.errors import AgentError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from towpath.model import Address

MODE = 0o660  # the owner and the group may change what is balanced, others not even look
_DIRECTORY_MODE = 0o755
BACKLOG = 1024


@contextmanager
def unix_socket(path: Path) -> Iterator[socket.socket]:
    """A listening socket at path, removed afterwards; its directory is made if absent.

    Raises AgentError when something that isn't a stale socket is in the way.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        try:
            _make_directory(path.parent)
            _clear(path)
            _bind(server, path)
        except OSError as error:
            raise AgentError(f"can't listen on {path}: {error.strerror}") from error
        made = path.stat().st_ino
        server.listen(BACKLOG)
        server.settimeout(0)
        try:
            yield server
        finally:
            # Not another agent's that took the path over meanwhile.
            if path.exists() and path.stat().st_ino == made:
                path.unlink()


@contextmanager
def metrics_socket(address: tuple[Address, int] | None) -> Iterator[socket.socket | None]:
    """A listening socket for metrics, apart from the API, which has none but its unix socket.

    None: there is none. Raises AgentError.
    """
    if address is None:
        yield None
        return
    host, port = str(address[0]), address[1]
    family = socket.AF_INET if address[0].version == 4 else socket.AF_INET6  # noqa: PLR2004
    with socket.socket(family, socket.SOCK_STREAM) as server:
        try:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind((host, port))
            server.listen(BACKLOG)
        except OSError as error:
            raise AgentError(
                f"metrics.listen: can't listen on {host} port {port}: {error.strerror}"
            ) from error
        server.settimeout(0)
        yield server


def _make_directory(directory: Path) -> None:
    """Make one that the socket's group can get into, whatever this process's umask is."""
    try:
        directory.mkdir(parents=True)
    except FileExistsError:
        return
    directory.chmod(_DIRECTORY_MODE)


def _bind(server: socket.socket, path: Path) -> None:
    """Bind with the mode the socket is to have: at no moment do others get in."""
    before = os.umask(0o777 & ~MODE)
    try:
        server.bind(str(path))
    finally:
        os.umask(before)


def _clear(path: Path) -> None:
    """Remove a socket that nobody listens on, which is what a killed agent leaves."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise AgentError(f"{path} is in the way and is not a socket; remove it")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
        else:
            raise AgentError(f"another agent answers at {path}; stop it or set api.socket")
