# SPDX-License-Identifier: Apache-2.0
"""A capture has both sides of what is translated, of packets and of answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.prog.lb.frames import VIPS
from tests.prog.lb.network import FAR, IN, NEAR, OUT
from tests.prog.lb.oracle import REDIRECT, TX
from tests.prog.recorder.harness import recorded
from tests.prog.snat.harness import NatRig, answer, client_frame, snat_service
from tests.prog.snat.oracle import NatOutcome

from towpath.model import Protocol

if TYPE_CHECKING:
    from tests.read_pcapng import Packet

BOTH = [(version, protocol) for version in (4, 6) for protocol in Protocol]


def ways(*packets: Packet) -> list[str]:
    """Where packets came in and went out."""
    return [each.interface.name for each in packets]


@pytest.mark.parametrize("direction", ["both", "distinct"])
@pytest.mark.parametrize(("version", "protocol"), BOTH)
def test_both_sides_there_and_back(
    nat: NatRig, version: int, protocol: Protocol, direction: str
) -> None:
    """Tied by number, with the service and the backend, and the device that it leaves by.

    Also in a capture of distinct packets: the sides have different addresses.
    """
    backends = NEAR[version][0], FAR[version][0]
    nat.serve(snat_service(version, *backends, protocol=protocol))
    name = nat.balancer.observed()[0].name
    met = set()
    with recorded(nat, direction=direction) as capture:
        sent = []
        for sport in range(2000, 2040):
            there = nat.check(client_frame(version, protocol.number, sport=sport))
            assert isinstance(there, NatOutcome)
            back = nat.check(answer(there), OUT if there.verdict == REDIRECT else IN)
            sent.append((there, back))
        packets = iter(capture.end().packets)
    for there, back in sent:
        came, went, answered, told = (next(packets) for _ in range(4))
        other = OUT if there.verdict == REDIRECT else IN
        assert {there.verdict, back.verdict} <= {TX, REDIRECT}
        assert ways(came, went, answered, told) == [
            f"{IN}-in",
            f"{other}-out",
            f"{other}-in",
            f"{IN}-out",
        ]
        assert (went.data, told.data) == (there.frame, back.frame)
        assert came.packet_id == went.packet_id != answered.packet_id == told.packet_id
        for each in (came, went, answered, told):
            assert each.said["service"] == name
            assert each.said["backend"] == str(there.backend)
        assert came.said["verdict"] == there.verdict
        assert told.said["verdict"] == back.verdict
        met.add(there.backend)
    assert met == set(backends)
    assert next(packets, None) is None


def test_what_is_nobodys_is_not_taken_for_the_last_ones(nat: NatRig) -> None:
    """A packet of no service has none in the capture, whatever came before it."""
    nat.serve(snat_service(4, NEAR[4][0]))
    with recorded(nat) as capture:
        nat.expect(client_frame(4, 6), TX)
        nat.run(client_frame(4, 6, vip=VIPS[4] + 77), IN)
        packets = capture.end().packets
    assert packets[-1].said["verdict"] == "pass_no_vip"
    assert not {"service", "backend"} & packets[-1].said.keys()
