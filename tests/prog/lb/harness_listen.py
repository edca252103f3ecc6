# SPDX-License-Identifier: Apache-2.0
"""Looks packets up in a pinned table while another process changes it, and notes what they find.

Run as a program: arguments are the compiled ``slow.bpf.c``, the directory of pins, the
file that says how far the writer is, and the file for the notes.
"""

from __future__ import annotations

import mmap
import random
import sys
from contextlib import ExitStack
from ipaddress import ip_address
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tests.prog.lb.harness_churn import FINISHED, STARTED
from tests.prog.wildcard.harness import TABLE, fill

from towpath.kernel.bpf.object import BpfObject
from towpath.wildcard import Packet, reuse

if TYPE_CHECKING:
    from towpath.wildcard.rule import Address

PACKETS = 256
BATCH = 8
LISTENING = 2
"""In the file that says how far the writer is: how often the listener has looked up, and one."""
ENOUGH = np.uint64(1 << 63)
"""What the writer has finished when all is done."""
NOTE = np.dtype(
    [
        ("first", np.uint64),  # changes that were made when the look-ups began
        ("last", np.uint64),  # and that had been begun when they ended
        ("at", np.uint32),  # the first of the packets
        ("number", np.uint64, BATCH),
        ("value", np.uint64, BATCH),
        ("changes", np.uint64, BATCH),  # that were counted during each look-up
    ]
)
_FRAME = bytes(64)


def packets() -> list[Packet]:
    """Packets to addresses that the rules of the churn are about, half of them of each family."""
    chance = random.Random(5)  # noqa: S311 -- not a secret

    def address(version: int) -> Address:
        bits = chance.getrandbits(6)
        if version == 4:
            return ip_address(0x0A000000 + bits * 0x010101)
        return ip_address((0x20010DB8 << 96) + (bits << 80) + (bits << 64) + bits)

    return [
        Packet(
            address(version),
            address(version),
            1,
            chance.choice((80, 85, 443, 1024, chance.randrange(65536))),
            chance.choice((6, 17)),
        )
        for version in islice(cycle((4, 6)), PACKETS)
    ]


def main(program: str, pins: str, progress: str, notes: str) -> None:
    """Look up again and again; note between which changes each time was."""
    with ExitStack() as undo:
        obj = undo.enter_context(BpfObject(program))
        reuse(obj, TABLE, Path(pins))
        obj.load()
        fill(undo.enter_context(obj.maps["queries"].mmap()).array["key"], packets())
        answers = undo.enter_context(obj.maps["answers"].mmap()).array
        state = undo.enter_context(obj.maps[".bss"].mmap()).array
        far = undo.enter_context(Path(progress).open("r+b"))
        shared = np.frombuffer(mmap.mmap(far.fileno(), 24), np.uint64)
        output = undo.enter_context(Path(notes).open("wb"))
        note = np.zeros(1, NOTE)
        shared[LISTENING] = 1
        while shared[FINISHED] < ENOUGH:
            note["at"] = state["next"] = (note["at"] + BATCH) % PACKETS
            note["first"] = shared[FINISHED]
            obj.programs["answer_slowly"].test_run(_FRAME)
            note["last"] = shared[STARTED]
            for each in ("number", "value", "changes"):
                note[each] = answers[each]
            output.write(note.tobytes())
            shared[LISTENING] += 1


if __name__ == "__main__":
    main(*sys.argv[1:])
