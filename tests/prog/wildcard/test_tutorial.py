# SPDX-License-Identifier: Apache-2.0
"""What docs/wildcard.md shows works as it stands there, with real packets."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from towpath.kernel.bpf import bpffs
from towpath.kernel.net import interfaces
from towpath.kernel.net.netns import new_netns

if TYPE_CHECKING:
    from collections.abc import Iterator

TUTORIAL = Path(__file__).parents[3] / "docs" / "wildcard.md"
SERVER = "192.0.2.1"
DENIED, OTHER = "203.0.113.7", "203.0.113.200"


def blocks(language: str) -> list[str]:
    """The tutorial's code in a language, block by block."""
    block = rf"^```{language}\n(.*?)^```$"
    return re.findall(block, TUTORIAL.read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the tutorial's program has been compiled as it says."""
    (program,) = blocks("c")
    (tmp_path / "acl.bpf.c").write_text(program)
    (command,) = blocks("sh")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    subprocess.run(["sh", "-euc", command], cwd=tmp_path, check=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@contextmanager
def network() -> Iterator[None]:
    """A namespace whose loopback device has the addresses that the tutorial speaks of."""
    with new_netns(), interfaces.connected() as wire:
        index = interfaces.device_index("lo")
        wire.link("set", index=index, state="up")
        for address in (SERVER, DENIED, OTHER):
            wire.addr("add", index=index, address=address, prefixlen=32)
        yield


def arrives(source: str, port: int) -> bool:
    """Whether a datagram from there gets to the server's port."""
    with (
        closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as server,
        closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as client,
    ):
        server.bind((SERVER, port))
        client.bind((source, 0))
        client.sendto(b"?", (SERVER, port))
        # Over loopback a datagram is there when it has been sent, or has been dropped.
        server.settimeout(0)
        try:
            return server.recv(16) == b"?"
        except BlockingIOError:
            return False


@pytest.mark.thorough
def test_the_tutorial(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each step filters what it says it does, and the last one finds the rules again."""
    steps = blocks("python")
    names: dict[str, Any] = {"device": "lo"}
    del directory
    try:
        with network():
            assert arrives(DENIED, 5353)
            _run(steps[0], names)
            assert not arrives(DENIED, 5353)
            assert arrives(DENIED, 53)
            _run(steps[1], names)
            assert not arrives(DENIED, 5353)
            assert not arrives(DENIED, 1024)
            assert arrives(OTHER, 5353)  # the rule is for half of the network now
            assert arrives(DENIED, 53)
            for step in steps[2:]:
                _run(step, names)
            assert capsys.readouterr().out == "1 rules\n"
            assert not arrives(DENIED, 5353)
            names["acl"].delete(names["net"])
            assert arrives(DENIED, 5353)
    finally:
        for name in ("acl", "link", "program"):
            if name in names:
                names[name].close()
        for pinned in ("acl", "acl-link"):
            path = bpffs.ROOT / pinned
            path.unlink() if path.is_file() else bpffs.remove_pins(path)


def _run(step: str, names: dict[str, Any]) -> None:
    exec(compile(step, str(TUTORIAL), "exec"), names)  # noqa: S102 -- that is the test
