# SPDX-License-Identifier: Apache-2.0
"""What systemd is told."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from towpath.agent import systemd

if TYPE_CHECKING:
    from pathlib import Path


def test_nothing_is_sent_where_nobody_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent started by hand."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    systemd.ready("2 services")


@pytest.mark.parametrize("abstract", [False, True])
def test_each_state_is_one_datagram(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, abstract: bool
) -> None:
    """To a path, or to an abstract socket."""
    name = "@towpath-test" if abstract else str(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(name.replace("@", "\0"))
        systemd.ready("2 services")
        systemd.reloading()
        systemd.stopping()
        assert manager.recv(1024) == b"READY=1\nSTATUS=2 services"
        assert manager.recv(1024).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
        assert manager.recv(1024) == b"STOPPING=1"


def test_a_manager_that_can_not_be_told_stops_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said in the log, and the agent goes on."""
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    systemd.reloading()
    assert "systemd could not be told RELOADING=1: " in caplog.text
