# SPDX-License-Identifier: Apache-2.0
"""The load balancer and the recorder, as the newest compiler makes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.prog.lb.frames import VIPS, flows, frame
from tests.prog.lb.harness import Rig, rigged, service
from tests.prog.lb.network import FAR, FAR_UNRESOLVED, IN, NEAR, Network
from tests.prog.lb.oracle import HANDOFF, NO_VIP, REDIRECT, TX
from tests.prog.recorder.harness import assert_sent_on, assert_told, recorded, serve_all

from towpath.model import Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

COMBINATIONS = [(4, 4), (4, 6), (6, 6)]  # what is inside, what is outside
FLOWS = 8


@pytest.fixture(scope="module")
def rig(net: Network) -> Iterator[Rig]:
    """A load balancer on two devices."""
    with rigged(net) as made:
        yield made


@pytest.mark.parametrize(("inside", "outside"), COMBINATIONS)
def test_packets_are_balanced(rig: Rig, inside: int, outside: int) -> None:
    """Into a tunnel, out of either device or to the kernel; what is of no service passes."""
    ways = {
        TX: NEAR[outside],
        REDIRECT: FAR[outside],
        HANDOFF: (FAR_UNRESOLVED[outside],),
    }
    rig.serve(
        *(
            service(VIPS[inside], *backends, port=port, protocol=protocol)
            for port, backends in enumerate(ways.values(), 80)
            for protocol in Protocol
        )
    )
    for protocol in Protocol:
        for port, verdict in enumerate((*ways, NO_VIP), 80):
            for sport in range(1024, 1024 + FLOWS):
                made = frame(inside, protocol.number, sport=sport, dport=port)
                rig.expect(made, verdict)
                rig.expect(made, verdict)  # by what is remembered
    rig.check(frame(inside, vlan=7))


def test_packets_are_recorded(rig: Rig) -> None:
    """As they came in and as they went, and balanced as they are otherwise."""
    serve_all(rig, 4, *NEAR[6], *FAR[6])
    frames = list(flows(FLOWS))
    with recorded(rig, filters=[f"0 0 {VIPS[4]} 80 tcp"]) as capture:
        outcomes = [rig.check(each) for each in frames]
        found = capture.end()
    assert len(found.packets) == 2 * len(frames)
    sides = zip(frames, outcomes, found.packets[::2], found.packets[1::2], strict=True)
    for sent, outcome, came, went in sides:
        assert_told(rig, came, sent, IN, outcome)
        assert_sent_on(rig, went, came, IN, outcome)
