# SPDX-License-Identifier: Apache-2.0
"""IPv4 routes by an IPv6 next hop (RFC 8950): the frame is the neighbour's, the packet IPv4."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from tests.prog.lb.frames import VIPS, frame
from tests.prog.lb.harness import Rig, service
from tests.prog.lb.network import FAR, FAR_UNRESOLVED, IN, NEAR, OUT, ip, neighbour_mac
from tests.prog.lb.oracle import HANDOFF, NOT_ON_LINK, REDIRECT, TX
from tests.prog.lb.test_ways_by_flow import TARGET

if TYPE_CHECKING:
    from collections.abc import Iterator

GATEWAYS = {IN: NEAR[6][0], OUT: FAR[6][0]}
BEHIND = TARGET[4]


@pytest.fixture(params=[IN, OUT])
def device(rig: Rig, request: pytest.FixtureRequest) -> Iterator[str]:
    """The device that the backend is reached by, with a gateway of IPv6."""
    name: str = request.param
    ip(f"route add {BEHIND}/32 via inet6 {GATEWAYS[name]} dev {name}")
    own = {IN: NEAR, OUT: FAR}[name][4][0]
    way = replace(rig.world.ways[own], next_hop_mac=neighbour_mac(name, GATEWAYS[name].packed[-1]))
    rig.world.ways[BEHIND] = replace(way, gateway=GATEWAYS[name])
    rig.forget_ways()
    yield name
    ip(f"route del {BEHIND}/32")
    del rig.world.ways[BEHIND]
    rig.forget_ways()


def test_a_tunnel(rig: Rig, device: str) -> None:
    """From an IPv4 source, to the gateway's MAC address, with IPv4's EtherType."""
    rig.serve(service(VIPS[4], BEHIND))
    outcome = rig.expect(frame(4), TX if device == IN else REDIRECT)
    assert outcome.frame[12:14] == b"\x08\x00"
    rig.expect(frame(4), TX if device == IN else REDIRECT)


def test_a_new_frame_goes_to_no_gateway(rig: Rig, device: str) -> None:
    """By l2 it would be for somebody else."""
    assert device
    rig.serve(service(VIPS[4], BEHIND, forwarding="l2"))
    rig.expect(frame(4), NOT_ON_LINK)


def test_a_gateway_that_is_not_resolved(rig: Rig) -> None:
    """The packet is the kernel's, which finds the gateway by itself."""
    gateway = FAR_UNRESOLVED[6]
    ip(f"route add {BEHIND}/32 via inet6 {gateway} dev {OUT}")
    rig.world.ways[BEHIND] = rig.world.ways[FAR_UNRESOLVED[4]]
    rig.forget_ways()
    rig.serve(service(VIPS[4], BEHIND))
    rig.expect(frame(4), HANDOFF)
    ip(f"route del {BEHIND}/32")
    del rig.world.ways[BEHIND]
    rig.forget_ways()
