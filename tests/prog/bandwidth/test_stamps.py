# SPDX-License-Identifier: Apache-2.0
"""Times of departure that packets have already: they can only delay."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from scapy.layers.inet import IP, UDP
from scapy.packet import Raw
from tests.prog.bandwidth.harness import MARK, SHOT, UNSPEC, Rig

from towpath.datapath.bandwidth.limits import Limit
from towpath.kernel.bpf import probe
from towpath.kernel.bpf.programs import ProgramType

if TYPE_CHECKING:
    from collections.abc import Callable

MS, SECOND = 1_000_000, 1_000_000_000
PACKET = IP(src="10.244.0.2", dst="203.0.113.9") / UDP(sport=4000, dport=9) / Raw(bytes(1458))
CHARGE = 1_200_000
TEN = Limit(egress=10_000_000)


def test_a_stamp_ahead_delays(bw: Rig) -> None:
    """A little, as TCP's are: whatever is later of the two."""
    bw.limit(1, TEN)
    due = bw.set_next(1, 2 * SECOND)
    bw.limit(1, Limit(egress=10_000_000, horizon=8 * SECOND))
    wanted = time.monotonic_ns() + SECOND
    assert bw.send(PACKET, stamp=wanted).stamp == wanted
    assert bw.charged(1) == due + CHARGE


def test_a_stamp_doesnt_hasten(bw: Rig) -> None:
    """A packet whose flow has to wait does so, whatever its stamp says."""
    bw.limit(1, Limit(egress=100_000, horizon=8 * SECOND))
    first = bw.send(PACKET, wire=60_000)
    bw.set_next(1, 7 * SECOND)
    run = bw.send(PACKET, stamp=first.now + SECOND)
    # The first has 4.8 seconds at the limit.
    assert 0 <= run.stamp - (first.now + 4_800 * MS) < 64


def test_many_packets_with_one_stamp_dont_leave_at_once(bw: Rig) -> None:
    """From that time on they leave at the limit."""
    bw.limit(1, TEN)
    wanted = time.monotonic_ns() + 19 * SECOND // 10  # so that all are sent before, at leisure
    times = [bw.send(PACKET, stamp=wanted).stamp for _ in range(10)]
    for number, each in enumerate(times):
        assert 0 <= each - (wanted + number * CHARGE) <= 64 * number
    # And they may be so many that they would leave within the horizon of that.
    runs = [bw.send(PACKET, stamp=wanted, wire=15_000) for _ in range(20)]
    assert {run.action for run in runs} == {UNSPEC, SHOT}
    assert max(run.stamp for run in runs if run.action == UNSPEC) <= wanted + 158 * MS


def test_a_stamp_far_ahead_is_refused(bw: Rig) -> None:
    """Before anything is charged: fq would have dropped it, too."""
    bw.limit(1, TEN)
    due = bw.set_next(1, 10 * MS)
    run = bw.send(PACKET, stamp=time.monotonic_ns() + 4 * SECOND)
    assert (run.action, run.moved) == (SHOT, {"1.drop_stamp": 1})
    assert bw.charged(1) == due


def test_a_stamp_of_clock_tai_is_converted(bw: Rig) -> None:
    """It means the same time."""
    _needs_tai()
    bw.limit(1, TEN)
    offset = time.clock_gettime_ns(time.CLOCK_TAI) - time.monotonic_ns()
    wanted = time.monotonic_ns() + SECOND
    run = bw.send(PACKET, stamp=wanted + offset)
    assert run.moved.pop("1.converted") == 1
    assert run.moved == {"1.delayed": 1, "1.egress_bytes": 1500}
    assert abs(run.stamp - wanted) < SECOND / 4  # the two clocks aren't read at once


@pytest.mark.parametrize("clock", [lambda: 1234, lambda: time.time_ns() - 3600 * SECOND])
def test_a_stamp_of_another_clock_is_cleared(bw: Rig, clock: Callable[[], int]) -> None:
    """It says nothing; fq would have held the packet back, or dropped it."""
    bw.limit(1, TEN)
    run = bw.send(PACKET, stamp=clock())
    assert run.moved == {"1.cleared": 1, "1.sent": 1, "1.egress_bytes": 1500}
    assert time.monotonic_ns() - SECOND < run.stamp < time.monotonic_ns()


def test_packets_without_a_limit_have_their_stamps_seen_to(bw: Rig) -> None:
    """Those of the right clock stay as they are."""
    right = time.monotonic_ns() + SECOND
    assert bw.run("pace", PACKET, stamp=right).stamp == right
    run = bw.run("pace", PACKET, stamp=time.time_ns() - 3600 * SECOND)
    assert (run.stamp, run.moved) == (0, {"0.unlimited": 1, "0.cleared": 1})
    _needs_tai()
    offset = time.clock_gettime_ns(time.CLOCK_TAI) - time.monotonic_ns()
    run = bw.run("pace", PACKET, stamp=right + offset)
    assert run.moved == {"0.unlimited": 1, "0.converted": 1}
    assert abs(run.stamp - right) < SECOND / 4
    assert bw.run("pace", PACKET, mark=MARK | 1).moved == {"1.unlimited": 1}


def _needs_tai() -> None:
    if not probe.helper(208, ProgramType.SCHED_CLS):
        pytest.skip("this kernel tells programs no CLOCK_TAI")
