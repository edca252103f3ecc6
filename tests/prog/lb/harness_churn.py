# SPDX-License-Identifier: Apache-2.0
"""Changes of a wildcard table, one after the other, and what is right before and after each.

Run as a program it makes them in a pinned table, until it is killed. Arguments are the directory
of pins, a file that says how far it is, and how many changes to make.
"""

from __future__ import annotations

import mmap
import random
import sys
from dataclasses import dataclass, replace
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from towpath.wildcard import Rule, WildcardTable

if TYPE_CHECKING:
    from collections.abc import Iterator

STARTED, FINISHED = 0, 1
_SEED = 11


@dataclass(frozen=True, slots=True)
class Change:
    """Inserts ``new`` unless it is None, deletes or replaces the rule of the place ``old``.

    Places are numbers of inserts, from 0.
    """

    old: int | None
    new: Rule | None


def changes(count: int, *, replacements: bool) -> Iterator[Change]:
    """Changes after which there are sometimes hundreds of rules and sometimes few.

    Rules are wide and narrow, of a few addresses, so that they share slots and hash tables come,
    grow, shrink and go. Each has another value, which is its place. Replacements are few: each
    waits for packets.
    """
    chance = random.Random(_SEED)  # noqa: S311 -- not a secret
    alive: list[int] = []
    rules: dict[int, Rule] = {}
    made = 0
    for at in range(count):
        most = (400, 30, 200, 3)[at // 300 % 4]
        if alive and (len(alive) > most or chance.random() < 0.3):
            old = alive.pop(chance.randrange(len(alive)))
            yield Change(old, None)
        elif replacements and alive and chance.random() < 0.02:
            old = chance.choice(alive)
            new = replace(_rule(chance, made, rules[old].version), value=made)
            rules[made] = new
            alive[alive.index(old)] = made
            made += 1
            yield Change(old, new)
        else:
            rules[made] = _rule(chance, made, chance.choice((4, 6, None)))
            alive.append(made)
            made += 1
            yield Change(None, rules[made - 1])


def _rule(chance: random.Random, value: int, version: int | None) -> Rule:
    first = chance.choice((0, 80, 1024, chance.randrange(65536)))
    ports = (first, chance.choice((first, min(first + 10, 65535), 65535)))
    return Rule(
        _network(chance, version),
        _network(chance, version),
        (0, 65535),
        ports,
        chance.choice((None, 6, 17)),
        priority=chance.randrange(4),
        value=value,
    )


def _network(chance: random.Random, version: int | None) -> IPv4Network | IPv6Network | None:
    bits = chance.getrandbits(6)
    if version == 4:
        length = chance.choice((0, 8, 16, 24, 28, 31, 32))
        return IPv4Network(((0x0A000000 + bits * 0x010101) >> 32 - length << 32 - length, length))
    if version == 6:
        length = chance.choice((0, 16, 32, 48, 64, 120, 128))
        address = (0x20010DB8 << 96) + (bits << 80) + (bits << 64) + bits
        return IPv6Network((address >> 128 - length << 128 - length, length))
    return None


class Writer:
    """Makes changes, and tells how far it is by two numbers: changes begun, and done."""

    def __init__(
        self, table: WildcardTable, progress: np.ndarray[tuple[int], np.dtype[np.uint64]]
    ) -> None:
        self._table = table
        self._progress = progress
        self._numbers: dict[int, int] = {}
        self._made = 0

    def make(self, change: Change) -> None:
        """Make one change."""
        self._progress[STARTED] += 1
        if change.new is None:
            assert change.old is not None
            self._table.delete(self._numbers.pop(change.old))
        elif change.old is None:
            self._numbers[self._made] = self._table.insert(change.new)
            self._made += 1
        else:
            number = self._numbers[self._made] = self._numbers.pop(change.old)
            self._table.replace(number, change.new)
            self._made += 1
        self._progress[FINISHED] += 1


class State:
    """What is in the table after a number of changes: rules, in the order in which they win."""

    def __init__(self) -> None:
        self._rules: dict[int, tuple[int, Rule]] = {}
        self._made = 0

    def apply(self, change: Change) -> None:
        """Go on by one change. A replacement keeps its age, which is the first one's place."""
        age = self._made
        if change.old is not None:
            age, _ = self._rules.pop(change.old)
        if change.new is not None:
            if change.old is None:
                age = self._made
            self._rules[self._made] = age, change.new
            self._made += 1

    def in_order(self) -> list[Rule]:
        """The rules, those that win first."""
        by_rank = sorted(self._rules.values(), key=lambda pair: (-pair[1].priority, pair[0]))
        return [rule for _, rule in by_rank]


def main(pins: str, progress: str, count: str) -> None:
    """Make changes in a pinned table until killed."""
    with Path(progress).open("r+b") as file, WildcardTable(pins, "rules") as table:
        shared = np.frombuffer(mmap.mmap(file.fileno(), 16), np.uint64)
        writer = Writer(table, shared)
        for change in changes(int(count), replacements=True):
            writer.make(change)


if __name__ == "__main__":
    main(*sys.argv[1:])
