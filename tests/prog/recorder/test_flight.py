# SPDX-License-Identifier: Apache-2.0
"""Captures that keep what was last, and give it when they end."""

from __future__ import annotations

import time
from contextlib import contextmanager
from ipaddress import ip_address
from threading import Thread
from typing import TYPE_CHECKING

import pytest
from tests.prog.lb.frames import VIPS, frame
from tests.prog.lb.harness import Rig, service
from tests.prog.lb.network import IN, NEAR
from tests.prog.recorder.harness import recorded
from tests.read_pcapng import read

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.prog.recorder.harness import Recorded

KEEP = 1 << 17
HEAD = 48  # struct record
EMPTY, OTHER = ip_address("203.0.113.98"), ip_address("203.0.113.99")


@contextmanager
def collected(capture: Recorded) -> Iterator[list[bytes]]:
    """The pieces of a capture's file, read by a thread until it ends, which the block sees to."""
    pieces: list[bytes] = []
    thread = Thread(target=lambda: pieces.extend(map(bytes, capture.recording.chunks())))
    thread.start()
    try:
        yield pieces
        thread.join(timeout=10)
        assert not thread.is_alive()
    finally:
        capture.recording.stop()
        thread.join()


def test_what_was_last_is_kept(rig: Rig) -> None:
    """As much as was wished for, whole and in order; nothing is in the file before it ends."""
    rig.serve(service(VIPS[4], *NEAR[4]))
    sent = [frame(sport=1 + number, payload=bytes(1000)) for number in range(3000)]
    with recorded(rig, ring_bytes=None, direction="in", keep=KEEP) as capture:
        with collected(capture) as pieces:
            for each in sent:
                rig.run(each, IN, new_jiffy=False)
            time.sleep(0.2)
            assert len(pieces) == 1
            assert capture.recording.progress().packets == 0
            capture.recording.stop()
        progress = capture.recording.progress()
    found = read(b"".join(pieces))
    kept = [each.data for each in found.packets]
    assert kept == sent[-len(kept) :]
    # Before a frame there are a record's head and an entry's, which begins at a multiple of 8.
    entry = -(-(len(sent[0]) + HEAD + 8) // 8) * 8
    assert len(kept) == KEEP // entry
    assert {each.dropped for each in found.interfaces} == {0}
    assert (progress.seen, progress.packets, progress.lost) == (len(sent), len(kept), 0)


@pytest.mark.parametrize("chosen", [False, True])
def test_drops_end_it(rig: Rig, chosen: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """So many within a second; of its services if it is for some, and not those of others."""
    empty = service(EMPTY)
    rig.serve(service(VIPS[4], *NEAR[4]), empty, service(OTHER))
    wish = {"services": [empty.name]} if chosen else {}
    with (
        recorded(rig, ring_bytes=None, direction="in", keep=KEEP, on_drops=20, **wish) as capture,
        collected(capture) as pieces,
    ):
        for number in range(100 if chosen else 0):
            rig.run(frame(sport=1 + number, vip=OTHER), IN)
        for number in range(100):
            rig.run(frame(sport=1 + number), IN, new_jiffy=False)
        time.sleep(1.2)
        assert capture.recording.progress().packets == 0
        for number in range(40):
            rig.run(frame(sport=1 + number, vip=EMPTY), IN)
    assert capture.recording.ended == "40 packets were dropped within a second"
    dropped = [
        each for each in read(b"".join(pieces)).packets if each.said["verdict"] == "drop_no_backend"
    ]
    assert len(dropped) == 40
