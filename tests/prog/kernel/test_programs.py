# SPDX-License-Identifier: Apache-2.0
"""Loaded programs: what is told of them, and running them on packets."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

from towpath.kernel.bpf import probe
from towpath.kernel.bpf.object import BpfObject
from towpath.kernel.bpf.programs import Program, ProgramType
from towpath.kernel.errors import KernelError

if TYPE_CHECKING:
    from pathlib import Path

PACKET = bytes(range(64))


def test_program_tells_what_it_is(sample: BpfObject) -> None:
    """Type, tag and sizes come from the kernel."""
    count, let_pass = sample.programs["count"], sample.programs["let_pass"]
    assert (count.name, count.type) == ("count", ProgramType.XDP)
    assert (let_pass.name, let_pass.type) == ("let_pass", ProgramType.SCHED_CLS)
    assert len(bytes.fromhex(count.tag)) == 8
    assert count.jited_bytes > let_pass.jited_bytes > 0
    assert repr(count) == f"<Program count id {count.id}>"


def test_verified_instructions_are_told_or_0(opened: BpfObject) -> None:
    """Of all programs or of none; where the kernel doesn't tell, asking for statistics does."""
    with BpfObject(opened.path) as plain:
        plain.load()
        told = [each.verified_instructions for each in plain.programs.values()]
    opened.load(statistics=True)
    counted = [each.verified_instructions for each in opened.programs.values()]
    assert all(counted)
    assert told in (counted, [0] * len(counted))


def test_run_gives_verdict_and_packet(sample: BpfObject) -> None:
    """The packet comes back as the program left it."""
    run = sample.programs["count"].test_run(PACKET)
    assert (run.retval, run.data) == (2, PACKET)
    grown = sample.programs["grow"].test_run(PACKET)
    assert (grown.retval, len(grown.data), grown.data[8:]) == (3, 72, PACKET)


def test_runs_are_repeated_and_timed(sample: BpfObject) -> None:
    """Every repetition is a run; the time is one run's."""
    run = sample.programs["count"].test_run(PACKET, repeat=1000)
    assert sample.maps[".bss"].lookup(0)["runs"] == 1000
    assert 0 < run.duration_ns < 1_000_000


def test_context_reaches_the_program(sample: BpfObject, veth: int) -> None:
    """It is struct xdp_md as given: data, data_end, data_meta, ingress_ifindex, ...

    Kernels that take none say so, and have every packet come in on the loopback device.
    """
    context = struct.pack("<6I", 0, len(PACKET), 0, veth, 0, 0)
    if probe.test_run_context():
        sample.programs["count"].test_run(PACKET, ctx=context)
        assert sample.maps[".bss"].lookup(0)["last_ifindex"] == veth
        return
    with pytest.raises(KernelError, match=r"test run of program count: .*that context"):
        sample.programs["count"].test_run(PACKET, ctx=context)
    sample.programs["count"].test_run(PACKET)
    assert sample.maps[".bss"].lookup(0)["last_ifindex"] == 1  # the loopback device


def test_impossible_packets_are_refused(sample: BpfObject) -> None:
    """The message has the size. No kernel takes this context; which sizes it takes varies."""
    said = rf"test run of program count: .*a packet of {len(PACKET)} bytes, or that context"
    with pytest.raises(KernelError, match=said):
        sample.programs["count"].test_run(PACKET, ctx=b"\xff" * 24)


def test_program_by_pin_or_id_is_the_same(sample: BpfObject, pins: Path) -> None:
    """It can be had again by name or number, and lives as long as one of them."""
    count = sample.programs["count"]
    count.pin(pins / "count")
    with Program.from_pin(pins / "count") as pinned, Program.from_id(count.id) as by_id:
        assert {pinned.tag, by_id.tag} == {count.tag}
        assert (pinned.name, by_id.id) == ("count", count.id)
    sample.close()
    with Program.from_pin(pins / "count") as pinned:
        assert pinned.test_run(PACKET).retval == 2


def test_unknown_ids_are_refused() -> None:
    """The number is in the message."""
    with pytest.raises(KernelError, match="open program with id 4294967295: No such file"):
        Program.from_id(0xFFFFFFFF)
