# SPDX-License-Identifier: Apache-2.0
"""The unix socket that the API is served on."""

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

MODE = 0o660  # the owner and the group may change what is balanced, others not even look
BACKLOG = 128


@contextmanager
def unix_socket(path: Path) -> Iterator[socket.socket]:
    """A listening socket at path, removed afterwards; its directory is made if absent.

    Raises AgentError when something that isn't a stale socket is in the way.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
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
