# SPDX-License-Identifier: Apache-2.0
"""The API's socket: who may use it, and what may be in its way."""

from __future__ import annotations

import os
import socket
import stat
from typing import TYPE_CHECKING

import pytest

from towpath.agent.errors import AgentError
from towpath.agent.http.listen import unix_socket

if TYPE_CHECKING:
    from pathlib import Path


def connected(path: Path) -> bool:
    """Whether somebody listens there."""
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


def test_owner_and_group_get_in_nobody_else(tmp_path: Path) -> None:
    """Mode 0660, in a directory that is made for it; nothing is left afterwards."""
    path = tmp_path / "run" / "agent.sock"
    with unix_socket(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert connected(path)
    assert not path.exists()


def test_what_a_killed_agent_left_is_replaced(tmp_path: Path) -> None:
    """A socket file that nobody listens on."""
    path = tmp_path / "agent.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with unix_socket(path):
        assert connected(path)


def test_another_agents_socket_is_left_alone(tmp_path: Path) -> None:
    """It goes on answering."""
    path = tmp_path / "agent.sock"
    with unix_socket(path):
        with pytest.raises(AgentError, match="another agent answers at"), unix_socket(path):
            pass
        assert connected(path)


def test_a_file_in_the_way_is_left_alone(tmp_path: Path) -> None:
    """It may be anything."""
    path = tmp_path / "agent.sock"
    path.write_text("precious")
    with pytest.raises(AgentError, match="is in the way and is not a socket"), unix_socket(path):
        pass
    assert path.read_text() == "precious"


def test_a_directory_that_can_not_be_made_is_said(tmp_path: Path) -> None:
    """With the path."""
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "agent.sock"
    with pytest.raises(AgentError, match=r"can't listen on .*agent\.sock"), unix_socket(path):
        pass


def test_the_path_of_a_successor_is_not_removed(tmp_path: Path) -> None:
    """Whoever took the path over meanwhile keeps it."""
    path = tmp_path / "agent.sock"
    with unix_socket(path):
        path.unlink()
        path.write_text("successor")
    assert path.read_text() == "successor"


def test_the_group_gets_to_it(tmp_path: Path) -> None:
    """Where its directory is made, whatever the umask is; one that is there stays as it is."""
    path = tmp_path / "run" / "agent.sock"
    before = os.umask(0o077)
    try:
        with unix_socket(path):
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o755
        path.parent.chmod(0o750)
        with unix_socket(path):
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o750
    finally:
        os.umask(before)
