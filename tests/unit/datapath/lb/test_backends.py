# SPDX-License-Identifier: Apache-2.0
"""Backends' handles: never the same twice in a row, never another's while it can be read."""

from __future__ import annotations

from ipaddress import ip_address

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tests.unit.datapath.harness_memory import STATES
from tests.unit.datapath.harness_program import BTF

from towpath.datapath.errors import CapacityError
from towpath.datapath.lb.backends import BackendTable
from towpath.datapath.lb.grace import Reclaimer
from towpath.model import Backend, BackendState

ROW = BTF.dtype("backend")
BITS = int(BTF.enum("handle_bits")["HANDLE_INDEX_BITS"])
ROWS = 5
FEW_GENERATIONS = 30  # bits of index, which leave three generations
A_BACKEND = Backend(ip_address("192.0.2.1"))

addresses = st.ip_addresses()
weights = st.integers(0, 65535)
ports = st.none() | st.integers(1, 65535)


class BackendMachine(RuleBasedStateMachine):
    """The table beside a dictionary from handle to what was added."""

    bits = BITS

    def __init__(self) -> None:
        super().__init__()
        self.rows = np.zeros(ROWS, ROW)
        self.truth: dict[int, tuple[int, Backend]] = {}
        self.last: dict[int, int] = {}
        """By index, the handle it had last."""
        self.retired: set[int] = set()
        self.forgotten: list[int] = []
        self.open()

    def open(self) -> None:
        """Make a table of what is in memory."""
        reclaimer = Reclaimer(self.retired.clear)
        self.table = BackendTable(self.rows, self.bits, reclaimer, self.forgotten.extend, STATES)

    @rule(
        service=st.integers(1, 2**32 - 1),
        backends=st.lists(
            st.builds(
                Backend,
                addresses.map(ip_address),
                weights,
                st.sampled_from(BackendState),
                ports,
            ),
            min_size=1,
            max_size=3,
        ),
    )
    def add(self, service: int, backends: list[Backend]) -> None:
        """Handles that are new in every way, or a refusal that changes nothing."""
        before = self.rows.tobytes()
        self.forgotten.clear()
        try:
            handles = self.table.add(service, backends)
        except CapacityError:
            assert len(self.truth) + len(backends) > self.table.capacity
            assert self.rows.tobytes() == before
            return
        assert len(handles) == len(backends)
        indexes = list(map(self.table.index, handles))
        assert self.forgotten == [index for index in indexes if index in self.last]
        for handle, index, backend in zip(handles, indexes, backends, strict=True):
            assert 0 < index < ROWS
            assert index not in self.retired
            assert index not in map(self.table.index, self.truth)
            assert handle != self.last.get(index, 0)
            self.truth[handle] = service, backend
            self.last[index] = handle

    @precondition(lambda self: self.truth)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        """Its handle is nobody's at once, its index only after a wait."""
        handle = data.draw(st.sampled_from(sorted(self.truth)))
        del self.truth[handle]
        self.table.remove(handle)
        self.retired.add(self.table.index(handle))

    @precondition(lambda self: self.truth)
    @rule(data=st.data(), weight=weights, state=st.sampled_from(BackendState), port=ports)
    def note(self, data: st.DataObject, weight: int, state: BackendState, port: int | None) -> None:
        """Nothing but weight, state and port changes."""
        handle = data.draw(st.sampled_from(sorted(self.truth)))
        service, backend = self.truth[handle]
        self.truth[handle] = service, Backend(backend.address, weight, state, port)
        self.table.note(handle, self.truth[handle][1])

    @precondition(lambda self: self.truth)
    @rule(data=st.data())
    def renew(self, data: st.DataObject) -> None:
        """It has another handle at once, and is otherwise as it was; the index stays taken."""
        old = data.draw(st.sampled_from(sorted(self.truth)))
        new = self.table.renew(old)
        assert new != old
        assert self.table.index(new) == self.table.index(old)
        self.truth[new] = self.truth.pop(old)
        self.last[self.table.index(new)] = new

    @rule()
    def start_again(self) -> None:
        """Another process goes on, by when no packet of before is on its way."""
        self.retired.clear()
        self.open()

    @invariant()
    def it_can_be_read_back(self) -> None:
        """Records are what was added, by service; what is of others is told apart."""
        services = sorted({service for service, _ in self.truth.values()}, reverse=True)
        records, others = self.table.records(services)
        found = {
            handle: (service, backend)
            for at, service in enumerate(services)
            for handle, backend in records.read(at)
        }
        assert found == self.truth
        assert not others
        some, others = self.table.records(services[1:])
        left = {handle for handle, (service, _) in self.truth.items() if service in services[:1]}
        assert set(others) == left
        assert set(some.handles) == self.truth.keys() - left
        assert self.table.available == ROWS - 1 - len(self.truth) - len(self.retired)
        assert self.table.in_use == len(self.truth)

    @invariant()
    def every_record_knows_its_own_handle(self) -> None:
        """As the program checks; a handle that was removed matches no record."""
        for index, row in enumerate(self.rows):
            assert row["handle"] in (0, self.last.get(index))
            assert (int(row["handle"]) in self.truth) == bool(row["handle"])


class FewGenerationsMachine(BackendMachine):
    """Generations that begin anew after three."""

    bits = FEW_GENERATIONS


TestBackends = BackendMachine.TestCase
TestBackendsThatWrapAround = FewGenerationsMachine.TestCase


def add(table: BackendTable, backend: Backend = A_BACKEND) -> int:
    """The handle of one more."""
    (handle,) = table.add(1, [backend])
    return handle


def opened(rows: int, bits: int = BITS) -> BackendTable:
    """A new table."""
    return BackendTable(np.zeros(rows, ROW), bits, Reclaimer(lambda: None), lambda _: None, STATES)


def test_generations_go_round_and_leave_out_zero() -> None:
    """So that no handle is 0, which stands for no backend."""
    table = opened(2, FEW_GENERATIONS)
    handles = []
    for _ in range(5):
        handles.append(add(table))
        table.remove(handles[-1])
    assert [handle >> FEW_GENERATIONS for handle in handles] == [1, 2, 3, 1, 2]


def test_a_flow_has_thousands_of_generations_to_age_in() -> None:
    """4,095 others have an index before a handle comes back."""
    table = opened(2)
    handles = []
    for _ in range(4096):
        handles.append(add(table))
        table.remove(handles[-1])
    assert len(set(handles)) == 4095
    assert handles[0] == handles[-1]


def test_indexes_take_turns() -> None:
    """The one that was given up longest ago is next, to keep generations apart."""
    table = opened(4)
    handles = [add(table) for _ in range(3)]
    for handle in (handles[1], handles[0], handles[2]):
        table.remove(handle)
    again = [table.index(add(table)) for _ in range(3)]
    assert again == [table.index(handles[i]) for i in (1, 0, 2)]


def test_a_full_table_says_which_setting_to_raise() -> None:
    """How many there is room for, too."""
    table = opened(3)
    for _ in range(2):
        add(table)
    with pytest.raises(
        CapacityError, match=r"backends: 3 needed, 2 at most; raise limits\.backends"
    ):
        add(table)


def test_a_port_is_stored_at_once() -> None:
    """Packets find the old or the new one: numpy swaps the bytes of others where they lie."""
    rows = np.zeros(ROWS, ROW)
    table = BackendTable(rows, BITS, Reclaimer(lambda: None), lambda _: None, STATES)
    handle = add(table, Backend(A_BACKEND.address, port=0x1234))
    (at,) = np.flatnonzero(rows["handle"] == handle)
    assert rows["port"][at : at + 1].tobytes() == b"\x12\x34"
    assert table._ports.dtype.isnative
    assert np.shares_memory(table._ports, rows)
