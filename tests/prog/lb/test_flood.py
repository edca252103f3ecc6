# SPDX-License-Identifier: Apache-2.0
"""A flow table far too small: nothing is dropped, and no flow gets a backend by accident."""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from tests.guests import examples
from tests.prog.lb.frames import PORT, VIPS, flows
from tests.prog.lb.harness import SMALL, Rig, key_of, rigged, served, service
from tests.prog.lb.network import IN, NEAR, Network
from tests.prog.lb.oracle import TX, XDP_TX, World

from towpath.model import Backend, Service

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tests.prog.lb.oracle import Outcome

SMALLEST = replace(SMALL, flows=1024)
FLOOD = examples(12 * SMALLEST.flows, SMALLEST.flows * 5 // 4)
LEARNT_IN_A_JIFFY = 512


@pytest.fixture
def small(net: Network) -> Iterator[Rig]:
    """A load balancer with room for a thousand flows."""
    with rigged(net, limits=SMALLEST) as rig:
        yield rig


def world_with(rig: Rig, wish: Service) -> World:
    """The oracle's world with one service, and no flow remembered."""
    return replace(rig.world, services={key_of(wish): served(wish)}, remembered={})


@pytest.mark.parametrize("family", [4, 6])
def test_a_flood_of_flows(small: Rig, family: int) -> None:
    """More by far than there is room for, then a new table, then all of them again."""
    tables = [service(VIPS[family], *NEAR[family][:4]), service(VIPS[family], *NEAR[family])]
    worlds = [world_with(small, each) for each in tables]
    small.serve(tables[0])
    for each in flows(FLOOD, family):
        assert_as_one_of(small, each, worlds[:1])
    small.serve(tables[1])
    remembered = 0
    for each in reversed(list(flows(FLOOD, family))):
        ours, maglevs = (world.judge(each, small.devices[IN]) for world in worlds)
        came = assert_as_one_of(small, each, worlds)
        remembered += ours.frame != maglevs.frame and came.frame == ours.frame
    # One at least of each set's eight ways has one of the last flows, and half of these move.
    assert SMALLEST.flows // 8 // 4 < remembered < SMALLEST.flows
    assert small.seen[TX] == 2 * FLOOD
    counted = small.balancer.counters()
    assert counted.verdicts[TX] == 2 * FLOOD
    assert sum(counted.verdicts.values()) == 2 * FLOOD


def assert_as_one_of(rig: Rig, frame: bytes, worlds: Iterable[World]) -> Outcome:
    """Run a frame, whose outcome must be what one of the worlds foretells."""
    run = rig.run(frame)
    for world in worlds:
        outcome = world.judge(frame, rig.devices[IN])
        if (run.retval, run.data) == (outcome.action, outcome.frame):
            rig.seen[outcome.verdict] += 1
            return outcome
    raise AssertionError(f"{frame.hex()}: {run.data.hex()} is nobody's choice")


def test_flows_learnt_in_a_jiffy_are_limited(small: Rig) -> None:
    """Beyond that Maglev answers, without the table being written: floods leave it alone."""
    small.serve(service(VIPS[4], *NEAR[4]))
    rows = small.tables["flow_cpus"]
    with one_cpu() as cpu:
        for before, each in zip(flows(500), flows(500, start=500), strict=True):
            small.run(before)
            tick = int(rows["tick"][cpu])
            rows["learnt"][cpu] = LEARNT_IN_A_JIFFY
            small.run(each, new_jiffy=False)
            # Only if this was still the jiffy in which all had been learnt.
            if int(rows["tick"][cpu]) == tick:
                break
        else:
            pytest.fail("no two packets in a thousand were of one jiffy")
    assert int(rows["learnt"][cpu]) == LEARNT_IN_A_JIFFY + 1
    assert [new_flows(small, each) for _ in range(3)] == [1, 0, 0]


def new_flows(rig: Rig, frame: bytes) -> int:
    """How many flows a frame is counted as."""
    before = rig.counters()
    rig.run(frame)
    return rig.moved(before, rig.counters()).get(((VIPS[4], PORT, 6), "flows"), 0)


@contextmanager
def one_cpu() -> Iterator[int]:
    """Run the block on one CPU, before other processes there; gives its number.

    What waits for a jiffy to begin would otherwise have to make way at that very moment.
    """
    allowed, policy, priority = (
        os.sched_getaffinity(0),
        os.sched_getscheduler(0),
        os.sched_getparam(0),
    )
    cpu = min(allowed)
    os.sched_setaffinity(0, {cpu})
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    try:
        yield cpu
    finally:
        os.sched_setscheduler(0, policy, priority)
        os.sched_setaffinity(0, allowed)


def test_cpus_that_write_one_table_at_once(small: Rig) -> None:
    """Threads send the same flows and others while tables change: each answer is somebody's."""
    tables = [
        service(VIPS[4], *NEAR[4][:4]),
        service(VIPS[4], *NEAR[4]),
        service(VIPS[4], *(Backend(address, 1 + n) for n, address in enumerate(NEAR[4]))),
    ]
    worlds = [world_with(small, each) for each in tables]
    small.serve(tables[0])
    made = list(flows(examples(2000, 500)))
    allowed = [{world.judge(each, small.devices[IN]).frame for world in worlds} for each in made]
    wrong: list[bytes] = []
    rounds = 4

    def send() -> None:
        for _ in range(rounds):
            for each, answers in zip(made, allowed, strict=True):
                run = small.run(each)
                if run.retval != XDP_TX or run.data not in answers:
                    wrong.append(each)

    threads = [threading.Thread(target=send) for _ in range(2)]
    for thread in threads:
        thread.start()
    changes = 0
    while any(thread.is_alive() for thread in threads):
        changes += 1
        small.balancer.apply([tables[changes % len(tables)]])
    for thread in threads:
        thread.join()
    assert not wrong
    assert changes > 1
    counted = small.balancer.counters()
    assert counted.verdicts[TX] == len(threads) * rounds * len(made)
    [of_service] = counted.services
    assert of_service.packets == counted.verdicts[TX]
