# SPDX-License-Identifier: Apache-2.0
"""The table that keeps kube-proxy's connections translated, while others work on nftables."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from towpath.cleanup import kube_proxy, record
from towpath.core.kube_proxy import nft
from towpath.kernel.net import nft as kernel_nft
from towpath.kernel.net.netns import in_netns, new_netns
from towpath.lab.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SECONDS = 60.0


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """Of a clean-up that is confirmed, in a namespace of its own, with who watches it."""
    with ExitStack() as undo:
        undo.enter_context(in_netns(undo.enter_context(new_netns())))
        # A connection that isn't over keeps it: an unhooked one needs none.
        record.Record("unhooked", record.now() + 1000).write(tmp_path)
        kernel_nft.change(nft.hold())
        with (tmp_path / "log").open("w") as log:
            command = [sys.executable, "-m", "towpath.cleanup.watch", str(tmp_path)]
            watching = subprocess.Popen(command, stderr=log)
        undo.callback(watching.wait)
        undo.callback(watching.kill)
        yield tmp_path


def is_held() -> bool:
    """Whether the table is there, with its rule."""
    shown = subprocess.run(
        ["nft", "list", "table", "inet", nft.HOLD], capture_output=True, text=True, check=False
    )
    return "ct state new" in shown.stdout


def test_a_flush_is_mended_at_once(directory: Path) -> None:
    """And told; until it is let go of, when it stays away."""
    for number in (1, 2):
        kernel_nft.change("flush ruleset\n")
        wait_until(is_held, seconds=SECONDS, what="the table")
        wait_until(
            lambda number=number: _told(directory) == number,  # type: ignore[misc]
            seconds=SECONDS,
            what="the log",
        )
    kube_proxy.restore(directory)
    assert record.read(directory) is None
    assert not kube_proxy.hold_again(directory)
    time.sleep(0.1)
    assert not is_held()


def _told(directory: Path) -> int:
    return (directory / "log").read_text().count("deleted by somebody else")


def test_what_is_let_go_of_is_not_made_again(directory: Path) -> None:
    """Also by who has died in the middle of it: the next one goes on."""
    begun = record.read(directory)
    assert begun is not None
    begun.phase = "released"
    begun.write(directory)
    wait_until(lambda: record.read(directory) is None, seconds=SECONDS, what="the end")
    wait_until(lambda: not is_held(), seconds=SECONDS, what="the table to go")


@pytest.mark.parametrize("seconds", [1000.0, 1.0])
def test_who_stays_puts_back_what_is_not_confirmed(tmp_path: Path, seconds: float) -> None:
    """When its time is over, or at the end: whoever comes after it may never come."""
    with new_netns():
        command = [sys.executable, "-m", "towpath", "cleanup", "kube-proxy", "--stay"]
        command += ["--directory", str(tmp_path)]
        staying = subprocess.Popen(command)
        try:
            record.Record("unhooked", record.now() + seconds).write(tmp_path)
            if seconds > SECONDS:
                # Nobody has made our own table yet: it sees to that, and so it is at work.
                wait_until(is_held, seconds=SECONDS, what="the table")
                staying.terminate()
            wait_until(lambda: record.read(tmp_path) is None, seconds=SECONDS, what="its time")
            wait_until(lambda: not is_held(), seconds=SECONDS, what="the table to go")
            if seconds < SECONDS:
                staying.terminate()
            assert staying.wait(SECONDS) == 0
        finally:
            staying.kill()
            staying.wait()
