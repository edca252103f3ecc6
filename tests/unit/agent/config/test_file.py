# SPDX-License-Identifier: Apache-2.0
"""The configuration file: read, or refused."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from towpath.agent.config import load
from towpath.agent.config.file import ConfigFile
from towpath.agent.errors import AgentError
from towpath.model import ConfigError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A right file."""
    path = tmp_path / "towpath.yaml"
    path.write_text("devices: [eth0]\n")
    return path


def test_a_right_file_is_in_force(path: Path) -> None:
    """And known by its path."""
    file = ConfigFile(path)
    assert [device.name for device in file.first.devices] == ["eth0"]
    assert file.path == path


def test_a_wrong_file_names_file_line_field_and_what_is_allowed(path: Path) -> None:
    """All of it, for every problem."""
    path.write_text("devices: [eth0]\nlimits:\n  services: 0\nspeed: 9\n")
    with pytest.raises(ConfigError) as caught:
        ConfigFile(path)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith(f"{path}:3: limits.services: 0 is out of range; allowed: 1 to")
    assert lines[1].startswith(f"{path}:4: speed: unknown key; allowed: devices, source")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "can't be read: No such file or directory"),
        (b"\xff\xfe", "can't be read: 'utf-8' codec can't decode byte 0xff"),
        (b"devices: [", "not YAML"),
        (b"", "devices: is missing"),
    ],
)
def test_a_file_that_can_not_be_read_is_refused(
    path: Path, content: bytes | None, message: str
) -> None:
    """With its name and the reason."""
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        ConfigFile(path)
    assert caught.value.problems[0].file == str(path)


def test_what_says_nothing_of_the_file_does_not_refuse_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is ended from outside, and one that finds no open files in the system."""
    kill = (sys.executable, "-c", "import os; os.kill(os.getpid(), 9)")
    monkeypatch.setattr(load, "python", lambda *_: kill)
    with pytest.raises(AgentError, match=r"could not be read: .*SIGKILL"):
        ConfigFile(path)
    full = "from towpath.agent.config import load; import errno, os; from pathlib import Path"
    fail = "def fails(*_, **__): raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))"
    script = f"{full}\n{fail}\nPath.read_text = fails\nload.main()"
    monkeypatch.setattr(load, "python", lambda *_: (sys.executable, "-c", script, str(path)))
    with pytest.raises(AgentError, match="could not be read: Too many open files in system"):
        ConfigFile(path)
