# SPDX-License-Identifier: Apache-2.0
"""Drivers leave more or less room in front of a frame: what doesn't fit is dropped and counted.

A driver's metadata takes of that room, which is how a test makes it small.
"""

from __future__ import annotations

import pytest
from tests.prog.lb.frames import VIPS, frame
from tests.prog.lb.harness import Rig, key_of, service
from tests.prog.lb.network import IN, NEAR, NEAR_UNRESOLVED
from tests.prog.lb.oracle import XDP_DROP
from tests.prog.lb.told import note_length

from towpath.kernel.bpf import probe
from towpath.kernel.errors import KernelError

COMBINATIONS = [(4, 4), (4, 6), (6, 6)]  # what is inside, what is outside
MAX_METADATA = 212  # in steps of 4
ALWAYS_TAKEN = 32  # by test runs that take metadata at all; newer kernels take all of it
NO_ROOM = "drop_headroom"


@pytest.mark.parametrize(("inside", "outside"), COMBINATIONS)
@pytest.mark.parametrize("unresolved", [False, True])
def test_every_size_of_headroom(rig: Rig, inside: int, outside: int, *, unresolved: bool) -> None:
    """There is room and all is as ever, or there isn't and nothing is sent; never in between."""
    backends = [NEAR_UNRESOLVED[outside]] if unresolved else NEAR[outside]
    served = service(VIPS[inside], *backends)
    rig.serve(served)
    rig.check(frame(inside))
    judged = rig.world.judge(frame(inside), rig.devices[IN])
    # The note for the kernel takes the place of the driver's metadata.
    note = judged.frame[: note_length()] if unresolved else b""
    sent = judged.frame[len(note) :]
    dropped = {NO_ROOM: 1, (key_of(served), judged.backend, NO_ROOM): 1} | {
        (key_of(served), unit): by
        for unit, by in (("packets", 1), ("bytes", judged.length), ("drops", 1), (NO_ROOM, 1))
    }
    if not probe.test_run_context():
        # No driver's metadata in this kernel's test runs, and no way to a small headroom.
        with pytest.raises(KernelError, match=r"test run of program towpath_lb: .*that context"):
            rig.run(frame(inside), metadata=bytes(4))
        return
    fits: list[bool] = []
    for size in range(0, MAX_METADATA + 1, 4):
        metadata = bytes(range(size))
        before = rig.counters()
        try:
            run = rig.run(frame(inside), metadata=metadata)
        except KernelError:
            assert size == ALWAYS_TAKEN + 4
            assert fits == [True] * (size // 4)
            return
        moved = rig.moved(before, rig.counters())
        fits.append(run.retval == judged.action)
        if fits[-1]:
            assert (run.data, moved) == ((note or metadata) + sent, judged.counts())
        else:
            assert (run.retval, moved) == (XDP_DROP, dropped)
    room = fits.index(False)
    assert room > 0
    assert not any(fits[room:])
