# SPDX-License-Identifier: Apache-2.0
"""Every step leaves tables that packets can go by, and so does a death in the midst of one."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.guests import lines
from tests.unit.datapath.harness_memory import (
    L2,
    NO_FLOW_TABLE,
    Memory,
    Process,
    assert_sound,
    by_key,
    routed_of,
    view_of,
)
from tests.unit.datapath.harness_services import ADDRESSES, KEYS, SOURCES, states

from towpath.core.lb.options import Options
from towpath.core.lb.plan import plan
from towpath.core.lb.steps import PublishService, RemoveBackend, SetRoutes
from towpath.datapath.errors import CapacityError
from towpath.datapath.lb.execute import execute
from towpath.model import Affinity, Backend, BackendState, Quic, Service

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from types import FrameType

    from tests.unit.datapath.harness_memory import View

    from towpath.model import Address, ServiceKey
    from towpath.model.kinds import Prefix

Services = tuple[Service, ...]
ByKey = dict[Any, Service]

DOWN = "down"


def brought_to(services: Iterable[Service], memory: Memory | None = None) -> Process:
    """A process that has made these the services, starting from what is in memory."""
    process = Process(memory or Memory())
    bring(process, services)
    return process


def bring(process: Process, services: Iterable[Service]) -> None:
    """Apply, step by step, with every check after each."""
    after = by_key(services)
    before = by_key(process.observed())
    known = handles(process, before.keys() & after.keys())
    lasting = lasting_flows(process, after.values())
    goes_down = {
        handle
        for handle, (key, address) in known.items()
        if (state_of(before[key], address) != DOWN and state_of(after[key], address) == DOWN)
    }
    steps = plan(process.observed(), after.values()).steps
    for step in steps:
        execute(step, process.tables)
        assert_seen(process.memory, before, after)
        assert_flows_go_on(process.memory, lasting)
    process.tables.mark([step.key for step in steps])
    assert not any(process.memory.address(handle) for handle in goes_down)


def lasting_flows(process: Process, services: Iterable[Service]) -> dict[int, Address]:
    """Handles whose flows a change to ``services`` leaves alone, and their backends."""
    before, after = by_key(process.observed()), by_key(services)
    return {
        handle: address
        for handle, (key, address) in handles(process, before.keys() & after.keys()).items()
        if state_of(after[key], address) not in ("", DOWN)
    }


def state_of(service: Service, address: Address) -> str:
    """A backend's state, "" if the service doesn't have it."""
    return next((str(each.state) for each in service.backends if each.address == address), "")


def handles(process: Process, keys: Iterable[ServiceKey]) -> dict[int, tuple[ServiceKey, Address]]:
    """What flow entries may hold of these services."""
    return {
        handle: (key, address)
        for key in keys
        for address, handle in process.tables.services[key].handles.items()
    }


def assert_seen(memory: Memory, before: ByKey, after: ByKey) -> None:
    """Packets see each service as it was or as it will be, and nothing between."""
    assert_sound(memory)
    for key in before.keys() | after.keys():
        one, other = before.get(key), after.get(key)
        assert memory.view(key) in (view_of(one), view_of(other))
        if index := memory.service(key):
            allowed = [each.allow_from for each in (one, other) if each]
            assert memory.allowed(index) in allowed
            meant = [pair for each in (one, other) if each for pair in ids_of(each).items()]
            assert memory.named(index).items() <= {*meant}
            assert memory.named(index).keys() >= lasting_ids(one, other)
        assert_routes_seen(memory.routed(key), one, other)


def assert_routes_seen(
    seen: dict[Prefix, View], one: Service | None, other: Service | None
) -> None:
    """Routes are those of before or of after; each goes to backends of one of both."""
    both = [each for each in (one, other) if each]
    assert not seen or seen.keys() in [routed_of(each).keys() for each in both]
    ways = [routed_of(service, routes) for service in both for routes in both]
    for prefix, view in seen.items():
        assert view in [way.get(prefix) for way in ways]


def ids_of(service: Service) -> dict[int, Address]:
    """Whom ids name."""
    return {number: each.address for each in service.backends for number in each.server_id}


def lasting_ids(one: Service | None, other: Service | None) -> set[int]:
    """Those that name somebody before and after, whoever it is; who is down is nobody."""
    if one is None or other is None:
        return set()
    up = [
        {n for n, address in ids_of(each).items() if state_of(each, address) != DOWN}
        for each in (one, other)
    ]
    return up[0] & up[1]


def assert_flows_go_on(memory: Memory, lasting: dict[int, Address]) -> None:
    """A flow whose backend is there before and after has it throughout."""
    assert {handle: memory.address(handle) for handle in lasting} == lasting


def assert_in_force(process: Process, services: Iterable[Service]) -> None:
    """The tables are those of these services, and nothing is lost or kept for nobody."""
    wanted = by_key(services)
    assert not plan(process.observed(), wanted.values()).steps
    memory = process.memory
    for key, service in wanted.items():
        installed = process.tables.services[key]
        row = memory.services[installed.index]
        assert memory.view(key) == view_of(service)
        assert row["table_size"] == service.table_size
        assert bool(row["flags"] & NO_FLOW_TABLE) != service.flow_table
        assert bool(row["flags"] & L2) == (service.forwarding == "l2")
        assert row["affinity"] == (service.affinity.timeout if service.affinity else 0)
        assert memory.allowed(installed.index) == service.allow_from
        assert memory.named(installed.index) == ids_of(service)
        assert memory.routed(key) == routed_of(service)
    named = np.count_nonzero(memory.ids["handle"])
    assert named == sum(len(ids_of(service)) for service in wanted.values())
    assert process.tables.services.keys() == wanted.keys()
    assert len(memory.published()) == len(wanted)
    in_use = memory.backends[memory.backends["handle"] != 0]
    assert len(in_use) == sum(len(service.backends) for service in wanted.values())


@given(states, states)
def test_packets_see_a_service_before_or_after_its_change(one: Services, other: Services) -> None:
    """After each single step of the way, there and back."""
    process = Process(Memory())
    for wanted in (one, other, one, ()):
        bring(process, wanted)
        assert_in_force(process, wanted)
    assert not process.memory.backends["handle"].any()


@given(st.lists(states, min_size=2, max_size=6))
def test_a_restart_finds_what_was_left(ways: Sequence[Services]) -> None:
    """Another process observes the same, and its flows have the same handles."""
    memory = Memory()
    for wanted in ways:
        process = Process(memory)
        bring(process, wanted)
        heir = Process(memory)
        assert handles(heir, by_key(wanted)) == handles(process, by_key(wanted))
        # Of a route that a backend is away of the kernel doesn't know that it has it.
        steps = plan(heir.observed(), wanted).steps
        assert all(isinstance(each, SetRoutes) for each in steps)
        bring(heir, wanted)
        assert_in_force(heir, wanted)


@given(states, states, st.data())
def test_a_death_between_steps_is_put_right(
    one: Services, other: Services, data: st.DataObject
) -> None:
    """Whatever step it comes after; the next process also gets to the end."""
    process = brought_to(one)
    steps = plan(process.observed(), other).steps
    for step in steps[: data.draw(st.integers(0, len(steps)))]:
        execute(step, process.tables)
    assert_put_right(process.memory, one, other)


def test_ids_that_outlive_their_option_go_with_their_backend() -> None:
    """Whoever dies after services stopped asking for ids, and before the backend has gone."""
    quic = Quic(server_ids="quic-lb", length=1)
    backend = Backend(ip_address("192.0.2.11"), 0, server_id=(201,))
    one = (Service("any", *KEYS[0][:3], (backend,), table_size=7, quic=quic),)
    other = (Service("any", *KEYS[0][:3], (), table_size=5),)
    process = brought_to(one)
    *steps, last = plan(process.observed(), other).steps
    assert isinstance(last, RemoveBackend)
    for step in steps:
        execute(step, process.tables)
    process.tables.mark([step.key for step in steps])
    heir = Process(process.memory)
    assert [each.server_id for service in heir.observed() for each in service.backends] == [(201,)]
    finish(heir, other)


def assert_put_right(memory: Memory, one: Services, other: Services) -> None:
    """What a process that died left behind is sound, adopted, and brought to its end."""
    before, after = by_key(one), by_key(other)
    assert_seen(memory, before, after)
    views = {key: memory.view(key) for key in before.keys() | after.keys()}
    heir = Process(memory)
    assert_sound(memory)
    for key, view in views.items():
        assert (memory.view(key) is None) == (view is None), "a service came or went by adopting"
    assert_in_force(heir, heir.observed())
    finish(heir, other)


def finish(heir: Process, services: Services) -> None:
    """Get to the end, whatever was found."""
    for step in plan(heir.observed(), services).steps:
        execute(step, heir.tables)
        assert_sound(heir.memory)
    assert_in_force(heir, services)


# ---- Death between any two lines ------------------------------------------------------------


class Killed(BaseException):
    """Stands for a process that is gone."""


@contextmanager
def killed_at(line: int) -> Iterator[list[int]]:
    """Raise Killed before that line, counted from 0, of the datapath's code in the block.

    Gives a list that has the number of lines run so far.
    """
    ran = [0]

    def follow(frame: FrameType, event: str, _: Any) -> Any:
        if "towpath/datapath" not in frame.f_code.co_filename:
            return None
        if event == "line":
            if ran[0] == line:
                raise Killed
            ran[0] += 1
        return follow

    before = sys.gettrace()
    sys.settrace(follow)
    try:
        yield ran
    finally:
        sys.settrace(before)


def service(
    which: int,
    size: int,
    weights: dict[int, int],
    states: dict[int, BackendState] | None = None,
    **options: Any,
) -> Service:
    """A service by number, its backends by number; active if nothing else is said."""
    ids = options.pop("ids", {})
    backends = tuple(
        Backend(
            ADDRESSES[number],
            weight,
            (states or {}).get(number, BackendState.ACTIVE),
            server_id=ids.get(number, ()),
        )
        for number, weight in weights.items()
    )
    return Service("any", *KEYS[which][:3], backends, table_size=size, **options)


BEFORE = (
    service(0, 13, {0: 1, 1: 1, 2: 1}, allow_from=SOURCES[1]),
    service(
        1,
        7,
        {0: 1, 2: 0, 1: 1, 3: 2},
        {1: BackendState.DRAINING},
        allow_from=SOURCES[2],
        quic=Quic(length=1),
        ids={0: (1, 5), 1: (2, 6), 3: (3,)},
    ),
    service(3, 5, {2: 1, 3: 2}),
)
AFTER = (
    # Larger; one goes, one comes, one weighs more; for others.
    service(0, 31, {0: 1, 1: 2, 3: 1}, allow_from=SOURCES[3]),
    # Drained and back, by weight and by state; down; for everyone.
    service(
        1,
        7,
        {0: 2, 2: 3, 1: 2, 3: 2},
        {0: BackendState.QUARANTINED, 3: BackendState.DOWN},
        flow_table=False,
        quic=Quic("katran"),
        # Exchanged, kept, given on, taken away; new ones.
        ids={0: (2, 5, 7), 1: (1,), 2: (4, 6)},
    ),
    # New, and the last is gone.
    service(2, 13, {1: 1, 2: 1}, allow_from=SOURCES[2], affinity=Affinity(7), forwarding="l2"),
)


def test_a_death_at_any_line_is_put_right() -> None:
    """On a way that has every kind of step, killed before each line that is run."""
    start = brought_to(BEFORE).memory
    before = Process(start.copy())
    steps = plan(before.observed(), AFTER).steps
    assert len({type(step) for step in steps}) == 10
    lasting = lasting_flows(before, AFTER)
    assert len(lasting) == 5
    for line in lines():
        memory = start.copy()
        process = Process(memory)
        try:
            with killed_at(line):
                for step in steps:
                    execute(step, process.tables)
                process.tables.mark([step.key for step in steps])
        except Killed:
            assert_flows_go_on(memory, lasting)
            assert_put_right(memory, BEFORE, AFTER)
            assert_flows_go_on(memory, lasting)
        else:
            assert_in_force(process, AFTER)
            break
    assert line > 100


def test_a_death_while_adopting_is_put_right() -> None:
    """The first heir dies at any line of putting right what the first process left."""
    start = brought_to(BEFORE).memory
    process = Process(start)
    for step in plan(process.observed(), AFTER).steps:
        if isinstance(step, PublishService):
            break
        execute(step, process.tables)
    # An option that no table has been made for yet.
    process.tables.set_options(AFTER[0].key, Options(table_size=5, allow_from=SOURCES[2]))
    for line in lines():
        memory = start.copy()
        try:
            with killed_at(line):
                Process(memory)
        except Killed:
            finish(Process(memory), AFTER)
        else:
            break
    assert line > 50


# ---- Single steps ---------------------------------------------------------------------------


def test_ranges_in_use_are_known_before_a_table_is_made_again() -> None:
    """Two services whose tables were to grow: neither gets the other's range."""
    old = [service(0, 7, {0: 1}), service(1, 7, {1: 1})]
    process = brought_to(old)
    for each in old:
        process.tables.set_options(each.key, Options(table_size=13))
    heir = Process(process.memory)
    assert_in_force(heir, [service(0, 13, {0: 1}), service(1, 13, {1: 1})])


def test_a_table_in_use_is_not_written_over() -> None:
    """A new table goes elsewhere, or nowhere if only the old one's range would fit."""
    memory = Memory(table_slots=16)
    process = brought_to([service(0, 13, {0: 1, 1: 1})], memory)
    before = memory.slots[:13].copy()
    with pytest.raises(CapacityError, match=r"limits\.table_slots"):
        process.tables.set_table(process.observed()[0].key, [Backend(ADDRESSES[0])])
    assert memory.slots[:13].tolist() == before.tolist()
    assert_in_force(process, [service(0, 13, {0: 1, 1: 1})])


def test_a_service_starts_with_counters_of_its_own() -> None:
    """An index that another service had before is zeroed before anything leads to it."""
    process = brought_to([service(0, 5, {0: 1})], Memory(services_limit=1))
    process.forgotten.clear()
    bring(process, [service(1, 5, {0: 1})])
    assert process.forgotten == {1: 1}


def test_an_address_may_be_a_backend_of_two_services() -> None:
    """Each has a record of its own, with its own weight."""
    process = brought_to([service(0, 5, {0: 1}), service(1, 5, {0: 3})])
    address = ip_address("192.0.2.11")
    found = {each.handles[address] for each in process.tables.services.values()}
    assert len(found) == 2
