# SPDX-License-Identifier: Apache-2.0
"""What packets find in a wildcard table inside the kernel, beside an oracle."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.guests import IN_GUEST
from tests.prog.wildcard.harness import TABLE, Asker, clear, loaded
from tests.unit.wildcard.oracle_wildcard import Oracle, mixed_packets, packets_for, rules

from towpath.wildcard import (
    FullError,
    NoSuchRuleError,
    Packet,
    Rule,
    TooComplexError,
    WildcardTable,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_EXAMPLES = 10 if IN_GUEST else 100
_ROOM = 512
_MIXED = 350


class Rig:
    """A table, the oracle beside it, and the count of packets that both agreed on."""

    def __init__(self, asker: Asker, table: WildcardTable) -> None:
        self.asker = asker
        self.table = table
        self.oracle = Oracle()
        self.checked = 0

    def check(self, some: Sequence[Rule]) -> None:
        """Packets at these rules' edges find in the kernel what oracle and model say."""
        packets = packets_for(some) + mixed_packets(some, _MIXED)
        for packet, found in zip(packets, self.asker.ask(packets), strict=True):
            assert found == self.oracle.lookup(packet), packet
        for packet in packets[:3]:
            model = self.table.lookup(packet)
            assert (model or (0, 0)) == self.oracle.lookup(packet), packet
        self.checked += len(packets)

    def clear(self) -> None:
        """Begin again."""
        clear(self.table)
        self.oracle = Oracle()


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    """One loaded program for all."""
    with loaded(room=_ROOM) as (asker, obj), WildcardTable(obj, TABLE) as table:
        yield Rig(asker, table)


@settings(
    max_examples=_EXAMPLES,
)
@given(some=st.lists(rules(), min_size=1, max_size=24), data=st.data())
def insert_and_delete(rig: Rig, some: list[Rule], data: st.DataObject) -> None:
    """In whatever order, one by one or at once, and look packets up meanwhile."""
    rig.clear()
    at_once = data.draw(st.integers(0, len(some)))
    for number, rule in zip(rig.table.insert_many(some[:at_once]), some, strict=False):
        rig.oracle.insert(number, rule)
    rig.check(some)
    for rule in some[at_once:]:
        rig.oracle.insert(rig.table.insert(rule), rule)
    rig.check(some)
    gone = data.draw(st.lists(st.sampled_from(sorted(rig.oracle.rules)), unique=True))
    half = len(gone) // 2
    for number in gone[:half]:
        rig.table.delete(number)
    rig.table.delete_many(gone[half:])
    for number in gone:
        del rig.oracle.rules[number]
    rig.check(some)
    assert list(rig.table.items()) == rig.oracle.in_order()
    assert len(rig.table) == len(rig.oracle.rules)


def test_packets_find_what_the_oracle_says(rig: Rig) -> None:
    """A hundred thousand packets, on the host."""
    before = rig.checked
    insert_and_delete(rig)
    assert rig.checked - before >= 1000 * _EXAMPLES


def test_replacements(rig: Rig) -> None:
    """A replaced rule has its number, its place among equals, and nothing of the old one."""
    rig.clear()
    old = [Rule.of("10.0.0.0/8", value=1), Rule.of("10.0.0.0/8", value=2), Rule.of("::/0", value=3)]
    numbers = rig.table.insert_many(old)
    new = [
        Rule.of("10.0.0.0/8", "10.0.0.0/9", destination_ports="80-90", value=4),
        Rule.of("0.0.0.0/0", priority=1, value=5),
        Rule.of("2001:db8::/32", protocol="tcp", value=6),
    ]
    for number, rule in zip(numbers, new, strict=True):
        rig.table.replace(number, rule)
        rig.oracle.rules = dict(rig.table)
        rig.check(old + new)
    assert dict(rig.table) == dict(zip(numbers, new, strict=True))
    rig.table.replace_many(dict(zip(numbers, old, strict=True)))
    rig.oracle.rules = dict(zip(numbers, old, strict=True))
    rig.check(old + new)
    assert [rig.table[number] for number in numbers] == old


def test_a_value_changes_at_once(rig: Rig) -> None:
    """The next packet finds the new value, of a rule of both families by either."""
    rig.clear()
    number = rig.table.insert(Rule(value=1))
    rig.table.set_value(number, 1 << 63)
    packets = packets_for([Rule()])
    assert set(rig.asker.ask(packets)) == {(number, 1 << 63)}
    with pytest.raises(ValueError, match="value: -1; allowed: 0 to"):
        rig.table.set_value(number, -1)


def test_numbers_are_never_given_out_again(rig: Rig) -> None:
    """Not after a deletion, and not after the table is opened anew."""
    rig.clear()
    first = rig.table.insert(Rule())
    rig.table.delete(first)
    rig.table.close()
    rig.table = WildcardTable(rig.asker.object, TABLE)
    assert rig.table.insert(Rule()) > first


def test_what_is_not_there(rig: Rig) -> None:
    """Each verb says which rule is missing, and changes nothing."""
    rig.clear()
    number = rig.table.insert(Rule.of("10.0.0.0/8"))
    missing = number + 1
    for change in (
        lambda: rig.table.delete(missing),
        lambda: rig.table.delete_many([number, missing]),
        lambda: rig.table.replace(missing, Rule()),
        lambda: rig.table.set_value(missing, 1),
        lambda: rig.table[missing],
    ):
        with pytest.raises(NoSuchRuleError, match=f"rules: there is no rule {missing}"):
            change()
    with pytest.raises(NoSuchRuleError, match="twice"):
        rig.table.delete_many([number, number])
    with pytest.raises(
        ValueError, match=f"rule {number} is of IPv4, what is to replace it of both"
    ):
        rig.table.replace(number, Rule())
    assert list(rig.table.items()) == [(number, Rule.of("10.0.0.0/8"))]
    assert number in rig.table
    assert missing not in rig.table


def test_too_many_rules_for_one_packet(rig: Rig) -> None:
    """Of a set that would make a packet too slow nothing stays; what was there does."""
    rig.clear()
    kept = rig.table.insert(Rule.of("10.0.0.0/8", value=7))
    overlapping = [Rule(None, None, (0, 65535), (0, 65534 - n % 3), value=n) for n in range(1100)]
    with pytest.raises(TooComplexError, match="more than 1024 IPv4 rules"):
        rig.table.insert_many(overlapping)
    assert list(rig.table.items()) == [(kept, Rule.of("10.0.0.0/8", value=7))]
    rig.oracle.rules = dict(rig.table)
    rig.check([Rule.of("10.0.0.0/8")])


def test_a_full_table() -> None:
    """When one family is full a rule of both families goes into neither."""
    with loaded(rules=10) as (asker, obj), WildcardTable(obj, TABLE) as table:
        numbers = table.insert_many(Rule.of(f"2001:db8::{n}") for n in range(10))
        with pytest.raises(
            FullError, match="no room for another IPv6 rule: 10 are in, allowed: 10"
        ):
            table.insert(Rule())
        with pytest.raises(
            FullError, match="no room for another IPv4 rule: 10 are in, allowed: 10"
        ):
            table.insert_many(Rule.of(f"10.0.0.{n}") for n in range(11))
        assert list(table) == numbers
        assert asker.ask([packets_for([Rule.of("10.0.0.1")])[0]]) == [(0, 0)]
        assert table.statistics().rules == 10
        table.delete(numbers[0])
        assert table.insert(Rule()) in table


def test_it_is_a_mapping(rig: Rig) -> None:
    """Of rules by their numbers, those first that win; what is read is of one moment."""
    rig.clear()
    low, both, high = (
        Rule.of("10.0.0.0/8", priority=1),
        Rule(priority=2),
        Rule.of("2001:db8::/32", priority=3),
    )
    numbers = [rig.table.insert(rule) for rule in (low, both, high)]
    table: Mapping[int, Rule] = rig.table
    assert isinstance(table, Mapping)
    assert list(table) == list(table.keys()) == numbers[::-1]
    assert list(table.values()) == [high, both, low]
    assert list(table.items()) == list(zip(numbers[::-1], (high, both, low), strict=True))
    assert dict(table) == rig.table.snapshot() == table
    assert table.get(numbers[0]) == low
    for nobody in (0, -1, numbers[0] + (1 << 64), numbers[-1] + 1):
        assert (table.get(nobody), nobody in table) == (None, False)
    assert (numbers[0], low) in table.items()
    left = iter(table.items())
    del rig.table[numbers[1]]
    assert len(list(left)) == 3
    assert numbers[1] not in table
    with pytest.raises(NoSuchRuleError, match="there is no rule"):
        del rig.table[numbers[1]]
    assert len(table) == 2
    rig.oracle.rules = dict(table)


def test_other_families_match_nothing(rig: Rig) -> None:
    """A key that says neither IPv4 nor IPv6 finds no rule."""
    rig.clear()
    rig.table.insert(Rule())
    packets = packets_for([Rule()])
    rig.asker.prepare(packets)
    rig.asker._queries["family"] = 7
    rig.asker.run()
    assert set(rig.asker.found(len(packets))) == {(0, 0)}


def test_devices_by_the_hundred(rig: Rig) -> None:
    """255 devices have numbers; a further one is refused, until another is named no more."""
    rig.clear()
    given = [Rule(source=None, ifindex=1000 + n, value=n) for n in range(255)]
    numbers = rig.table.insert_many(given)
    ends = ip_address("10.0.0.1"), ip_address("10.0.0.2")
    packets = [Packet(*ends, ifindex=1000 + n) for n in range(260)]
    expected = [(number, n) for n, number in enumerate(numbers)] + [(0, 0)] * 5
    assert rig.asker.ask(packets) == expected
    with pytest.raises(FullError, match="allowed: 255"):
        rig.table.insert(Rule(ifindex=5))
    rig.table.delete(numbers[0])
    number = rig.table.insert(Rule(ifindex=1255, value=9))
    assert rig.asker.ask([packets[0], packets[255]]) == [(0, 0), (number, 9)]
    assert rig.table[number].ifindex == 1255
