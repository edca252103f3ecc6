# SPDX-License-Identifier: Apache-2.0
"""Directories that nobody else can open."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from towpath.kernel.private import make_private

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True, params=[0o022, 0o000, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever the umask is."""
    before = os.umask(request.param)
    yield
    os.umask(before)


def mode(directory: Path) -> int:
    """Who may do what."""
    return stat.S_IMODE(directory.stat().st_mode)


def test_one_that_is_made_is_its_owner_s(tmp_path: Path) -> None:
    """What it is in is as usual."""
    make_private(tmp_path / "lib" / "state")
    assert mode(tmp_path / "lib" / "state") == 0o700
    (tmp_path / "other").mkdir()
    assert mode(tmp_path / "lib") == mode(tmp_path / "other")


def test_one_of_before_is_closed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """And that is said, once."""
    caplog.set_level("INFO")
    state = tmp_path / "state"
    state.mkdir()
    state.chmod(0o755)
    (state / "state.db").touch()
    for _ in range(2):
        make_private(state, lambda name: name.startswith("state.db"))
        assert mode(state) == 0o700
    assert len(caplog.records) == 1


def test_one_that_holds_more_is_left(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Others may have to get at that: a socket, say."""
    tmp_path.chmod(0o755)
    for name in ("state.db", "agent.sock"):
        (tmp_path / name).touch()
    make_private(tmp_path, lambda name: name.startswith("state.db"))
    assert mode(tmp_path) == 0o755
    assert "can be opened by other users" in caplog.text


def test_one_of_another_user_is_left(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It isn't this one's to close."""
    state = tmp_path / "state"
    state.mkdir()
    state.chmod(0o755)
    os.chown(state, 65534, 65534)
    make_private(state)
    assert mode(state) == 0o755
    assert "can be opened by other users" in caplog.text


def test_who_can_get_through_only_can_hold_no_lock(tmp_path: Path) -> None:
    """So nothing is said of that, nor changed."""
    tmp_path.chmod(0o711)
    make_private(tmp_path)
    assert mode(tmp_path) == 0o711
