# SPDX-License-Identifier: Apache-2.0
"""Which tunnels end at the load balancer, and what is known of them after a restart."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.prog.lb.frames import VIPS, frame
from tests.prog.lb.harness import service
from tests.prog.lb.harness_layout import version
from tests.prog.lb.harness_unwrap import ALL, ENDS, PORTS, tunnelled, wrapped
from tests.prog.lb.network import IN, NEAR, OUT, THIRD, network
from tests.prog.lb.oracle import NO_VIP, TX
from tests.prog.lb.oracle_parse import OTHER_PROTOCOL

from towpath.kernel.bpf import probe
from towpath.kernel.bpf.fragments import pulls
from towpath.model import Protocol, Unwrap
from towpath.model.kinds import PortRange, Ports

if TYPE_CHECKING:
    from pathlib import Path

    from tests.prog.lb.network import Network

JUMBO = 9000


@pytest.mark.parametrize(
    ("kind", "without"),
    [
        ("gre", Unwrap(ALL.addresses, udp_ports=PORTS)),
        ("fou", Unwrap(ALL.addresses, gre=True)),
        ("gue0", Unwrap(ALL.addresses, udp_ports=(5555,))),
        ("fou", Unwrap(udp_ports=PORTS)),
    ],
)
def test_what_is_not_asked_for(net: Network, kind: str, without: Unwrap) -> None:
    """Passes as it came."""
    with tunnelled(net, without) as made:
        made.serve(service(VIPS[4], *NEAR[4]))
        sent = wrapped(frame(4), kind)
        verdict = OTHER_PROTOCOL if kind == "gre" else NO_VIP
        assert made.expect(sent, verdict).frame == sent


def test_a_service_of_that_address_and_port_comes_first(net: Network) -> None:
    """A tunnel's UDP port that a service has is the service's, by itself or in a range."""
    with tunnelled(net) as made:
        made.serve(service(VIPS[4], *NEAR[4]))
        made.expect(wrapped(frame(4), "fou"), TX)
        for port in (PORTS[0], Ports((PortRange(1, 65535),))):
            made.serve(service(VIPS[4], *NEAR[4]))
            made.serve(
                service(VIPS[4], *NEAR[4]),
                service(ENDS[4], *NEAR[4], port=port, protocol=Protocol.UDP),
            )
            outcome = made.expect(wrapped(frame(4), "fou"), TX)
            assert outcome.flow is not None
            assert outcome.flow.destination == ENDS[4]


def test_a_restart_keeps_what_was_counted(net: Network, pins: Path) -> None:
    """For addresses that stay; those that are configured no more are gone."""
    served = service(VIPS[4], *NEAR[4])
    with tunnelled(net, pins=pins) as made:
        made.serve(served)
        made.expect(wrapped(frame(4)), TX)
        before = made.unwrapped()
        assert set(before) == set(ENDS.values())
    with tunnelled(net, Unwrap((ENDS[4],)), pins=pins) as made:
        assert made.unwrapped() == {ENDS[4]: before[ENDS[4]]}
        made.expect(wrapped(frame(4, sport=2)), TX)
    with tunnelled(net, Unwrap(), pins=pins) as made:
        assert not made.unwrapped()
        made.expect(wrapped(frame(4)), OTHER_PROTOCOL)
        made.balancer.detach()


def test_an_upgrade_keeps_what_was_counted(net: Network, pins: Path) -> None:
    """In tables of another shape, too."""
    with version("verdicts"), tunnelled(net, pins=pins) as made:
        made.serve(service(VIPS[4], *NEAR[4]))
        made.expect(wrapped(frame(4)), TX)
        before = made.unwrapped()
    with tunnelled(net, pins=pins) as made:
        assert made.unwrapped() == before
        made.expect(wrapped(frame(4, sport=2)), TX)
        made.balancer.detach()


@pytest.mark.skipif(not probe.fragments(), reason="XDP programs take no frames in fragments")
@pytest.mark.parametrize("kind", ["ipip", "fou"])
def test_frames_in_fragments(kind: str) -> None:
    """Larger ones than a page; wherever the first fragment ends, if the rest can be had."""
    with network({IN: JUMBO, OUT: JUMBO, THIRD: JUMBO}) as net, tunnelled(net) as made:
        made.serve(*(service(VIPS[family], *NEAR[family]) for family in (4, 6)))
        for family in (4, 6):
            for size in (4000, 8000):
                sent = wrapped(frame(family, payload=bytes(range(250)) * (size // 250)), kind)
                made.expect(sent, TX)
                for linear in (34, 60, 80) if pulls() else ():
                    made.linear = linear
                    made.expect(sent, TX)
                made.linear = None
