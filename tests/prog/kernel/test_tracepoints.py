# SPDX-License-Identifier: Apache-2.0
"""Programs at a tracepoint of the kernel, which sees the redirects of the whole machine fail."""

from __future__ import annotations

import socket
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from towpath.kernel.bpf import links
from towpath.kernel.bpf.attach_types import AttachType
from towpath.kernel.bpf.attached import Inventory
from towpath.kernel.bpf.links import TracepointLink, attach_tracepoint, attach_xdp
from towpath.kernel.bpf.rcu import wait_for_readers
from towpath.kernel.errors import KernelError
from towpath.lab.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from towpath.kernel.bpf.object import BpfObject

NAME = "xdp_redirect_err"
FRAME = bytes.fromhex("ffffffffffff 020000000001 88b5") + bytes(46)
SECONDS = 120


def counts(traced: BpfObject) -> tuple[int, int, int]:
    """Redirects that failed, and how many of the machine's each of the programs has seen."""
    found = traced.maps[".bss"].lookup(0)
    return int(found["strayed"]), int(found["seen"]), int(found["seen_typed"])


def there(traced: BpfObject) -> list[str]:
    """Which of the programs are at the tracepoint, which is everybody's."""
    ids = [each.program_id for each in Inventory().tracepoint(NAME)]
    names = {each.id: name for name, each in traced.programs.items()}
    return [names[number] for number in ids if number in names]


def send(number: int) -> None:
    """Send frames on tp1."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as out:
        out.bind(("tp1", 0))
        for _ in range(number):
            out.send(FRAME)


def stray(traced: BpfObject, number: int) -> None:
    """Have the redirects of so many frames fail, and be through with them."""
    wanted = counts(traced)[0] + number
    send(number)
    wait_until(lambda: counts(traced)[0] >= wanted, seconds=SECONDS, what="all frames to come in")
    wait_for_readers()


def wait_for_another(traced: BpfObject) -> None:
    """Wait until another redirect has failed."""
    before = counts(traced)[0]
    wait_until(lambda: counts(traced)[0] > before, seconds=SECONDS, what="a frame to come in")


@contextmanager
def straying(traced: BpfObject) -> Iterator[None]:
    """Have redirects fail all the time of the block."""
    done = threading.Event()

    def go_on() -> None:
        while not done.is_set():
            stray(traced, 10)

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize("name", ["errors", "typed_errors"])
def test_a_program_sees_what_happens(traced: BpfObject, veth: int, name: str) -> None:
    """While it is attached."""
    column = 1 if name == "errors" else 2
    with attach_xdp(traced.programs["astray"], veth, "generic"):
        with attach_tracepoint(traced.programs[name], NAME) as link:
            assert (link.mode, link.tracepoint, link.attached) == ("tracepoint", NAME, True)
            assert (link.attach_type, link.ifindex) == (AttachType.TRACE_RAW_TP, 0)
            assert link.program_id == traced.programs[name].id
            stray(traced, 3)
            seen = counts(traced)[column]
            assert seen >= 3
        seen = counts(traced)[column]
        stray(traced, 3)
        assert counts(traced)[column] == seen


@pytest.mark.parametrize("pinned", [True, False])
def test_nothing_is_missed_while_it_is_replaced(
    traced: BpfObject, veth: int, pins: Path, *, pinned: bool
) -> None:
    """What happens in between is seen by both."""
    link = attach_tracepoint(traced.programs["errors"], NAME)
    if pinned:
        link.pin(pins / "errors")
    # The XDP program last: devices that have come up send frames of their own.
    with attach_xdp(traced.programs["astray"], veth, "generic"):
        with straying(traced):
            for name in ("typed_errors", "errors") * 10:
                link.update(traced.programs[name])
                wait_for_another(traced)
        strayed, seen, seen_typed = counts(traced)
        assert min(seen, seen_typed) > 0
        assert seen + seen_typed >= strayed
    link.detach()


def test_a_pin_follows_what_replaces_it(traced: BpfObject, veth: int, pins: Path) -> None:
    """It keeps the program that came last, and no other."""
    link = attach_tracepoint(traced.programs["errors"], NAME)
    link.pin(pins / "errors")
    link.update(traced.programs["typed_errors"])
    link.update(traced.programs["errors"])
    with attach_xdp(traced.programs["astray"], veth, "generic"):
        assert [path.name for path in pins.iterdir()] == ["errors"]
        link.close()
        seen = counts(traced)[1]
        stray(traced, 1)
        assert counts(traced)[1] > seen
        links.from_pin(pins / "errors").detach()
        assert list(pins.iterdir()) == []
        wait_until(lambda: not there(traced), seconds=SECONDS, what="the program to go")
        wait_for_readers()
        seen = counts(traced)[1]
        stray(traced, 1)
        assert counts(traced)[1] == seen


def test_a_half_made_pin_is_removed(traced: BpfObject, pins: Path) -> None:
    """Of a process that was killed between naming the new one and replacing the old one."""
    link = attach_tracepoint(traced.programs["errors"], NAME)
    link.pin(pins / "errors")
    left = attach_tracepoint(traced.programs["typed_errors"], NAME)
    left.pin(pins / "errors-new")
    left.close()
    again = links.from_pin(pins / "errors")
    assert isinstance(again, TracepointLink)
    again.update(traced.programs["typed_errors"])
    link.close()
    wait_until(lambda: there(traced) == ["typed_errors"], seconds=SECONDS, what="the others to go")
    assert [path.name for path in pins.iterdir()] == ["errors"]
    again.detach()


def test_bad_input_is_told(traced: BpfObject, sample: BpfObject) -> None:
    """And attaches nothing."""
    programs = traced.programs
    with pytest.raises(
        KernelError,
        match=r"attach program errors to tracepoint no_such: .*ENOENT.*no such tracepoint$",
    ):
        attach_tracepoint(programs["errors"], "no_such")
    with pytest.raises(KernelError, match=r"tracepoint xdp_redirect: .*it is for xdp_redirect_err"):
        attach_tracepoint(programs["typed_errors"], "xdp_redirect")
    with pytest.raises(
        KernelError, match=r"program count to tracepoint xdp_redirect_err: .*EINVAL"
    ):
        attach_tracepoint(sample.programs["count"], NAME)
    with attach_tracepoint(programs["errors"], NAME) as link:
        with pytest.raises(KernelError, match="program count to tracepoint xdp_redirect_err"):
            link.update(sample.programs["count"])
        assert link.program_id == programs["errors"].id
    wait_until(lambda: not there(traced), seconds=SECONDS, what="the program to go")
