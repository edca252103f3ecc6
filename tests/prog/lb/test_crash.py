# SPDX-License-Identifier: Apache-2.0
"""A process that dies in the middle of a change: packets go on, and the next one finishes it."""

from __future__ import annotations

import mmap
import os
import signal
import traceback
import warnings
from contextlib import ExitStack
from dataclasses import replace
from ipaddress import IPv4Network
from typing import TYPE_CHECKING, Any

import pytest
from tests.guests import examples
from tests.prog.lb.frames import VIPS, made_for
from tests.prog.lb.harness import Rig, key_of, rigged, served, service
from tests.prog.lb.network import IN, NEAR, Network
from tests.prog.lb.oracle import NO_VIP, TX

from towpath.core.lb.plan import plan
from towpath.datapath.lb.execute import execute
from towpath.kernel.bpf import bpffs
from towpath.model import Affinity, Backend, BackendState, Service

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from tests.prog.lb.oracle_parse import Address

    from towpath.datapath.balancer import Balancer
    from towpath.model import ServiceKey

A, B, C, D = NEAR[4][:4]
_, DRAINING, QUARANTINED, DOWN = BackendState
pytestmark = pytest.mark.thorough
KILLS = examples(8, 2)

# Client ports. Every flow of OLD is known; of these, one half is seen again while nobody is there,
# and one quarter each when the next process has taken over and when it has made the change.
# Behind them are as many flows that are new by then.
QUARTER = examples(10, 4)
OLD = (2000, 2000 + 4 * QUARTER)
DEAD = (2000, 2000 + 2 * QUARTER)
ADOPTED = (DEAD[1], DEAD[1] + QUARTER)
APPLIED = (ADOPTED[1], ADOPTED[1] + 3 * QUARTER)


def at(number: int, *backends: Backend, table_size: int = 251, **options: Any) -> Service:
    """The service at one of several VIPs."""
    return service(VIPS[4] + number, *backends, table_size=table_size, **options)


def weights(states: dict[str, BackendState] | None = None, **by_name: int) -> list[Backend]:
    """Backends A to D by name, with their weights; active where nothing else is said."""
    addresses = {"a": A, "b": B, "c": C, "d": D}
    states = states or {}
    return [
        Backend(addresses[name], weight, states.get(name, BackendState.ACTIVE))
        for name, weight in by_name.items()
    ]


CLIENTS = (IPv4Network("198.51.100.0/24"),)
UNTOUCHED = (
    at(0, *weights(a=1, b=2, c=1)),
    service(VIPS[6], *NEAR[6][:3], table_size=251),
    at(1, *weights(a=1), flow_table=False),
)
# When flows began, every backend took some.
HISTORY = (
    at(10, *weights(a=1, b=1)),
    at(11, *weights(a=1, b=1)),
    at(12, *weights(a=1, b=1, c=1, d=1)),
    at(13, *weights(a=1, b=1, c=1)),
    at(14, *weights(a=1, b=1)),
    at(15, *weights(a=1, b=1)),
    at(17, *weights(a=1, b=1, c=1, d=1)),
)
BEFORE = (
    *HISTORY[:3],
    at(13, *weights(a=1, b=0, c=2)),
    *HISTORY[4:6],
    at(17, *weights({"a": DRAINING, "b": QUARANTINED}, a=1, b=2, c=1, d=1)),
)
AFTER = (
    # 10 goes, and 16 is new.
    at(11, *weights(a=1, b=1, c=1, d=2), affinity=Affinity(1000)),
    at(12, *weights(a=1, b=3)),
    at(13, *weights(a=0, b=5, c=2)),
    at(14, *weights(a=1, b=1), table_size=509, forwarding="l2", allow_from=CLIENTS),
    at(15, *weights(a=1, b=1), flow_table=False),
    at(16, *weights(a=1, b=1)),
    at(17, *weights({"b": DOWN, "c": DRAINING, "d": DOWN}, a=1, b=2, c=1, d=1)),
)
FALLEN = {each.address for s in AFTER for each in s.backends if each.state is DOWN}
STEPS = plan((*UNTOUCHED, *BEFORE), (*UNTOUCHED, *AFTER)).steps


class Lineage:
    """Load balancers of one place, each the heir of the one before."""

    def __init__(self, net: Network, pins: Path, lives: ExitStack) -> None:
        self._net, self._pins, self._lives = net, pins, lives
        self.rig = lives.enter_context(rigged(net, pins=pins))

    def succeed(self) -> Rig:
        """Take over from one that is dead, whose flows are known."""
        before = self.rig.world
        self.rig.balancer.close()
        self.rig = self._lives.enter_context(rigged(self._net, pins=self._pins))
        self.rig.world.remembered, self.rig.world.clients = before.remembered, before.clients
        self.rig.told(self.rig.balancer.observed())
        return self.rig


@pytest.fixture(scope="module")
def line(net: Network) -> Iterator[Lineage]:
    """The first of them, and what is left of the last removed."""
    pins = bpffs.ROOT / "towpath-lineage"
    with ExitStack() as lives:
        lives.callback(bpffs.remove_pins, pins)
        yield Lineage(net, pins, lives)


@pytest.fixture
def rig(line: Lineage) -> Rig:
    """The load balancer before the change, with flows from when every backend took some."""
    line.rig.serve()
    line.rig.serve(*UNTOUCHED, *HISTORY)
    for each in (*UNTOUCHED, *HISTORY):
        for made in frames(each, range(*OLD)):
            line.rig.expect(made, TX)
    line.rig.serve(*UNTOUCHED, *BEFORE)
    return line.rig


def frames(each: Service, ports: range) -> Iterator[bytes]:
    """A frame for each client port."""
    made = bytearray(made_for(each))
    field = {4: 34, 6: 54}[each.vip.version]
    for port in ports:
        made[field : field + 2] = port.to_bytes(2, "big")
        yield bytes(made)


def in_child(work: Callable[[], None]) -> int:
    """Run in a child process, which then ends at once, as by a kill; returns its number."""
    with warnings.catch_warnings():
        # Python warns of forking while there are threads: pytest's watchdog is one.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child:
        return child
    try:
        work()
    except BaseException:  # noqa: BLE001 - whatever it is, pytest must not run on in the child
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


@pytest.mark.parametrize("done", range(len(STEPS) + 1))
def test_death_between_two_steps(rig: Rig, line: Lineage, done: int) -> None:
    """After any number of steps: traffic goes on, is taken over, and the change is made."""

    def die_after_some_steps() -> None:
        for step in STEPS[:done]:
            execute(step, rig.balancer._contents.tables)

    child = in_child(die_after_some_steps)
    assert os.waitpid(child, 0) == (child, 0)
    assert_traffic_goes_on(rig)
    heir = line.succeed()
    assert_nothing_is_lost(heir)
    assert_works(heir, ADOPTED)
    heir.serve(*UNTOUCHED, *AFTER)
    assert_works(heir, APPLIED)
    for made in frames(BEFORE[0], range(*APPLIED)):
        heir.expect(made, NO_VIP)


def test_death_at_any_moment(rig: Rig, line: Lineage) -> None:
    """Killed from outside while it changes all to and fro, so not only between two steps."""
    wishes = [(*UNTOUCHED, *AFTER), (*UNTOUCHED, *BEFORE)]
    with mmap.mmap(-1, mmap.PAGESIZE) as changes:
        for kill in range(KILLS):
            changes[0] = 0

            def change_for_ever(balancer: Balancer = rig.balancer) -> None:
                while True:
                    balancer.apply(wishes[changes[0] % 2])
                    changes[0] += 1

            child = in_child(change_for_ever)
            while changes[0] <= kill:
                assert os.waitpid(child, os.WNOHANG) == (0, 0)
                assert_untouched_go_on(rig)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            rig = line.succeed()
            assert_tables_are_those_of_their_backends(rig)
            assert_untouched_go_on(rig)
    rig.serve(*UNTOUCHED, *AFTER)
    for each in (*UNTOUCHED, *AFTER):
        for made in frames(each, range(OLD[1], APPLIED[1])):
            rig.expect(made, TX)


# ---- While nobody is there -----------------------------------------------------------------------


def assert_traffic_goes_on(rig: Rig) -> None:
    """Services that the change isn't about notice nothing; the others are as before or as after."""
    for each in UNTOUCHED:
        for made in frames(each, range(*DEAD)):
            rig.expect(made, TX)
    worlds = []
    for services in (BEFORE, AFTER):
        world = replace(rig.world)
        world.serve({key_of(each): served(each) for each in (*UNTOUCHED, *services)})
        worlds.append(world)
    for each in (*BEFORE, *AFTER):
        for made in frames(each, range(*DEAD)):
            run = rig.run(made)
            judged = [world.judge(made, rig.devices[IN]) for world in worlds]
            assert (run.retval, run.data) in [(one.action, one.frame) for one in judged]


def assert_untouched_go_on(rig: Rig) -> None:
    """Known flows of services that no change is about."""
    for each in UNTOUCHED:
        for made in frames(each, range(*OLD)):
            judged, run = rig.world.judge(made, rig.devices[IN]), rig.run(made)
            assert (run.retval, run.data) == (judged.action, judged.frame)


# ---- What the next process finds -----------------------------------------------------------------


def assert_nothing_is_lost(rig: Rig) -> None:
    """What is there before and after the change was there in between, and nothing else was.

    But for what goes down: its flows end anyway.
    """
    found = addresses(rig.balancer.observed())
    before, after = addresses((*UNTOUCHED, *BEFORE)), addresses((*UNTOUCHED, *AFTER))
    assert before.keys() & after.keys() <= found.keys() <= before.keys() | after.keys()
    for key, backends in found.items():
        either = [each[key] for each in (before, after) if key in each]
        assert set.intersection(*either) - FALLEN <= backends <= set.union(*either)
    unnamed = {replace(each, name="") for each in rig.balancer.observed()}
    assert {replace(each, name="") for each in UNTOUCHED} <= unnamed


def addresses(services: Iterable[Service]) -> dict[ServiceKey, set[Address]]:
    """Backends by service."""
    return {each.key: {backend.address for backend in each.backends} for each in services}


def assert_works(rig: Rig, ports: tuple[int, int]) -> None:
    """Every service does what it should, to flows that are known and to new ones."""
    assert_tables_are_those_of_their_backends(rig)
    for each in rig.balancer.observed():
        for made in frames(each, range(*ports)):
            rig.expect(made, TX)


def assert_tables_are_those_of_their_backends(rig: Rig) -> None:
    """Slot by slot, in the kernel's memory."""
    tables = rig.balancer._contents.tables
    for each in rig.balancer.observed():
        installed = tables.services[each.key]
        handles = tables.slots.read(*tables.rows.table(installed.index)).tolist()
        address_of = {handle: address for address, handle in installed.handles.items()}
        wanted = served(each).slots
        assert [address_of.get(handle) for handle in handles] == list(wanted)
