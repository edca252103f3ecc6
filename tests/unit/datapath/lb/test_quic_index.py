# SPDX-License-Identifier: Apache-2.0
"""The index of servers' ids: what is written is what the program finds, and between as well."""

from __future__ import annotations

from itertools import count, islice
from typing import TYPE_CHECKING

import numpy as np
import pytest
from tests.unit.datapath.harness_program import BTF, server_of
from tests.unit.datapath.lb.harness_index import SLOTS, IndexMachine

from towpath.core.lb.hash import step
from towpath.datapath.errors import CapacityError
from towpath.datapath.lb.grace import Reclaimer
from towpath.datapath.lb.quic_index import IdIndex

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.unit.datapath.harness_program import Array

SLOT = BTF.dtype("quic_server")
PROBES = int(BTF.enum("quic_limits")["QUIC_PROBES"])

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


class IdMachine(IndexMachine[IdIndex, Key]):
    """Ids of servers lead to backends' handles."""

    slot, word, probes = SLOT, "handle", PROBES
    all_keys, crowd_keys = KEYS, CROWD

    def begin(self, reclaimer: Reclaimer) -> IdIndex:
        """Return an index over `slots`."""
        return IdIndex(self.slots, PROBES, reclaimer, SLOTS)

    def put(self, key: Key, value: int) -> None:
        """Have an id lead to a backend."""
        self.index.update(record(key), value)

    def take_out(self, key: Key) -> None:
        """Have an id lead nowhere; twice is allowed to who says so."""
        self.index.delete(record(key))
        self.index.delete(record(key), missing_ok=True)

    def candidates(self, key: Key) -> Sequence[int]:
        """Return the slots that the program looks at."""
        return candidates(key)

    def look_up(self, key: Key) -> Iterator[int]:
        """Look an id up as the program does."""
        for at in candidates(key):
            number = int(self.slots["id"][at])
            yield 0
            service = int(self.slots["service"][at])
            yield 0
            if (service, number) == key:
                yield int(self.slots["handle"][at])
                return
            if not service:
                return

    def found(self, key: Key) -> int:
        """Return the handle that the program finds."""
        return server_of(self.slots, *key)

    def read_back(self) -> dict[Key, int]:
        """Return all that is listed, which look-ups give as well."""
        there = self.index.items()
        listed = {(int(key["service"]), int(key["id"])): handle for key, handle in there}
        assert len(listed) == len(there)
        assert listed == {
            key: handle for key in KEYS if (handle := self.index.lookup(record(key))) is not None
        }
        return listed


TestIds = IdMachine.TestCase


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
