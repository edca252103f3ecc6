# SPDX-License-Identifier: Apache-2.0
"""Frames in fragments are captured whole, or as much of them as is wanted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.prog.lb.frames import VIPS
from tests.prog.lb.harness import Rig, rigged
from tests.prog.lb.network import FAR, IN, NEAR, OUT, THIRD, network
from tests.prog.lb.test_too_big import large
from tests.prog.recorder.harness import assert_sent_on, assert_told, recorded, serve_all

from towpath.kernel.bpf import probe
from towpath.kernel.bpf.fragments import pulls

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(
    not probe.fragments(), reason="XDP programs take no frames in fragments"
)

COMBINATIONS = [(4, 4), (4, 6), (6, 6)]  # what is inside, what is outside
SIZES = [1400, 3500, 3506, 3507, 4096, 8900]


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    """On devices with an MTU of 9000."""
    with network({IN: 9000, OUT: 9000, THIRD: 4000}) as net, rigged(net) as made:
        yield made


@pytest.mark.parametrize(("inner", "outer"), COMBINATIONS)
def test_both_sides_are_captured(rig: Rig, inner: int, outer: int) -> None:
    """Every byte as it came in and as it was sent on."""
    serve_all(rig, inner, *NEAR[outer], *FAR[outer])
    frames = [large(inner, size, protocol) for size in SIZES for protocol in (6, 17)]
    with recorded(rig, snaplen=65535, filters=["0 0 0 80 tcp", "0 0 0 80 udp"]) as capture:
        outcomes = [rig.check(each) for each in frames]
        found = capture.end()
    sides = zip(frames, outcomes, found.packets[::2], found.packets[1::2], strict=True)
    for sent, outcome, came, went in sides:
        assert outcome.verdict in {"tx", "redirect"}
        assert_told(rig, came, sent, IN, outcome)
        assert_sent_on(rig, went, came, IN, outcome)


@pytest.mark.parametrize("snaplen", [100, 3520, 3600, 8000])
def test_no_more_than_is_wanted(rig: Rig, snaplen: int) -> None:
    """The length that is told is the frame's all the same."""
    serve_all(rig, 4, *NEAR[4])
    sent = large(4, 8900)
    with recorded(rig, snaplen=snaplen) as capture:
        outcome = rig.expect(sent, "tx")
        came, went = capture.end().packets
    assert (came.data, came.length) == (sent[:snaplen], len(sent))
    assert (went.data, went.length) == (outcome.frame[:snaplen], len(outcome.frame))


def test_captures_after_each_other_and_expressions(rig: Rig) -> None:
    """Programs of a chain are of one kind, whatever their filter."""
    serve_all(rig, 4, *NEAR[4])
    small, sent = large(4, 1000), large(4, 8900)
    with (
        recorded(rig, expression="len > 8000 and ether[8000] != 0x99", snaplen=65535) as one,
        recorded(rig, filters=["0 0 0 80 tcp"], snaplen=65535, direction="in") as other,
    ):
        for each in (small, sent):
            rig.expect(each, "tx")
        assert [each.data for each in other.end().packets] == [small, sent]
        found = one.end().packets
    assert [each.data for each in found if each.inbound] == [sent]
    assert len(found) == 2


@pytest.mark.parametrize("linear", [14, 34, 60])
def test_filters_see_headers_behind_the_first_fragment(rig: Rig, linear: int) -> None:
    """They are moved there before anything looks for them."""
    if not pulls():
        pytest.skip("this kernel can't have headers moved there")
    serve_all(rig, 4, *NEAR[4])
    rig.linear = linear
    try:
        sent = large(4, 8000)
        with recorded(rig, snaplen=65535, filters=[f"0 0 {VIPS[4]} 80 tcp"]) as capture:
            outcome = rig.expect(sent, "tx")
            rig.expect(large(4, 8000, 17), "tx")
            came, went = capture.end().packets
    finally:
        rig.linear = None
    assert_told(rig, came, sent, IN, outcome)
    assert_sent_on(rig, went, came, IN, outcome)
