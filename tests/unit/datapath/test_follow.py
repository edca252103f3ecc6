# SPDX-License-Identifier: Apache-2.0
"""What follows a node goes on following, whatever happens to it."""

from __future__ import annotations

import logging
from threading import Event
from typing import TYPE_CHECKING

import pytest

from towpath.closeable import Closeable
from towpath.datapath import follow
from towpath.datapath.follow import NodeFollower
from towpath.kernel.errors import KernelError
from towpath.lab.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Sequence

LIMIT = 30


class Node(Closeable):
    """Fails as often as it is told to."""

    troubles: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.failures: list[Exception] = []
        self.well = Event()

    def filenos(self) -> Sequence[int]:
        """None."""
        return ()

    def read(self) -> bool:
        """Nothing is told."""
        return False

    def sync(self) -> None:
        """Fail, or be well."""
        if self.failures:
            raise self.failures.pop()
        self.well.set()

    def put_right(self) -> None:
        """Nothing."""

    def detach(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class Follower(NodeFollower[Node]):
    """Looks all the time."""

    name = "a node"
    resync_seconds = 0.01


@pytest.mark.parametrize(
    ("error", "trouble", "traced"),
    [
        (KernelError("read", 5, "again"), "again", False),
        (RuntimeError("can't start new thread"), "can't start new thread", True),
        (MemoryError(), "MemoryError", True),
    ],
)
def test_a_failure_is_told_and_is_no_end(
    error: Exception,
    trouble: str,
    traced: bool,  # noqa: FBT001 -- a case
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Once, with where it happened if nobody has expected it; and that it is over."""
    monkeypatch.setattr(follow, "RETRY_SECONDS", 0.01)
    caplog.set_level(logging.INFO)
    with Follower(Node) as followed:
        node = followed.asked(lambda node: node)
        followed.asked(lambda node: node.failures.extend([error] * 3))
        wait_until(lambda: bool(followed.troubles), seconds=LIMIT, what="trouble")
        node.well.clear()
        assert node.well.wait(LIMIT)
        wait_until(lambda: not followed.troubles, seconds=LIMIT, what="an end of it")
    first, last = (each for each in caplog.records if each.name == follow.__name__)
    assert trouble in first.getMessage()
    assert bool(first.exc_info) is traced
    assert last.getMessage() == "a node: the node is followed again"
