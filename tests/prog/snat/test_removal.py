# SPDX-License-Identifier: Apache-2.0
"""Backends of services that translate keep their flows until these have ended."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from tests.prog.lb.network import NEAR
from tests.prog.lb.oracle import TX
from tests.prog.snat.harness import NatRig, answer, client_frame, established, nat_rigged
from tests.prog.snat.harness import snat_service as translated
from tests.prog.snat.oracle import NatOutcome

from towpath.core.lb.states import BackendKey
from towpath.core.lb.terminating import find_terminating, merge_terminating
from towpath.datapath.flows.count import ENDED_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.prog.lb.network import Network

    from towpath.model import Address, Service

FLOWS = 24
IDLE = 300.0


@pytest.fixture
def nat(net: Network) -> Iterator[NatRig]:
    """With an empty table."""
    with nat_rigged(net) as made:
        yield made


def flow_counts(nat: NatRig, of: Service) -> dict[Address, int]:
    """Flows as they are counted, those of no backend left out."""
    keys = [BackendKey(of.key, each.address) for each in of.backends]
    counted = nat.balancer.flow_counter(keys).count(IDLE)
    return {key.address: flows for key, flows in counted.items() if flows}


def backend_of(outcome: object) -> Address:
    """Where a packet was sent to."""
    assert isinstance(outcome, NatOutcome)
    assert outcome.backend is not None
    return outcome.backend


@pytest.mark.parametrize("version", [4, 6])
def test_a_backend_that_leaves_keeps_its_flows(nat: NatRig, version: int) -> None:
    """They are counted, go on, and are the only ones that it has."""
    whole = translated(version, *NEAR[version][:3])
    nat.serve(whole)
    homes = {n: backend_of(established(nat, version, 6, 1000 + n)) for n in range(FLOWS)}
    assert flow_counts(nat, whole) == Counter(homes.values())
    gone = homes[0]
    rest = replace(whole, backends=tuple(b for b in whole.backends if b.address != gone))
    leaving = find_terminating([whole], [rest], {}, now=0, timeout=60)
    (terminating,) = merge_terminating([rest], leaving)
    nat.serve(terminating)
    for number, home in homes.items():
        frame = client_frame(version, sport=1000 + number, flags="A")
        assert backend_of(nat.expect(frame, TX)) == home
    new = {backend_of(established(nat, version, 6, 9000 + n)) for n in range(FLOWS)}
    assert gone not in new
    assert flow_counts(nat, terminating)[gone] == Counter(homes.values())[gone]


def test_flows_that_have_ended_count_no_longer(nat: NatRig) -> None:
    """By FIN of both sides or by a reset, and a moment later; by one FIN they haven't."""
    whole = translated(4, NEAR[4][0])
    nat.serve(whole)
    for number in range(3):
        established(nat, 4, 6, 1000 + number)
    half = nat.expect(client_frame(sport=1000, flags="FA"), TX)
    nat.expect(client_frame(sport=1001, flags="R"), TX)
    assert flow_counts(nat, whole) == {NEAR[4][0]: 3}
    nat.later(2 * ENDED_SECONDS)
    assert flow_counts(nat, whole) == {NEAR[4][0]: 2}
    nat.expect(answer(half, flags="FA"), TX)
    nat.later(2 * ENDED_SECONDS)
    assert flow_counts(nat, whole) == {NEAR[4][0]: 1}
    nat.later(2 * IDLE)
    assert flow_counts(nat, whole) == {}
