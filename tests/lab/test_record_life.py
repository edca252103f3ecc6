# SPDX-License-Identifier: Apache-2.0
"""Captures of an agent that ends, orderly or not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.lab.harness_agent import running
from tests.lab.harness_record import (
    accepted,
    captured,
    program_of_device,
    recording,
    resolve_backends,
    send,
)
from tests.prog.lb.frames import flows, frame
from tests.read_pcapng import read

from towpath.api.client import Client
from towpath.lab.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path


def test_an_agent_that_ends_ends_the_file(tmp_path: Path) -> None:
    """Whole, with the reason; what stays attached is the program that doesn't record."""
    with running(tmp_path) as agent:
        before = program_of_device()
        with recording(agent, tmp_path / "x.pcapng") as process:
            assert agent.end() == 0
            process.communicate(timeout=120)
        assert process.returncode in (0, 1)
        accepted(tmp_path / "x.pcapng")
        assert program_of_device() == before


def test_an_agent_that_dies_goes_on_balancing(tmp_path: Path) -> None:
    """What it leaves attached balances without a reader; the next agent puts its own there."""
    with running(tmp_path) as agent:
        resolve_backends()
        with (
            recording(agent, tmp_path / "x.pcapng") as process,
            recording(agent, tmp_path / "y.pcapng") as other,
        ):
            send(*flows(10))
            captured(agent, 10)
            path = tmp_path / "x.pcapng"
            wait_until(lambda: path.stat().st_size > 1000, seconds=120, what="it to be written")
            agent.kill()
            for each in (process, other):
                _, said = each.communicate(timeout=120)
                assert each.returncode == 1
                assert "broke off" in said
        left = program_of_device()
        assert left
        send(frame())
        agent.start()
        assert program_of_device() != left
        with Client(agent.socket) as client:
            assert client.captures() == ()
            assert client.counters().verdicts["tx"] == 11
        assert_whole(path)


def assert_whole(path: Path) -> None:
    """The file of a capture that broke off has whole blocks, if no statistics."""
    assert read(path.read_bytes()).packets
