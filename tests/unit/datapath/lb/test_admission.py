# SPDX-License-Identifier: Apache-2.0
"""What is foretold of a plan's room is what comes of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.datapath.harness_memory import Memory, Process, assert_sound
from tests.unit.datapath.harness_program import LINE
from tests.unit.datapath.harness_services import ADDRESSES, KEYS, SOURCES, states

from towpath.core.lb.plan import Transition, plan
from towpath.datapath.errors import CapacityError
from towpath.datapath.lb.execute import execute
from towpath.model import Backend, Quic, Service

if TYPE_CHECKING:
    from collections.abc import Sequence

small_memories = st.builds(
    Memory,
    services_limit=st.integers(1, 4),
    backends_limit=st.integers(1, 10),
    table_slots=st.integers(1, 5).map(lambda lines: lines * LINE),
    sources_limit=st.integers(3, 12),
    ids_limit=st.integers(1, 8),
)


def foretold(process: Process, wanted: Transition) -> bool:
    """Whether the steps are foretold to find room."""
    try:
        process.check_room(wanted)
    except CapacityError:
        return False
    return True


def carried_out(process: Process, wanted: Transition) -> bool:
    """Whether they did."""
    try:
        for step in wanted.steps:
            execute(step, process.tables)
    except CapacityError:
        return False
    return True


@given(small_memories, st.lists(states, min_size=1, max_size=8))
def test_what_is_foretold_comes_true(memory: Memory, ways: Sequence[tuple[Service, ...]]) -> None:
    """Both ways, in a memory that is always short of something."""
    process = Process(memory)
    for services in ways:
        wanted = plan(process.observed(), services)
        before = memory.copy()
        fits = foretold(process, wanted)
        assert memory.slots.tobytes() == before.slots.tobytes()
        assert memory.services.tobytes() == before.services.tobytes()
        assert carried_out(process, wanted) == fits
        assert_sound(memory)
        if not fits:
            # Which nobody would have done: on from where it was.
            memory, process = before, Process(before)


def service(which: int, size: int, weights: dict[int, int], **options: Any) -> Service:
    """A service by number, its backends by number."""
    ids = options.pop("ids", {})
    backends = tuple(
        Backend(ADDRESSES[number], weight, server_id=ids.get(number, ()))
        for number, weight in weights.items()
    )
    return Service("any", *KEYS[which][:3], backends, table_size=size, **options)


def test_what_rests_is_reclaimed_before_a_plan_is_refused() -> None:
    """A table given up a moment ago would send the next one behind it, and split the room.

    With its 13 slots at rest, 13 and 47 don't fit into 64: the first would go to slot
    13 and leave 13 and 38.
    """
    waits: list[int] = []
    process = Process(Memory(table_slots=4 * LINE), lambda: waits.append(1))
    for services in ([service(0, 13, {0: 1})], []):
        assert carried_out(process, plan(process.observed(), services))
    assert waits == []
    wanted = plan((), [service(0, 13, {0: 1}), service(1, 47, {0: 1})])
    assert foretold(process, wanted)
    assert waits == [1]
    assert carried_out(process, wanted)
    assert waits == [1]


def test_room_that_is_there_costs_no_wait() -> None:
    """What is retired is left alone while there is other room."""
    waits: list[int] = []
    process = Process(Memory(table_slots=8 * LINE), lambda: waits.append(1))
    for services in ([service(0, 13, {0: 1})], [], [service(0, 13, {0: 1})]):
        wanted = plan(process.observed(), services)
        assert foretold(process, wanted)
        assert carried_out(process, wanted)
    assert waits == []


@pytest.mark.parametrize(
    ("memory", "services", "message"),
    [
        (
            Memory(services_limit=1),
            [service(0, 5, {0: 1}), service(1, 5, {0: 1})],
            r"services: 2 needed, 1 at most; raise limits\.services and restart",
        ),
        (
            Memory(backends_limit=3),
            [service(0, 5, {0: 1, 1: 1}), service(1, 5, {0: 1, 1: 1})],
            r"backends: 4 needed, 3 at most; raise limits\.backends and restart",
        ),
        (
            Memory(table_slots=2 * LINE),
            [service(0, 31, {0: 1}), service(1, 5, {0: 1})],
            r"Maglev slots in one piece: 5 needed, 1 at most; raise limits\.table_slots",
        ),
        (
            Memory(sources_limit=5),
            [service(n, 5, {0: 1}, allow_from=SOURCES[n + 2]) for n in range(2)],
            r"sources: 6 needed, 5 at most; raise limits\.sources and restart",
        ),
        (
            Memory(ids_limit=4),
            [
                service(n, 5, {0: 1, 1: 1}, ids={0: (1, 2), 1: (3,)}, quic=Quic(length=1))
                for n in range(2)
            ],
            r"server ids: 6 needed, 4 at most; raise limits\.server_ids and restart",
        ),
    ],
)
def test_says_what_is_short_and_which_setting_to_raise(
    memory: Memory, services: list[Service], message: str
) -> None:
    """With the number that would do, where that is known."""
    with pytest.raises(CapacityError, match=message):
        Process(memory).check_room(plan((), services))


def test_backends_that_come_before_others_go_need_room_at_once() -> None:
    """A service whose backends are all replaced has both for a moment."""
    memory = Memory(backends_limit=3)
    process = Process(memory)
    for step in plan((), [service(0, 5, {0: 1, 1: 1})]).steps:
        execute(step, process.tables)
    with pytest.raises(CapacityError, match="backends: 4 needed, 3 at most"):
        process.check_room(plan(process.observed(), [service(0, 5, {2: 1, 3: 1})]))
    process.check_room(plan(process.observed(), [service(0, 5, {0: 1, 2: 1})]))


def test_ids_that_are_given_on_need_no_room() -> None:
    """Only those that are new do, before those go that were there."""
    process = Process(Memory(ids_limit=4))
    options: dict[str, Any] = {"quic": Quic(length=1)}
    for step in plan((), [service(1, 5, {0: 1, 1: 1}, ids={0: (1, 2), 1: (3,)}, **options)]).steps:
        execute(step, process.tables)
    for ids in ({0: (3, 4), 1: (1, 2)}, {2: (1, 2, 3, 4)}, {0: (1, 2), 2: (3, 4)}):
        wanted = service(1, 5, {0: 1, 2: 1} if 2 in ids else {0: 1, 1: 1}, ids=ids, **options)
        process.check_room(plan(process.observed(), [wanted]))
    renamed = service(1, 5, {0: 1, 1: 1}, ids={0: (4, 5), 1: (3,)}, **options)
    with pytest.raises(CapacityError, match="server ids: 5 needed, 4 at most"):
        process.check_room(plan(process.observed(), [renamed]))


def test_services_that_go_make_room_for_those_that_come() -> None:
    """Removals are first."""
    memory = Memory(services_limit=1, backends_limit=2, table_slots=LINE)
    process = Process(memory)
    for services in ([service(0, 13, {0: 1, 1: 1})], [service(1, 13, {2: 1, 3: 1})]):
        wanted = plan(process.observed(), services)
        assert foretold(process, wanted)
        assert carried_out(process, wanted)


def test_a_service_without_weights_needs_no_slots() -> None:
    """Drained services keep their configured size for later."""
    memory = Memory(table_slots=LINE)
    wanted = plan((), [service(0, 31, {0: 0}), service(1, 13, {})])
    assert foretold(Process(memory), wanted)
    assert carried_out(Process(memory), wanted)
