# SPDX-License-Identifier: Apache-2.0
"""A hundred thousand flows, counted, and which of them move when a backend goes."""

from __future__ import annotations

import random
import sys
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from tests.guests import examples
from tests.prog.lb.frames import VIPS, flows
from tests.prog.lb.harness import SMALL, Rig, rigged, service
from tests.prog.lb.network import NEAR, Network
from tests.prog.lb.oracle import XDP_TX

from towpath.core.lb.states import BackendKey
from towpath.core.lb.terminating import find_terminating, merge_terminating
from towpath.datapath.maps import shared
from towpath.model import BackendState

if TYPE_CHECKING:
    from collections.abc import Iterator

    from towpath.model import Address, Service

FLOWS = examples(100_000, 2_000)
ROOMY = replace(SMALL, flows=1 << 20)
"""So much room that no flow pushes another one out: with this seed no set gets more than its ways.

Which flows share a set depends on a random number. In one of fifty tables 100,000 flows give one of
the 131,072 sets a ninth, and the table forgets a flow, as a cache may.
"""
SEED = 1
WEB = service(VIPS[4], *NEAR[4], table_size=1021)
GONE = NEAR[4][3]
IDLE = 300.0
OUTER_DESTINATION = slice(30, 34)


@pytest.fixture
def rig(net: Network, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    """A load balancer with room for all flows."""
    known = random.Random(SEED)  # noqa: S311 - so that it isn't random
    monkeypatch.setattr(shared, "secrets", SimpleNamespace(randbits=known.getrandbits))
    with rigged(net, limits=ROOMY) as made:
        made.serve(WEB)
        yield made


def backends(rig: Rig, count: int = FLOWS) -> list[bytes]:
    """Send a packet of each flow: the backend that each goes to."""
    found = []
    for each in flows(count):
        run = rig.run(each)
        assert run.retval == XDP_TX
        found.append(run.data[OUTER_DESTINATION])
    return found


def flow_counts(rig: Rig, of: Service = WEB, idle: float = IDLE) -> dict[Address, int]:
    """Flows as they are counted, those of no backend left out."""
    keys = [BackendKey(of.key, each.address) for each in of.backends]
    counted = rig.balancer.flow_counter(keys).count(idle)
    return {key.address: flows for key, flows in counted.items() if flows}


def moved(before: list[bytes], after: list[bytes]) -> Counter[bytes]:
    """How many flows each backend has lost."""
    return Counter(was for was, now in zip(before, after, strict=True) if was != now)


def test_a_removal_moves_only_the_flows_of_one(
    rig: Rig, capsys: pytest.CaptureFixture[str]
) -> None:
    """None while it leaves, its own and no other when it is gone."""
    before = backends(rig)
    owned = Counter(before)
    assert flow_counts(rig) == {each: owned[each.packed] for each in NEAR[4]}

    rest = replace(WEB, backends=tuple(b for b in WEB.backends if b.address != GONE))
    leaving = find_terminating([WEB], [rest], {}, now=0, timeout=60)
    (terminating,) = merge_terminating([rest], leaving)
    rig.serve(terminating)
    by_terminating = moved(before, backends(rig))
    assert flow_counts(rig) == {each: owned[each.packed] for each in NEAR[4]}

    rig.serve(rest)
    after = backends(rig)
    by_force = moved(before, after)
    with capsys.disabled():
        sys.stdout.write(
            f"\n  {FLOWS} flows, {owned[GONE.packed]} of the backend removed: moved while it"
            f" leaves {by_terminating.total()}, when it is gone {dict(by_force)} "
        )
    assert by_terminating == {}
    assert by_force == {GONE.packed: owned[GONE.packed]}
    assert flow_counts(rig) == {
        each: Counter(after)[each.packed] for each in NEAR[4] if each != GONE
    }


def test_down_is_counted_as_nobody(rig: Rig) -> None:
    """Entries of handles that are stale are no flows, whoever has the index by then."""
    owned = Counter(backends(rig, 1000))
    fallen = tuple(
        replace(each, state=BackendState.DOWN) if each.address == GONE else each
        for each in WEB.backends
    )
    rig.serve(replace(WEB, backends=fallen))
    expected = {each: owned[each.packed] for each in NEAR[4] if each != GONE}
    assert flow_counts(rig) == expected
    rig.serve(WEB)
    assert flow_counts(rig) == expected


def test_services_have_flows_of_their_own(rig: Rig) -> None:
    """One host behind two services is two backends."""
    other = replace(WEB, name="other", port=81)
    rig.serve(WEB, other)
    owned = Counter(backends(rig, 1000))
    assert flow_counts(rig) == {each: owned[each.packed] for each in NEAR[4]}
    assert flow_counts(rig, other) == {}
    gone = replace(WEB, name="gone", port=82)
    assert rig.balancer.flow_counter([BackendKey(gone.key, GONE)]).count(IDLE) == {}


@pytest.mark.parametrize("shift", [0, 40_000], ids=["now", "when the clock goes round"])
def test_flows_that_were_idle_too_long_have_ended(rig: Rig, shift: int) -> None:
    """By the time they were last seen; their clock goes round, and so does the count."""
    backends(rig, 1000)
    table = rig.balancer.flow_table
    assert sum(flow_counts(rig).values()) == 1000
    ways = rig.balancer._program.rows("flows")["way"]
    known = ways["ref"] != 0
    idle = (2000 + shift) * table.resolution_seconds
    for back, counted in ((1000, 1000), (3000, 0), (1000, 1000)):  # minutes from what counts
        ways["seen"][known] = np.uint16(table._clock.steps() - back - shift & 0xFFFF)
        assert sum(flow_counts(rig, idle=idle).values()) == counted
