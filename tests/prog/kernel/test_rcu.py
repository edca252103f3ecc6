# SPDX-License-Identifier: Apache-2.0
"""Waiting for programs that are running, with one that takes long."""

from __future__ import annotations

import errno
import threading
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from towpath.kernel import _libc
from towpath.kernel.bpf import rcu
from towpath.kernel.bpf.object import BpfObject

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ROUNDS = 10


class Epochs:
    """The two words that program and test share."""

    def __init__(self, stack: ExitStack, made: BpfObject) -> None:
        self._data: Any = stack.enter_context(made.maps[".data"].mmap()).array[0]
        self._bss: Any = stack.enter_context(made.maps[".bss"].mmap()).array[0]
        self.current = 1

    def advance(self) -> None:
        """Unpublish the epoch that there was, in the middle of a run."""
        deadline = time.monotonic() + 60  # on a busy machine the two seldom run at once
        while not self.working():
            assert time.monotonic() < deadline, "the program doesn't run"
            time.sleep(0)  # lets the other thread start a run
        self.current += 1
        self._data["epoch"] = self.current

    def working(self) -> int:
        """Which epoch the program is working with, 0 when it isn't running."""
        return int(self._bss["working"])


@pytest.fixture
def epochs(objects: Path) -> Iterator[Epochs]:
    """Run the slow program over and over in a thread."""
    stop = threading.Event()
    with ExitStack() as stack:
        made = stack.enter_context(BpfObject(objects / "slow.bpf.o"))
        made.load()

        def run() -> None:
            while not stop.is_set():
                made.programs["linger"].test_run(bytes(64))

        shared = Epochs(stack, made)
        thread = threading.Thread(target=run)
        thread.start()
        stack.callback(thread.join)
        stack.callback(stop.set)
        yield shared


def refuse(_command: int) -> None:
    """Answer as membarrier(2) does on a kernel with nohz_full= CPUs."""
    raise OSError(errno.EINVAL, "Invalid argument")


@pytest.mark.parametrize("membarrier", [_libc.membarrier, refuse], ids=["works", "refuses"])
def test_no_run_from_before_goes_on_after(
    epochs: Epochs, membarrier: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever still works with what was there before has finished when the wait is over."""
    monkeypatch.setattr(_libc, "membarrier", membarrier)
    for _ in range(ROUNDS):
        epochs.advance()
        rcu.wait_for_readers()
        assert epochs.working() in {0, epochs.current}


def test_without_waiting_they_do(epochs: Epochs) -> None:
    """The program above is slow enough for the difference to be seen."""
    caught = 0
    for _ in range(ROUNDS):
        epochs.advance()
        caught += epochs.working() not in {0, epochs.current}
    assert caught
