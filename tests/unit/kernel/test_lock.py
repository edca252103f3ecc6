# SPDX-License-Identifier: Apache-2.0
"""One process at a time on a state directory."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from towpath.kernel.errors import KernelError
from towpath.kernel.lock import exclusive

if TYPE_CHECKING:
    from pathlib import Path


def test_second_holder_is_refused_and_told_the_first(tmp_path: Path) -> None:
    """Who has the lock is in the message."""
    refused = pytest.raises(KernelError, match=f"process {os.getpid()} has it")
    with exclusive(tmp_path), refused, exclusive(tmp_path):
        pytest.fail("two have it")


def test_the_holder_is_described(tmp_path: Path) -> None:
    """By its command, quoted: whoever has started it may have named it anything."""
    take = "import fcntl, os, sys; fcntl.flock(os.open(sys.argv[1], 0), fcntl.LOCK_EX)"
    code = f"'\x1b[31mred'; {take}; print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(KernelError) as refused, exclusive(tmp_path):
            pytest.fail("two have it")
        holder.communicate(b"\n")
    said = str(refused.value)
    assert f"process {holder.pid} has it (" in said
    assert "python" in said
    assert "-c '\\x1b[31mred'; import fcntl" in said
    assert said.endswith(f"of user {os.geteuid()})")


def test_lock_ends_with_the_block(tmp_path: Path) -> None:
    """It can be had again, also after a failure."""
    with pytest.raises(ZeroDivisionError), exclusive(tmp_path):
        raise ZeroDivisionError
    with exclusive(tmp_path):
        pass


def test_waiting_gets_it_when_it_is_free(tmp_path: Path) -> None:
    """With ``wait``, the second holder comes after the first."""
    order = []
    asked = threading.Event()

    def second() -> None:
        asked.set()
        with exclusive(tmp_path, wait=True):
            order.append("second")

    with exclusive(tmp_path):
        thread = threading.Thread(target=second)
        thread.start()
        assert asked.wait(10)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]


def test_no_directory_no_lock(tmp_path: Path) -> None:
    """A directory that isn't there is told by name."""
    refused = pytest.raises(KernelError, match=r"lock .*/nowhere: No such file or directory")
    with refused, exclusive(tmp_path / "nowhere"):
        pytest.fail("it isn't there")
