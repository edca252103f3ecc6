# SPDX-License-Identifier: Apache-2.0
"""What has its mark is taken over as it is; what hasn't is gone through and put right."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.datapath.harness_memory import INDEX_BITS, Memory, Process, by_key, view_of
from tests.unit.datapath.harness_services import ADDRESSES, KEYS, states

from towpath.core.lb import service_table
from towpath.core.lb.options import Options
from towpath.core.lb.plan import plan
from towpath.core.lb.steps import SetRoutes
from towpath.datapath.lb.execute import execute
from towpath.model import Backend, BackendState, Service, SourceRoute
from towpath.native.library import slot_sum

if TYPE_CHECKING:
    from collections.abc import Callable

WEB = Service("any", *KEYS[0][:3], tuple(map(Backend, ADDRESSES[:3])), table_size=31)
DNS = Service(
    "any",
    *KEYS[1][:3],
    (Backend(ADDRESSES[0]), Backend(ADDRESSES[3], 2), Backend(ADDRESSES[1], 0)),
    table_size=13,
)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of tables that are made."""
    sizes: list[int] = []
    make = service_table.table

    def noted(backends: Any, size: int) -> Any:
        sizes.append(size)
        return make(backends, size)

    monkeypatch.setattr(service_table, "table", noted)
    return sizes


def left(*services: Service, memory: Memory | None = None) -> Memory:
    """What a process leaves that has come to its end."""
    process = Process(memory or Memory())
    steps = plan(process.observed(), services).steps
    for step in steps:
        execute(step, process.tables)
    process.tables.mark([step.key for step in steps])
    return process.memory


def index_of(memory: Memory, service: Service) -> int:
    """Where a service is."""
    return memory.service(service.key)


def assert_right(memory: Memory, *services: Service) -> None:
    """Packets go where they are to."""
    assert {each.key: memory.view(each.key) for each in services} == {
        each.key: view_of(each) for each in services
    }


def test_what_is_marked_is_taken_over_without_a_table(made: list[int]) -> None:
    """Backends, their handles, options: all is known, and no table was made."""
    memory = left(WEB, DNS)
    made.clear()
    heir = Process(memory)
    assert not made
    assert not plan(heir.observed(), [WEB, DNS]).steps
    assert {key: each.handles for key, each in heir.tables.services.items()} == {
        key: each.handles for key, each in Process(memory.copy()).tables.services.items()
    }
    assert heir.extents.allocate(memory.table_slots - 31 - 13) is not None


@given(states, states)
def test_a_marked_service_is_found_as_one_that_is_gone_through(
    one: tuple[Service, ...], other: tuple[Service, ...]
) -> None:
    """With marks and without, a process knows the same and changes nothing."""
    memory = left(*other, memory=left(*one))
    bare = memory.copy()
    bare.marks[:] = 0
    found, without = Process(memory), Process(bare)
    assert by_key(found.observed()) == by_key(without.observed())
    # Of a route whose table is empty nobody can say whose it was: it is set again.
    assert all(isinstance(each, SetRoutes) for each in plan(found.observed(), other).steps)
    for key, each in found.tables.services.items():
        assert without.tables.services[key] == each
    assert memory.slots.tolist() == bare.slots.tolist()
    used = [each.index for each in found.tables.services.values()]
    assert memory.marks[used].tolist() == bare.marks[used].tolist(), "what was gone through is so"


def slot(memory: Memory) -> None:
    """A slot that leads to another backend of the service."""
    base = int(memory.services["table"][index_of(memory, WEB)]) & 0xFFFFFFFF
    others = set(memory.slots[base : base + 31].tolist()) - {int(memory.slots[base + 7])}
    memory.slots[base + 7] = min(others)


def two_slots(memory: Memory) -> None:
    """Two slots that have changed places."""
    base = int(memory.services["table"][index_of(memory, WEB)]) & 0xFFFFFFFF
    at = base + int(np.flatnonzero(np.diff(memory.slots[base : base + 31]))[0])
    memory.slots[[at, at + 1]] = memory.slots[[at + 1, at]]


def borrowed(memory: Memory) -> None:
    """The mark of the other service, over a table that isn't right."""
    slot(memory)
    memory.marks[index_of(memory, WEB)] = memory.marks[index_of(memory, DNS)]


def invented(memory: Memory) -> None:
    """A mark of nothing, over a table that isn't right."""
    slot(memory)
    memory.marks[index_of(memory, WEB)] = 0x123456789ABCDEF


def sum_only(memory: Memory) -> None:
    """A mark that is only the sum of what is in the table, which isn't right."""
    slot(memory)
    index = index_of(memory, WEB)
    word = int(memory.services["table"][index])
    memory.marks[index] = slot_sum(memory.read(word & 0xFFFFFFFF, word >> 32))


@pytest.mark.parametrize(
    "change",
    [slot, two_slots, borrowed, invented, sum_only],
    ids=lambda each: str(each.__name__),
)
def test_what_others_have_written_is_put_right(
    change: Callable[[Memory], None], made: list[int]
) -> None:
    """Slots behind the process's back, with its mark or a lying one: the table is made again."""
    memory = left(WEB, DNS)
    change(memory)
    made.clear()
    heir = Process(memory)
    assert set(made) == {31}, "of the other service nothing was in doubt"
    assert_right(memory, WEB, DNS)
    assert not plan(heir.observed(), [WEB, DNS]).steps
    made.clear()
    Process(memory)
    assert not made, "it has its mark again"


def test_a_record_that_others_have_written_is_followed() -> None:
    """A weight: the table is made by it, as ever, and the next apply sets both right."""
    memory = left(WEB)
    row = memory.backends[np.flatnonzero(memory.backends["handle"])[0]]
    row["weight"] = 5
    heir = Process(memory)
    (found,) = heir.observed()
    assert [each.weight for each in found.backends] == [5, 1, 1]
    assert_right(memory, found)
    left(WEB, memory=memory)
    assert_right(memory, WEB)


def test_a_record_that_is_not_marked_is_given_up() -> None:
    """Added before a death, and in no table."""
    memory = left(WEB)
    process = Process(memory)
    process.tables.add_backends(WEB.key, [Backend(ADDRESSES[3])])
    heir = Process(memory)
    assert by_key(heir.observed()) == {WEB.key: WEB}
    assert np.count_nonzero(memory.backends["handle"]) == 3


def test_a_size_that_no_table_was_made_for_yet_is_seen(made: list[int]) -> None:
    """The mark is still that of the table that there is."""
    memory = left(WEB)
    Process(memory).tables.set_options(WEB.key, Options(table_size=13))
    made.clear()
    Process(memory)
    assert set(made) == {13}
    assert_right(memory, replace(WEB, table_size=13))


def test_what_is_marked_is_what_was_made_not_what_is_there() -> None:
    """Slots written by others are not taken for right by a change that made no table."""
    memory = left(WEB)
    process = Process(memory)
    slot(memory)
    process.tables.set_backend(WEB.key, replace(WEB.backends[0], port=8080))
    process.tables.mark([WEB.key])
    Process(memory)
    assert_right(memory, WEB)


def test_without_a_table_of_marks_all_is_gone_through(made: list[int]) -> None:
    """As in the maps of a version that had none: a row of zeros stands for it."""
    memory = left(WEB, DNS)
    memory.marks = np.zeros(1, np.uint64)
    slot(memory)
    made.clear()
    Process(memory)
    assert set(made) == {31, 13}
    assert_right(memory, WEB, DNS)


def test_a_service_of_which_nobody_takes_flows_has_a_mark(made: list[int]) -> None:
    """It has no table, and none is made."""
    drained = [replace(each, state=BackendState.DRAINING) for each in WEB.backends]
    idle = replace(WEB, backends=tuple(drained))
    memory = left(idle)
    assert memory.marks[index_of(memory, WEB)]
    made.clear()
    heir = Process(memory)
    assert not made
    assert by_key(heir.observed()) == {WEB.key: idle}


def test_a_backend_of_no_service_is_given_up() -> None:
    """Whatever service its record names."""
    memory = left(WEB)
    (free, *_) = np.flatnonzero(memory.backends["handle"][1:] == 0) + 1
    for service in (7, 0xFFFFFFFF):
        memory.backends[free]["handle"] = 1 << INDEX_BITS | int(free)
        memory.backends[free]["service"] = service
        heir = Process(memory)
        assert by_key(heir.observed()) == {WEB.key: WEB}
        assert not memory.backends[free]["handle"]


@given(st.lists(st.integers(0, 0xFFFFFFFF), min_size=1, max_size=40), st.data())
def test_sums_differ(handles: list[int], data: st.DataObject) -> None:
    """Of tables of which one slot differs, or one is longer; wherever they begin."""
    table = np.array(handles, np.uint32)
    at = data.draw(st.integers(0, len(handles) - 1))
    other = table.copy()
    other[at] ^= 1 << data.draw(st.integers(0, 31))
    longer = np.append(table, np.uint32(0))
    assert len({slot_sum(each) for each in (table, other, longer)}) == 3
    assert slot_sum(np.insert(table, 0, 1)[1:]) == slot_sum(table)


def test_sums_follow_the_order() -> None:
    """Equal handles in another order are another table."""
    table = np.arange(1, 1000, dtype=np.uint32)
    found = {slot_sum(np.roll(table, by)) for by in range(200)}
    assert len(found) == 200


# ---- Services that are known -----------------------------------------------------------------


def heir_of(memory: Memory, *known: Service) -> tuple[Process, set[Any]]:
    """A process that knows services, and which of them it finds to be there."""
    heir = Process(memory, known=known)
    return heir, heir.alike


def test_known_services_are_believed() -> None:
    """Their very backends are what is known of the kernel; handles are the kernel's."""
    memory = left(WEB, DNS)
    plain = Process(memory.copy())
    heir, found = heir_of(memory, WEB, DNS)
    assert found == {WEB.key, DNS.key}
    for each in (WEB, DNS):
        there = heir.tables.services[each.key]
        assert all(a is b for a, b in zip(there.backends(), each.backends, strict=True))
        assert there == plain.tables.services[each.key]


@pytest.mark.parametrize(
    "other",
    [
        replace(WEB, backends=WEB.backends[:2]),
        replace(WEB, backends=WEB.backends[::-1]),
        replace(WEB, backends=(replace(WEB.backends[0], weight=2), *WEB.backends[1:])),
        replace(WEB, backends=(replace(WEB.backends[0], port=81), *WEB.backends[1:])),
        replace(WEB, backends=(replace(WEB.backends[0], local=True), *WEB.backends[1:])),
        replace(
            WEB,
            backends=(replace(WEB.backends[0], state=BackendState.DOWN), *WEB.backends[1:]),
        ),
        replace(WEB, backends=(Backend(ADDRESSES[3]), *WEB.backends[1:])),
        replace(WEB, flow_table=False),
        replace(WEB, table_size=13),
        replace(WEB, port=81),
    ],
)
def test_what_is_otherwise_is_read_from_the_kernel(other: Service) -> None:
    """One backend more or fewer, another order, weight, port, state, address, option."""
    memory = left(WEB, DNS)
    heir, found = heir_of(memory, other, DNS)
    assert found == {DNS.key}
    assert by_key(heir.observed()) == by_key([WEB, DNS])


def test_a_known_service_whose_table_is_wrong_is_put_right() -> None:
    """It is gone through all the same."""
    memory = left(WEB, DNS)
    slot(memory)
    heir, found = heir_of(memory, WEB, DNS)
    assert found == {DNS.key}
    assert_right(memory, WEB, DNS)
    assert not plan(heir.observed(), [WEB, DNS]).steps


def test_a_known_service_whose_routes_are_not_there_is_put_right() -> None:
    """A death may have come before they were."""
    routed = replace(
        WEB, route_from=(SourceRoute((ip_network("198.51.100.0/24"),), (WEB.backends[0].address,)),)
    )
    heir, found = heir_of(left(WEB), routed)
    assert found == set()
    assert any(isinstance(each, SetRoutes) for each in plan(heir.observed(), [routed]).steps)


@given(states, states)
def test_known_or_not_the_same_is_found(
    one: tuple[Service, ...], known: tuple[Service, ...]
) -> None:
    """Whatever is known, what is in the kernel is what is observed."""
    memory = left(*one)
    plain = Process(memory.copy())
    heir, found = heir_of(memory, *known)
    assert by_key(heir.observed()) == by_key(plain.observed())
    wanted = by_key(known)
    assert not plan(
        [each for each in heir.observed() if each.key in found], map(wanted.__getitem__, found)
    ).steps
