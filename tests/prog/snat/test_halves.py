# SPDX-License-Identifier: Apache-2.0
"""Half an entry, whoever has stored it so: the client's next packet ends it or makes it whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.prog.lb.network import NEAR
from tests.prog.lb.oracle import NO_VIP, TX
from tests.prog.snat.harness import (
    PORTS,
    NatRig,
    answer,
    client_frame,
    established,
    port_of,
    snat_service,
)
from tests.prog.snat.oracle import NatOutcome

if TYPE_CHECKING:
    from tests.prog.lb.oracle import Outcome

HALVES = {
    "both tags": ("forward", "reply"),
    "its client's": ("forward",),
    "its reply's": ("reply",),
}


@pytest.fixture
def nat(narrowed: NatRig) -> NatRig:
    """As narrow as can be: flows meet."""
    return narrowed


def halve(nat: NatRig, flow: Outcome, sides: tuple[str, ...]) -> None:
    """Take tags out of the head of an entry's set; to the oracle the entry isn't there."""
    assert isinstance(flow, NatOutcome)
    assert flow.entry is not None
    number, way = nat.world.table.place(flow.entry)
    for side in sides:
        word = nat.tables["nat_heads"][side]
        assert word[number] & 0xFF << 8 * way
        word[number] &= ~(0xFF << 8 * way) & (1 << 64) - 1
    nat.world.table.forget(flow.entry)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("protocol", [6, 17])
@pytest.mark.parametrize("missing", HALVES)
def test_the_flow_goes_on(nat: NatRig, version: int, protocol: int, missing: str) -> None:
    """By its port, both ways, from the client's next packet on, whichever that is."""
    flow = established(nat, version, protocol, 1000)
    halve(nat, flow, HALVES[missing])
    again = nat.expect(client_frame(version, protocol, sport=1000, flags="A"), TX)
    assert (again.fresh, port_of(again)) == (True, port_of(flow))
    nat.expect(answer(again, flags="A"), TX)
    once_more = nat.expect(client_frame(version, protocol, sport=1000, flags="A"), TX)
    assert not once_more.fresh


@pytest.mark.parametrize("missing", HALVES)
def test_a_flow_whose_backend_is_gone(nat: NatRig, missing: str) -> None:
    """Gets another one, as if its entry were whole."""
    flow = established(nat, 4, 6, 1000)
    halve(nat, flow, HALVES[missing])
    nat.serve(snat_service(4, NEAR[4][1]))
    again = nat.expect(client_frame(sport=1000), TX)
    assert again.backend == NEAR[4][1]
    nat.expect(answer(again), TX)


@pytest.mark.parametrize("missing", HALVES)
def test_no_port_is_held(nat: NatRig, missing: str) -> None:
    """By entries that are half there: each port is another flow's at once."""
    flows = [established(nat, 4, 6, 1000 + n) for n in range(PORTS)]
    for each in flows:
        halve(nat, each, HALVES[missing])
    others = [established(nat, 4, 6, 2000 + n) for n in range(PORTS)]
    assert sorted(map(port_of, others)) == sorted(map(port_of, flows))
    for each in others:
        nat.expect(answer(each, flags="A"), TX)


def test_what_nobody_finds_is_not_translated(nat: NatRig) -> None:
    """Until the client's next packet comes a reply is nobody's."""
    flow = established(nat, 4, 6, 1000)
    halve(nat, flow, HALVES["both tags"])
    nat.expect(answer(flow, flags="A"), NO_VIP)
