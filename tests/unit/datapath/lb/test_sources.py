# SPDX-License-Identifier: Apache-2.0
"""Sets of sources: kept once, whole before they are named, there until nobody reads them."""

from __future__ import annotations

from collections import Counter
from ipaddress import ip_network
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.datapath.harness_memory import SOURCE_BITS, SOURCE_KEY, Memory, prefix_of_key
from tests.unit.datapath.harness_services import SOURCES

from towpath.datapath.errors import CapacityError
from towpath.datapath.lb.grace import Reclaimer
from towpath.datapath.lb.sources import EVERYONE, SourceSets, present

if TYPE_CHECKING:
    from towpath.model.kinds import Prefix

LISTS = [each for each in SOURCES if each is not None]
ONE, TWO, FOUR = LISTS


class World:
    """A trie, its sets, and how often readers were waited for."""

    def __init__(self, limit: int = 16) -> None:
        self.memory = Memory(sources_limit=limit)
        self.waits = 0
        self.restart()

    def restart(self) -> None:
        """Another process's sets over the same trie."""
        self.reclaimer = Reclaimer(self._wait)
        self.sets = SourceSets(
            self.memory, SOURCE_KEY, SOURCE_BITS, self.memory.sources_limit, self.reclaimer
        )

    def _wait(self) -> None:
        self.waits += 1

    def stored(self) -> dict[int, set[Prefix]]:
        """What packets find, by set."""
        found: dict[int, set[Prefix]] = {}
        for key in self.memory.snapshot()[0]:
            found.setdefault(int(key["set"]), set()).add(prefix_of_key(key))
        return found


def test_no_list_is_everyone() -> None:
    """It takes no room, and there is nothing to leave."""
    world = World()
    assert world.sets.take(None) == EVERYONE
    world.sets.leave(EVERYONE)
    assert world.stored() == {}


def test_a_set_stays_until_the_last_leaves_and_readers_are_through() -> None:
    """Its number isn't given to another before."""
    world = World()
    number = world.sets.take(TWO)
    assert world.sets.take(TWO) == number != EVERYONE
    world.sets.leave(number)
    world.sets.leave(number)
    assert world.stored() == {number: set(TWO)}
    again = world.sets.take(TWO)
    assert again != number
    world.reclaimer.reclaim()
    assert world.stored() == {again: set(TWO)}
    assert world.sets.take(ONE) == number


def test_room_is_made_by_a_wait_and_only_then() -> None:
    """Without room nothing is stored, and what there is stays."""
    world = World(limit=6)
    first = world.sets.take(FOUR)
    second = world.sets.take(TWO)
    with pytest.raises(CapacityError, match=r"sources: 7 needed, 6 at most; raise limits\.sources"):
        world.sets.take(ONE)
    assert world.stored() == {first: set(FOUR), second: set(TWO)}
    assert world.waits == 0
    world.sets.leave(second)
    third = world.sets.take(ONE)
    assert world.waits == 1
    assert world.stored() == {first: set(FOUR), third: set(ONE)}


def test_what_nobody_names_goes_after_a_restart() -> None:
    """What services name is shared as before."""
    world = World()
    kept, lost = world.sets.take(FOUR), world.sets.take(ONE)
    world.restart()
    assert world.sets.adopt([kept, EVERYONE, kept]) == {kept: FOUR}
    # A packet that came while the other process lived may still read it.
    assert world.stored().keys() == {kept, lost}
    world.reclaimer.reclaim()
    assert world.stored().keys() == {kept}
    assert world.sets.take(FOUR) == kept
    for _ in range(3):
        world.sets.leave(kept)
    world.reclaimer.reclaim()
    assert world.stored() == {}


def test_two_sets_of_one_list_are_two() -> None:
    """Should services name both, each goes with its own."""
    world = World()
    first = world.sets.take(TWO)
    world.sets.leave(first)
    second = world.sets.take(TWO)
    world.restart()
    world.sets.adopt([first, second])
    for number in (first, second):
        world.sets.leave(number)
    world.reclaimer.reclaim()
    assert world.stored() == {}


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(SOURCES), st.booleans()), max_size=30))
def test_services_find_their_list_at_any_time(
    changes: list[tuple[int, tuple[Prefix, ...] | None, bool]],
) -> None:
    """Whoever changes, waits, or starts anew."""
    world = World()
    services = dict.fromkeys(range(4), EVERYONE)
    lists: dict[int, tuple[Prefix, ...] | None] = dict.fromkeys(range(4))
    for service, wanted, restarts in changes:
        if restarts:
            world.restart()
            world.sets.adopt(services.values())
        try:
            number = world.sets.take(wanted)
        except CapacityError:
            continue
        before, services[service], lists[service] = services[service], number, wanted
        world.sets.leave(before)
        stored = world.stored()
        for each, named in services.items():
            assert stored.get(named, set()) == set(lists[each] or ())
    world.reclaimer.reclaim()
    assert world.stored().keys() == set(services.values()) - {EVERYONE}
    users = Counter(present(found) for each in services if (found := lists[each]))
    assert dict(world.sets.in_use) == dict(users)


def test_a_full_address_and_all_addresses() -> None:
    """The shortest and the longest of either family, in one set."""
    world = World()
    prefixes = tuple(map(ip_network, ("0.0.0.0/0", "192.0.2.1/32", "::/0", "2001:db8::1/128")))
    number = world.sets.take(prefixes)
    assert world.stored() == {number: set(prefixes)}
    lengths = sorted(int(key["prefixlen"]) for key in world.memory.snapshot()[0])
    assert lengths == [64, 160, 192, 192]
