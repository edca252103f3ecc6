# SPDX-License-Identifier: Apache-2.0
"""The index of servers' ids: what is written is what the program finds, and between as well."""

from __future__ import annotations

from itertools import count, islice
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.unit.datapath.harness_program import BTF, server_of

from towpath.core.lb.hash import step
from towpath.datapath.errors import CapacityError
from towpath.datapath.lb.grace import Reclaimer
from towpath.datapath.lb.quic_index import IdIndex

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.unit.datapath.harness_program import Array

SLOT = BTF.dtype("quic_server")
PROBES = int(BTF.enum("quic_limits")["QUIC_PROBES"])
SLOTS = 64

Key = tuple[int, int]
"""A service and a server's id."""


def candidates(wanted: Key) -> list[int]:
    """The slots that the program looks at, in its order."""
    first = step(step(0, wanted[1]), wanted[0]) >> 32
    return [(first + i) % SLOTS for i in range(PROBES)]


def colliding(many: int) -> list[Key]:
    """Ids of two services that the program begins to look for in one slot, the last but nine."""
    both = ((service, number) for number in count() for service in (1, 2))
    return list(islice((each for each in both if candidates(each)[0] == SLOTS - 10), many))


# More in one window than it has slots, which wraps around; 0 is an id like any other.
CROWD = colliding(PROBES + 4)
KEYS = [*CROWD, (1, 0), (2, 0), (3, 0), (3, 2**64 - 1), (1, 17), (3, 17)]
keys = st.sampled_from(KEYS)
handles = st.integers(1, 2**32 - 1)


def record(key: Key) -> Array:
    """What the index is asked with."""
    made = np.zeros((), SLOT)
    made["service"], made["id"] = key
    return made


def filled(slots: Array, wait: Callable[[], None] = lambda: None) -> IdIndex:
    """An index in which a window is full, by handles from 1 on."""
    index = IdIndex(slots, PROBES, Reclaimer(wait), SLOTS)
    for number, each in enumerate(CROWD[:PROBES], 1):
        index.update(record(each), number)
    return index


class Packet:
    """A look-up that takes its time."""

    def __init__(self, slots: Array, wanted: Key) -> None:
        self.steps = self._read(slots, wanted)
        self.found = 0

    def _read(self, slots: Array, wanted: Key) -> Iterator[None]:
        """Look an id up as the program does, one load after the other."""
        for at in candidates(wanted):
            number = int(slots["id"][at])
            yield
            service = int(slots["service"][at])
            yield
            if (service, number) == wanted:
                self.found = int(slots["handle"][at])
                return
            if not service:
                return

    def finish(self) -> int:
        """Come to the end; the handle that was found, 0 for none."""
        for _ in self.steps:
            pass
        return self.found


class IndexMachine(RuleBasedStateMachine):
    """The index beside a dictionary, with a packet that takes its time."""

    def __init__(self) -> None:
        super().__init__()
        self.slots: Array = np.zeros(SLOTS, SLOT)
        self.index = IdIndex(self.slots, PROBES, Reclaimer(self.finish_packet), SLOTS)
        self.truth: dict[Key, int] = {}
        self.packet: Packet | None = None
        self.packet_key = (0, 0)
        self.allowed: set[int] = set()

    @initialize(many=st.integers(0, PROBES))
    def crowd(self, many: int) -> None:
        """Begin with a window that has some of its slots taken, or all."""
        for handle, key in enumerate(CROWD[:many], 1):
            self.update(key, handle)

    @rule(key=keys, handle=handles)
    def update(self, key: Key, handle: int) -> None:
        """An id leads to its backend, or nothing has changed because there is no room."""
        before = self.slots.copy()
        try:
            self.index.update(record(key), handle)
        except CapacityError:
            assert key not in self.truth
            assert self.slots.tobytes() == before.tobytes()
            assert all(self.slots["handle"][at] for at in candidates(key))
        else:
            self.truth[key] = handle
        self.note()

    @precondition(lambda self: self.truth)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        """An id that is taken out leads nowhere."""
        gone = data.draw(st.sampled_from(sorted(self.truth)))
        del self.truth[gone]
        self.index.delete(record(gone))
        self.index.delete(record(gone), missing_ok=True)
        self.note()

    @rule()
    def start_again(self) -> None:
        """Another process goes on with what is in memory. Its start takes longer than a packet."""
        self.finish_packet()
        self.index = IdIndex(self.slots, PROBES, Reclaimer(self.finish_packet), SLOTS)

    @precondition(lambda self: self.packet is None)
    @rule(key=keys)
    def packet_comes(self, key: Key) -> None:
        """A packet begins to look its id up."""
        self.packet, self.packet_key, self.allowed = Packet(self.slots, key), key, set()
        self.note()

    @precondition(lambda self: self.packet is not None)
    @rule()
    def packet_goes_on(self) -> None:
        """It reads one thing more, or has come to its end."""
        assert self.packet is not None
        if next(self.packet.steps, "end") == "end":
            self.finish_packet()

    def finish_packet(self) -> None:
        """What waiting for readers does. The packet has found what its id led to meanwhile."""
        if self.packet is not None:
            assert self.packet.finish() in self.allowed
            self.packet = None

    def note(self) -> None:
        """Remember what the packet may have found."""
        self.allowed.add(self.truth.get(self.packet_key, 0))

    @invariant()
    def the_program_finds_every_backend_and_no_other(self) -> None:
        """By the compiled header."""
        found = {key: server_of(self.slots, *key) for key in KEYS}
        assert found == {key: self.truth.get(key, 0) for key in KEYS}

    @invariant()
    def it_can_be_read_back(self) -> None:
        """All that is there is what was written."""
        there = [(int(key["service"]), int(key["id"]), hand) for key, hand in self.index.items()]
        assert sorted(there) == sorted((*key, handle) for key, handle in self.truth.items())
        assert {key: self.index.lookup(record(key)) for key in KEYS} == {
            key: self.truth.get(key) for key in KEYS
        }

    def teardown(self) -> None:
        """The last packet is right too."""
        self.finish_packet()


TestIds = IndexMachine.TestCase


def test_a_slot_once_used_is_never_unused_again() -> None:
    """A look-up ends at a slot never used."""
    slots = np.zeros(SLOTS, SLOT)
    index = IdIndex(slots, PROBES, Reclaimer(lambda: None), len(slots) // 4)
    for each in KEYS[:3]:
        index.update(record(each), 1)
    used = np.flatnonzero(slots["service"])
    for each in KEYS[:3]:
        index.delete(record(each))
    assert np.flatnonzero(slots["service"]).tolist() == used.tolist()
    with pytest.raises(KeyError):
        index.delete(record(KEYS[0]))


def test_a_full_window_is_refused_and_changes_nothing() -> None:
    """The next is refused, naming the setting."""
    slots = np.zeros(SLOTS, SLOT)
    index = filled(slots)
    before = slots.tobytes()
    with pytest.raises(CapacityError, match=r"server ids.*limits\.server_ids"):
        index.update(record(CROWD[PROBES]), 99)
    assert slots.tobytes() == before
    index.update(record(CROWD[0]), 77)  # an id that is there needs no room
    assert server_of(slots, *CROWD[0]) == 77
    index.delete(record(CROWD[1]))
    index.update(record(CROWD[PROBES]), 99)
    assert server_of(slots, *CROWD[PROBES]) == 99


def test_a_removed_slot_is_used_again_only_after_a_wait() -> None:
    """With a fresh slot in the window there is no wait, with none there is one."""
    waits: list[int] = []
    index = filled(np.zeros(SLOTS, SLOT), lambda: waits.append(1))
    index.delete(record(CROWD[3]))
    assert waits == []
    index.update(record(CROWD[PROBES]), 1)
    assert waits == [1]


def test_what_a_death_has_left_begun_is_nobodys() -> None:
    """An id and a service without a handle: the slot is free, and no probe sequence ends there."""
    slots = np.zeros(SLOTS, SLOT)
    at = candidates(CROWD[0])[0]
    slots["service"][at], slots["id"][at] = CROWD[0]
    index = IdIndex(slots, PROBES, Reclaimer(lambda: None), len(slots) // 4)
    assert index.items() == []
    assert slots["service"][at] not in (0, CROWD[0][0])
    index.update(record(CROWD[1]), 5)
    assert slots["handle"][at] == 5


def test_room_for_as_many_as_are_allowed() -> None:
    """A quarter of the slots: far fewer than a probe sequence are in each other's way."""
    slots = np.zeros(1 << 16, SLOT)
    index = IdIndex(slots, PROBES, Reclaimer(lambda: None), len(slots) // 4)
    for number in range(1 << 14):
        index.update(record((1 + number % 3, number)), number + 1)
    assert all(server_of(slots, 1 + n % 3, n) == n + 1 for n in range(1 << 14))
    with pytest.raises(CapacityError, match="16385 needed, 16384 at most"):
        index.update(record((1, 1 << 14)), 1)
