# SPDX-License-Identifier: Apache-2.0
"""Of two CPUs one may be in the next unit of time: what it has seen is young, not very old."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pytest
from scapy.layers.inet import TCP
from tests.prog.lb.frames import VIPS, ether, frame, ip
from tests.prog.lb.harness import Rig, service
from tests.prog.lb.network import NEAR
from tests.prog.lb.oracle import TX
from tests.prog.lb.test_affinity import begin, clients, known, sticky
from tests.prog.lb.test_fragments import forget, pieces

from towpath.kernel.jiffies import Jiffies
from towpath.model import Backend, BackendState, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.prog.lb.oracle_parse import Address

TRIES = 100
MANY = 40


@pytest.fixture(autouse=True)
def nothing_known(rig: Rig) -> Iterator[None]:
    """Each test starts with flows, clients and fragments that nobody knows."""
    rig.serve()
    yield
    rig.serve()
    forget(rig)


def until_in_time(clock: Callable[[], int], go: Callable[[int], None]) -> None:
    """Give `go` the time, again and again until it needed less than a unit."""
    for _ in range(TRIES):
        now = clock()
        go(now)
        if clock() == now:
            return
    pytest.fail("no run took less than a unit of time")


@pytest.mark.parametrize("family", [4, 6])
def test_a_flow_that_was_seen_ahead(rig: Rig, family: int) -> None:
    """A SYN doesn't take it from a backend that is draining, as it would after a long time."""
    rig.serve(service(VIPS[family], *NEAR[family][:2]))
    flows = [frame(family, sport=1000 + n) for n in range(MANY)]
    had = [rig.expect(each, TX).backend for each in flows]
    first, second = NEAR[family][:2]
    rig.serve(service(VIPS[family], Backend(first, state=BackendState.DRAINING), second))
    ways = rig.balancer._program.rows("flows")["way"]
    with Jiffies() as jiffies:
        ways["seen"][ways["ref"] != 0] = np.uint16((jiffies.now() >> 6) + 3 & 0xFFFF)
    for sport, backend in enumerate(had, 1000):
        syn = bytes(ether() / ip(family) / TCP(sport=sport, dport=80, flags="S"))
        assert rig.expect(syn, TX).backend == backend
    assert {first, second} == set(had)


@pytest.mark.parametrize("family", [4, 6])
def test_a_client_that_was_seen_ahead(rig: Rig, family: int) -> None:
    """Keeps its backend for new flows."""
    rig.serve(sticky(family, *NEAR[family][:2]))
    had = {each: begin(rig, each, 1).backend for each in clients(family)}
    rig.serve(sticky(family, *NEAR[family]))

    def go(client: Address, now: int) -> None:
        ways, used = known(rig)
        ways["seen"][used] = now + 1
        assert begin(rig, client, 2 + now % 1000).backend == had[client]

    for each in had:
        until_in_time(lambda: int(time.clock_gettime(time.CLOCK_MONOTONIC)), partial(go, each))


@pytest.mark.parametrize("family", [4, 6])
def test_a_fragment_that_was_left_ahead(rig: Rig, family: int) -> None:
    """Its packet's others find it."""
    rig.serve(service(VIPS[family], *NEAR[family], protocol=Protocol.UDP))
    first, *others = pieces(family)
    rig.expect(first, TX)
    outcomes = set()

    def go(now: int) -> None:
        ways = rig.fragments.ways
        ways["seen"][ways["ref"] != 0] = now + 9
        outcomes.add(rig.run(others[0]).retval)

    until_in_time(lambda: rig.fragments.now() // 8, lambda now: go(8 * now))
    assert outcomes == {3}
