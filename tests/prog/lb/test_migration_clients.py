# SPDX-License-Identifier: Apache-2.0
"""What services have besides a tunnel comes along to tables of other limits or another version."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from tests.guests import examples
from tests.prog.lb.frames import VIPS, frame
from tests.prog.lb.harness import SMALL, Rig, rigged, service
from tests.prog.lb.harness_layout import VERSIONS, version
from tests.prog.lb.network import NEAR, Network
from tests.prog.lb.oracle import NOT_FOR_YOU, TX
from tests.prog.lb.test_allow_from import CLIENTS, allowing, sent_by, stored
from tests.prog.lb.test_migration import described, send

from towpath.datapath.errors import CapacityError
from towpath.model import Affinity

if TYPE_CHECKING:
    from pathlib import Path

    from towpath.model import Service

pytestmark = pytest.mark.thorough

MANY = examples(300, 60)
LIMITS = {
    "more clients": replace(SMALL, clients=SMALL.clients * 8, sources=99),
    "fewer clients": replace(SMALL, clients=4096),
}


def sticky(family: int, backends: slice, port: int = 80) -> Service:
    """A service whose clients keep their backends."""
    return service(VIPS[family], *NEAR[family][backends], port=port, affinity=Affinity(10000))


def by_clients(family: int, sport: int, port: int = 80) -> list[bytes]:
    """A new flow of each of many clients."""
    return [
        frame(family, source=CLIENTS[family] + 256 * n, sport=sport, dport=port)
        for n in range(MANY)
    ]


def succeed(rig: Rig, before: Rig) -> None:
    """Let a rig's oracle know what the one before remembers."""
    rig.world.remembered, rig.world.clients = before.world.remembered, before.world.clients
    rig.told(rig.balancer.observed())


@pytest.mark.parametrize("name", [*VERSIONS, *LIMITS])
def test_clients_sources_and_forwarding_come_along(net: Network, pins: Path, name: str) -> None:
    """Clients stay where the table wouldn't send them, by whichever index their service has."""
    made = version(name) if name in VERSIONS else nullcontext()
    with made, rigged(net, pins=pins, limits=LIMITS.get(name, SMALL)) as rig:
        # One that goes: indexes of those that stay are others in the new tables.
        rig.serve(service(VIPS[4] + 9, *NEAR[4]))
        gone = service(VIPS[4] + 9, *NEAR[4])
        some = allowing(4, "198.51.100.0/24", port=81, forwarding="l2")
        rig.serve(gone, some, *(sticky(family, slice(2)) for family in (4, 6)))
        for family in (4, 6):
            send(rig, by_clients(family, 1))
        rig.serve(some, *(sticky(family, slice(6)) for family in (4, 6)))
        observed = described(rig)
    with rigged(net, pins=pins) as heir:
        assert not heir.balancer._maps.adopted
        succeed(heir, rig)
        assert described(heir) == observed
        assert stored(heir) == 1
        heir.expect(sent_by(CLIENTS[4], dport=81), TX)
        heir.expect(sent_by(CLIENTS[4] + 256, dport=81), NOT_FOR_YOU)
        for family in (4, 6):
            for sport in (2, 3):
                backends = {heir.expect(each, TX).backend for each in by_clients(family, sport)}
                assert backends == set(NEAR[family][:2])


def test_those_whose_last_flow_began_last_find_room(net: Network, pins: Path) -> None:
    """In a table that is too small for all."""
    with rigged(net, pins=pins) as rig:
        rig.serve(sticky(4, slice(3)))
        ways = rig.balancer._program.rows("clients")["way"]
        for n in range(1500):
            rig.run(frame(4, source=CLIENTS[4] + 256 * n))
        numbers = ways["addr"]["word"][..., 3].astype(np.int64) - int(CLIENTS[4])
        old = (ways["ref"] != 0) & (numbers >= 256 * 750)
        ways["seen"][old] -= 999
        assert old.sum() > 700
    with rigged(net, pins=pins, limits=replace(SMALL, clients=1024)) as heir:
        ways = heir.balancer._program.rows("clients")["way"]
        numbers = ways["addr"]["word"][..., 3].astype(np.int64) - int(CLIENTS[4])
        used = ways["ref"] != 0
        assert 900 < used.sum() <= 1024
        assert (used & (numbers < 256 * 750)).sum() > 0.9 * 750


def test_sources_that_do_not_fit_are_refused(net: Network, pins: Path) -> None:
    """And the load balancer of before is as it was."""
    many = [f"198.51.{n}.7" for n in range(20)]
    with rigged(net, pins=pins) as rig:
        rig.serve(allowing(4, "198.51.100.7", *many))
    small = replace(SMALL, sources=20)
    with (
        pytest.raises(CapacityError, match="sources: 21 needed, 20 at most"),
        rigged(net, pins=pins, limits=small),
    ):
        pass
    with rigged(net, pins=pins) as heir:
        assert heir.balancer._maps.adopted
        heir.expect(sent_by(CLIENTS[4]), TX)
