# SPDX-License-Identifier: Apache-2.0
"""The load balancer's fast way decides as its general one, and leaves alone what it leaves to it.

Time stands still here (``still.bpf.c``), and there is one CPU, so that next hops stay known: with
the others' clock one packet of a thousand would go the fast way. Each frame goes both ways, in
turn one or the other first, and each time verdict, bytes and counters are the oracle's.
"""

from __future__ import annotations

from ipaddress import ip_network
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.guests import examples
from tests.prog.lb.frames import CLIENTS, VIPS, frame
from tests.prog.lb.harness import COUNTERS, Rig, rigged, service
from tests.prog.lb.network import FAR, IN, NEAR, THIRDS
from tests.prog.lb.oracle import NO_VIP, REDIRECT, TX
from tests.prog.lb.test_fuzz import Damage, Recipe, all_services, damages, devices, recipes

from towpath.bench.cpu import on_one_cpu
from towpath.model import Affinity, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.prog.lb.network import Network
    from tests.prog.lb.oracle import Outcome
    from tests.prog.lb.oracle_parse import Address

    from towpath.kernel.bpf.programs import TestRun

FAST, GENERAL = "fast_alone", "general_alone"
XDP_ABORTED = 0
RECIPES = examples(100)
DAMAGED = 20
LEAST = 0.05
"""Share of the frames that the fast way must have decided, or hardly anything was shown."""


class BothWays(Rig):
    """Sends each frame both ways."""

    turn = cycle((True, False))
    decided = 0
    declined = 0
    last: TestRun

    def check(self, frame: bytes, device: str = IN) -> Outcome:
        """As for every packet, twice; what comes out is the same."""
        outcomes, came = [], []
        for way in (FAST, GENERAL) if next(self.turn) else (GENERAL, FAST):
            self.way = way
            outcomes.append(super().check(frame, device))
            came.append((self.last.retval, self.last.data))
        assert came[0] == came[1], (came, frame.hex())
        return outcomes[0]

    def flows(self) -> Any:
        """All entries of the flow table."""
        return self._program.rows("flows")["way"]

    def alone(self, way: str, frame: bytes) -> Outcome:
        """By one of the ways."""
        self.way = way
        return super().check(frame)

    def run(self, frame: bytes, device: str = IN, **options: object) -> TestRun:
        """What the fast way doesn't decide it hasn't touched; the whole program goes on with it."""
        if self.way == FAST and self._declines(frame, device):
            self.way = "towpath_lb"
        elif self.way == FAST:
            return self.last
        self.last = super().run(frame, device, **options)  # type: ignore[arg-type]
        return self.last

    def _declines(self, frame: bytes, device: str) -> bool:
        for each in ("tick", "answer_tick"):
            self.tables["flow_cpus"][each] = 0
        before = {name: self._program.rows(name).copy() for name in (*COUNTERS, "flow_tags")}
        self.last = super().run(frame, device, new_jiffy=False)
        if self.last.retval != XDP_ABORTED:
            self.decided += 1
            return False
        self.declined += 1
        assert self.last.data == frame
        for name, rows in before.items():
            assert rows.tobytes() == self._program.rows(name).tobytes(), name
        return True


@pytest.fixture(scope="module")
def both(net: Network) -> Iterator[BothWays]:
    """A load balancer of which each way can be asked; each CPU knows next hops of its own."""
    with on_one_cpu(), rigged(net, still=True) as made:
        yield BothWays(made.balancer, net)


@pytest.mark.parametrize("version", [4, 6])
def test_the_fast_way_decides_what_it_is_for(both: BothWays, version: int) -> None:
    """Known and new flows, however they are found and forwarded, by either device, and no VIPs."""
    targets = [*NEAR[version], *FAR[version], *THIRDS[version]]
    if version == 4:
        targets += NEAR[6]
    here = ip_network(CLIENTS[version])
    kinds: list[tuple[list[Address], dict[str, Any]]] = [
        (targets, {}),
        (targets, {"flow_table": False}),
        ([*NEAR[version]], {"forwarding": "l2"}),
        (targets, {"allow_from": (here,)}),
        (targets, {"affinity": Affinity(10000)}),
        (targets, {"affinity": Affinity(10000), "flow_table": False}),
        (targets, {"encap": "gre"}),
        (targets, {"encap": "gue", "encap_port": 9886}),
        (targets, {"encap": "gue0", "flow_table": False}),
        (targets, {"hash_by": "port"}),
    ]
    both.serve(
        *(
            service(VIPS[version] + n, *backends, protocol=p, **options)
            for n, (backends, options) in enumerate(kinds)
            for p in Protocol
        )
    )
    sent = [
        flow(version, target, protocol, 4000 + n)
        for target in range(len(kinds))
        for protocol in Protocol
        for n in range(32)
    ]
    for each in sent:
        both.alone("towpath_lb", each)  # the next hops are asked for
    both.seen.clear()
    both.decided = both.declined = 0
    for each in sent:
        both.alone(FAST, each)
    assert {TX, REDIRECT} <= set(both.seen)
    for each in (flow(version, 0, protocol, 9000) for protocol in Protocol):
        both.alone(FAST, each)
    assert both.alone(FAST, flow(version, 77, Protocol.TCP, 1)).verdict == NO_VIP
    assert both.declined == 0


@pytest.mark.parametrize("version", [4, 6])
def test_a_flow_whose_backend_is_gone_is_learnt_in_its_place(both: BothWays, version: int) -> None:
    """It is new once, and has one entry."""
    targets = NEAR[version][:4]
    both.serve(service(VIPS[version], *targets))
    sent = [flow(version, 0, Protocol.TCP, 4000 + n) for n in range(64)]
    for each in sent:
        both.alone("towpath_lb", each)
    entries = np.count_nonzero(both.flows()["ref"])
    both.serve(service(VIPS[version], *targets[1:]))
    gone = [both.alone(FAST, each) for each in sent]
    assert any(outcome.fresh for outcome in gone)
    assert not any(both.alone(FAST, each).fresh for each in sent)
    assert np.count_nonzero(both.flows()["ref"]) == entries


def flow(version: int, target: int, protocol: Protocol, sport: int) -> bytes:
    """A packet as long as one on a wire is, whose padding counts."""
    vip = VIPS[version] + target
    return frame(version, protocol.number, vip=vip, sport=sport, payload=bytes(32))


@pytest.mark.thorough
def test_both_ways_decide_the_same_of_any_frame(both: BothWays) -> None:
    """Frames that are nearly right, and their damaged copies, of every kind of service."""
    both.serve(*all_services())
    both.decided = both.declined = 0

    @settings(max_examples=RECIPES)
    @given(recipes, st.lists(damages, min_size=DAMAGED, max_size=DAMAGED), devices)
    def agree(recipe: Recipe, copies: list[Damage], device: str) -> None:
        right = recipe.frame()
        both.check(right, device)
        for damage in copies:
            both.check(damage.of(right), device)

    agree()
    assert both.decided > LEAST * (both.decided + both.declined), (both.decided, both.declined)
