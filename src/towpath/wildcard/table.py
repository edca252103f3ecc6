# SPDX-License-Identifier: Apache-2.0
"""The table: rules that BPF programs look packets up in, changed while they do."""

from __future__ import annotations

from collections.abc import ItemsView, Mapping, ValuesView
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple

from towpath.closeable import Closeable
from towpath.kernel import lock
from towpath.kernel.bpf.object import BpfObject
from towpath.kernel.bpf.rcu import wait_for_readers
from towpath.wildcard import maps
from towpath.wildcard.codec import BOTH, FAMILIES, MAX_NUMBER, number_of
from towpath.wildcard.errors import FullError, NoSuchRuleError, TooComplexError
from towpath.wildcard.family import FamilyTable
from towpath.wildcard.rule import Rule

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from towpath.kernel.bpf.maps import Map
    from towpath.native.wildcard import Report
    from towpath.wildcard.rule import Packet


class Match(NamedTuple):
    """What a packet finds: the rule's number and its value."""

    number: int
    value: int


@dataclass(frozen=True, slots=True)
class Statistics:
    """How full a table is: each family by itself, and ``bytes`` of kernel memory, used or not."""

    rules: int
    ipv4: Report
    ipv6: Report
    bytes: int


class WildcardTable(Closeable, Mapping[int, Rule]):
    """A table that a program declares by ``WILDCARD_TABLE(name, rules)``: rules by their numbers.

    A mapping, in the order in which rules win: the first of those that match a packet is what
    it finds. Rules come by `insert`, which gives them their numbers, and go by ``del`` or
    `delete`; `replace` and `set_value` change them.

    ``source`` is the loaded object, or the directory that its table is pinned in: there the
    last writer may have ended at any point, and this one goes on from what packets see.

    Every change is seen by the next packet, and by none half done. What is closed leaves its
    rules to the programs. May be used by several threads, but a table by one object at a time;
    one that is pinned is locked.

    A context manager. LayoutError: that is no such table, or one of another version.
    KernelError: nothing is pinned there, or another process has it. WildcardError: something
    else has written to its maps.
    """

    def __init__(self, source: BpfObject | Path | str, name: str) -> None:
        self.name = name
        self._lock = Lock()
        with ExitStack() as undo:
            found = _find(source, name, undo)
            self._bytes = sum(
                each.max_entries * each.value_dtype.itemsize for each in found.values()
            )
            self._tables = {
                version: _family_table(version, found, undo) for version in maps.VERSIONS
            }
            self._numbers = self._tables[4].index["last_number"]
            self._last = max(int(self._numbers[0]), *map(_newest, self._tables.values()))
            self._both = _reconcile(self._tables)
            self._undo = undo.pop_all()

    # ---- changes ---------------------------------------------------------------------------------

    def insert(self, rule: Rule) -> int:
        """Insert a rule; returns its number, which no other has or will ever have.

        FullError or TooComplexError: it is not in, and all others still are.
        """
        version = rule.version
        if version is None:
            return self.insert_many((rule,))[0]
        with self._lock:
            number = self._new_numbers(1)[0]
            self._tables[version].insert(((rule, number),))
        return number

    def insert_many(self, rules: Iterable[Rule]) -> list[int]:
        """Insert rules, all or none; returns their numbers, in their order.

        Packets see them appear one after the other, those of higher priority first.
        Errors as of ``insert``.
        """
        rules = list(rules)
        with self._lock:
            numbers = self._new_numbers(len(rules))
            numbered = list(zip(rules, numbers, strict=True))
            if len(numbered) > 1:
                numbered.sort(key=lambda pair: -pair[0].priority)
            try:
                self._insert_all(numbered)
            except TooComplexError:
                # The first to come decide which hash tables there are. In another order they
                # are fewer: slower ones, that leave room for more.
                numbered.sort(key=_scattered)
                self._insert_all(numbered)
            self._both.update(number for rule, number in numbered if rule.version is None)
        return numbers

    def _insert_all(self, numbered: Sequence[tuple[Rule, int]]) -> None:
        """Insert in both tables, all or none."""
        with ExitStack() as undo:
            for version, table in self._tables.items():
                mine = [pair for pair in numbered if pair[0].version in (version, None)]
                if mine:
                    table.insert(mine)
                    undo.callback(table.delete, [number for _, number in mine])
            undo.pop_all()

    def _new_numbers(self, count: int) -> list[int]:
        first, self._last = self._last + 1, self._last + count
        if self._last > MAX_NUMBER:
            raise FullError(f"all of the {MAX_NUMBER} numbers for rules have been used")
        # Before the rules are there: whoever takes over doesn't give a number out again.
        self._numbers[0] = self._last
        return list(range(first, self._last + 1))

    def delete(self, number: int) -> None:
        """Delete a rule. NoSuchRuleError."""
        with self._lock:
            for table in self._tables_of(number):
                table.delete((number,))
            self._both.discard(number)

    def delete_many(self, numbers: Iterable[int]) -> None:
        """Delete rules, all or none. NoSuchRuleError: one isn't there, or is named twice."""
        numbers = list(numbers)
        with self._lock:
            if len(numbers) > 1 and len(set(numbers)) < len(numbers):
                raise NoSuchRuleError(
                    f"a number is there twice among {len(numbers)}; allowed: once"
                )
            placed = {number: self._tables_of(number) for number in numbers}
            for table in self._tables.values():
                mine = [number for number in numbers if table in placed[number]]
                if mine:
                    table.delete(mine)
            self._both.difference_update(numbers)

    def replace(self, number: int, rule: Rule) -> None:
        """Put a rule in the place of another, whose number and age it gets. Errors as below."""
        self.replace_many({number: rule})

    def replace_many(self, rules: Mapping[int, Rule]) -> None:
        """Put rules in the places of others.

        A packet finds each old rule or the new one, never neither, and when this returns the
        new ones only. That takes a wait for the packets under way, some tens of milliseconds
        for all of them, unless only ports or priorities change. ``delete`` and ``insert`` don't
        wait.

        NoSuchRuleError; ValueError: a new rule is of other families than the old one; nothing
        is replaced then. FullError, TooComplexError: those that come before in order are.
        """
        with self._lock:
            placed = {number: self._tables_of(number) for number in rules}
            for number, rule in rules.items():
                self._check_families(number, rule, placed[number])
            for table in self._tables.values():
                mine = {number: rule for number, rule in rules.items() if table in placed[number]}
                if mine:
                    table.replace(mine)

    def _check_families(self, number: int, rule: Rule, tables: Sequence[FamilyTable]) -> None:
        old = None if number in self._both else tables[0].family.version
        if rule.version != old:
            words = {None: "both families", 4: "IPv4", 6: "IPv6"}
            raise ValueError(
                f"rule {number} is of {words[old]}, what is to replace it of "
                f"{words[rule.version]}; delete and insert it"
            )

    def set_value(self, number: int, value: int) -> None:
        """Give a rule another value, at once. NoSuchRuleError; ValueError: not of 64 bits."""
        if not 0 <= value < 1 << 64:
            raise ValueError(f"value: {value}; allowed: 0 to {(1 << 64) - 1}")
        with self._lock:
            for table in self._tables_of(number):
                table.set_value(number, value)

    def _tables_of(self, number: int) -> list[FamilyTable]:
        tables = [table for table in self._tables.values() if number in table]
        if not tables:
            raise NoSuchRuleError(f"{self.name}: there is no rule {number}")
        return tables

    # ---- what there is ---------------------------------------------------------------------------

    def __len__(self) -> int:
        with self._lock:
            return sum(table.report().rules for table in self._tables.values()) - len(self._both)

    def __contains__(self, number: object) -> bool:
        with self._lock:
            return isinstance(number, int) and any(
                number in table for table in self._tables.values()
            )

    def __getitem__(self, number: int) -> Rule:
        """The rule with a number. NoSuchRuleError."""
        with self._lock:
            table = self._tables_of(number)[0]
            return table.decode(table.record(number))

    def __delitem__(self, number: int) -> None:
        """Delete a rule. NoSuchRuleError."""
        self.delete(number)

    def __iter__(self) -> Iterator[int]:
        """The rules' numbers, as they were at the call, those that win first."""
        with self._lock:
            ranks = {
                rank
                for table in self._tables.values()
                for rank in table.records()["head"]["rank"].tolist()
            }
        return map(number_of, sorted(ranks, reverse=True))

    def items(self) -> ItemsView[int, Rule]:
        """Numbers and rules, those that win first; iterating is of one moment."""
        return _Items(self)

    def values(self) -> ValuesView[Rule]:
        """The rules, those that win first; iterating is of one moment."""
        return _Values(self)

    def snapshot(self) -> dict[int, Rule]:
        """Return all rules by their numbers, as they are at this moment, those that win first."""
        with self._lock:
            found = {}
            for table in self._tables.values():
                ifindexes = table.ifindexes()
                for record in table.records():
                    found[int(record["head"]["rank"])] = table.decode(record, ifindexes)
        return {number_of(rank): found[rank] for rank in sorted(found, reverse=True)}

    def lookup(self, packet: Packet) -> Match | None:
        """What a packet finds, None if no rule matches: by comparing it with all rules.

        This is what programs do, but not how they do it: it knows no tuples, slots or columns.
        """
        with self._lock:
            record = self._tables[packet.source.version].lookup(packet)
        if record is None:
            return None
        return Match(number_of(int(record["head"]["rank"])), int(record["head"]["value"]))

    def statistics(self) -> Statistics:
        """How full the table is."""
        rules = len(self)
        with self._lock:
            return Statistics(
                rules, self._tables[4].report(), self._tables[6].report(), self._bytes
            )

    # ---- life ------------------------------------------------------------------------------------

    def close(self) -> None:
        """Let go of the table; its rules stay. Twice is once."""
        with self._lock:
            self._undo.close()

    def __repr__(self) -> str:
        return f"<WildcardTable {self.name}>"


class _Items(ItemsView[int, Rule]):
    """Rules that are read all at once rather than one by one."""

    _mapping: WildcardTable

    def __iter__(self) -> Iterator[tuple[int, Rule]]:
        return iter(self._mapping.snapshot().items())


class _Values(ValuesView[Rule]):
    """The same without their numbers."""

    _mapping: WildcardTable

    def __iter__(self) -> Iterator[Rule]:
        return iter(self._mapping.snapshot().values())


def _find(source: BpfObject | Path | str, name: str, undo: ExitStack) -> dict[str, Map]:
    if isinstance(source, BpfObject):
        return maps.of_object(source, name)
    undo.enter_context(lock.exclusive(source))
    return maps.of_pins(Path(source), name, undo)


def _family_table(version: int, found: Mapping[str, Map], undo: ExitStack) -> FamilyTable:
    index, slots, rules = (
        maps.memory(found[part], maps.wanted().layouts[part].value, undo)
        for part in (f"index{version}", f"slots{version}", f"rules{version}")
    )
    table = FamilyTable(FAMILIES[version], (index, slots, rules), wait_for_readers)
    undo.callback(table.close)
    return table


def _scattered(pair: tuple[Rule, int]) -> int:
    """A key that sorts rules into no order, always the same."""
    return pair[1] * 0x9E3779B1 & 0xFFFFFFFF


def _newest(table: FamilyTable) -> int:
    ranks = table.records()["head"]["rank"].tolist()
    return max(map(number_of, ranks), default=0)


def _reconcile(tables: Mapping[int, FamilyTable]) -> set[int]:
    """Put right what was done in one table only; returns the rules of both families.

    A rule that one table lacks was about to be inserted or deleted: it is deleted. One that is
    newer in one table was about to be replaced: it is, in the other.
    """
    there = {
        version: {
            number_of(int(record["head"]["rank"])): record
            for record in table.records()
            if int(record["head"]["flags"]) & BOTH
        }
        for version, table in tables.items()
    }
    both = there[4].keys() & there[6].keys()
    for version, table in tables.items():
        table.delete([number for number in there[version] if number not in both])
    for number in both:
        ages = {version: int(there[version][number]["head"]["version"]) for version in tables}
        newer, older = (4, 6) if ages[4] > ages[6] else (6, 4)
        if ages[newer] > ages[older]:
            rule = tables[newer].decode(there[newer][number])
            tables[older].replace({number: rule}, ages[newer])
    return set(both)
