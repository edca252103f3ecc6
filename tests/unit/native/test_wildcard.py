# SPDX-License-Identifier: Apache-2.0
"""The writer of wildcard tables, on memory that only the test reads."""

from __future__ import annotations

import random
from contextlib import suppress
from copy import deepcopy
from ipaddress import IPv4Network, ip_address
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.wildcard.harness_memory import Memory
from tests.unit.wildcard.oracle_wildcard import Oracle, packets_for, rules

from towpath.native.library import library
from towpath.native.wildcard import FamilyWriter, Status, WriterError
from towpath.wildcard import Packet, Rule
from towpath.wildcard.codec import encode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.unit.wildcard.harness_memory import Array

# More than numbers of devices have bits for: here the test gives the numbers.
DEVICES = {70000: 3}


def numbered(rule: Rule) -> Rule:
    """A rule whose device can be its own number."""
    if rule.ifindex in DEVICES:
        return Rule(
            rule.source,
            rule.destination,
            rule.source_ports,
            rule.destination_ports,
            rule.protocol,
            rule.vlan,
            DEVICES[rule.ifindex],
            rule.priority,
            rule.value,
        )
    return rule


def host_rule(host: int, *, priority: int = 0, port: int | None = None) -> Rule:
    """A rule for one source address."""
    ports = (0, 65535) if port is None else (port, port)
    source = IPv4Network((0x0A000000 + host, 32))
    return Rule(source, destination_ports=ports, priority=priority)


def packet_from(host: int, port: int = 80) -> Packet:
    """A packet that such a rule matches."""
    return Packet(ip_address(0x0A000000 + host), ip_address("192.0.2.1"), 1, port, 6)


def check(memory: Memory, oracle: Oracle, some: Sequence[Rule]) -> None:
    """Every packet at an edge of these rules finds what the oracle says."""
    for packet in packets_for(some):
        if packet.source.version == memory.family.version:
            assert memory.find(packet) == oracle.lookup(packet)[0], packet


@settings(max_examples=60)
@given(st.sampled_from((4, 6)), st.lists(rules().map(numbered), min_size=1, max_size=30), st.data())
def test_changes_in_any_order_leave_what_they_say(
    version: int, some: list[Rule], data: st.DataObject
) -> None:
    """After inserts, deletes, replacements and take-overs packets find what is there."""
    memory, oracle = Memory(version), Oracle()
    writer = memory.open()
    mine = [rule for rule in some if rule.version in (version, None)]
    for number, rule in enumerate(mine, 1):
        writer.insert(memory.encode(rule, number))
        oracle.insert(number, rule)
        what = data.draw(st.sampled_from(("go on", "delete", "replace", "take over", "check")))
        other = data.draw(st.sampled_from(sorted(oracle.rules)))
        if what == "delete":
            writer.delete([other])
            del oracle.rules[other]
        elif what == "replace":
            writer.replace([memory.encode(rule, other, number)])
            oracle.rules[other] = rule
        elif what == "take over":
            writer.close()
            writer = memory.open()
        elif what == "check":
            check(memory, oracle, mine)
        assert writer.report().rules == len(oracle.rules)
    check(memory, oracle, mine)
    assert memory.numbers(writer) == [number for number, _ in oracle.in_order()]


def test_a_full_half_refuses_and_keeps_what_it_has() -> None:
    """One rule more than there is room for is refused; after a deletion it goes in."""
    memory = Memory(4, rules=500)
    writer = memory.open()
    records = [memory.encode(host_rule(host), host + 1) for host in range(501)]
    writer.insert(b"".join(records[:500]))
    with pytest.raises(WriterError) as refused:
        writer.insert(records[500])
    assert refused.value.status is Status.FULL
    assert writer.report().rules == writer.report().limit == 500
    assert all(memory.find(packet_from(host)) == host + 1 for host in range(500))
    writer.delete([250])
    writer.insert(records[500])
    assert memory.find(packet_from(500)) == 501


def test_what_is_in_order_before_the_refused_is_in() -> None:
    """A refusal says how many of the rules are in."""
    memory = Memory(4, rules=10)
    writer = memory.open()
    packed = b"".join(memory.encode(host_rule(host), host + 1) for host in range(12))
    with pytest.raises(WriterError) as refused:
        writer.insert(packed)
    assert (refused.value.status, refused.value.done) == (Status.FULL, 10)
    assert memory.numbers(writer) == list(range(1, 11))


def test_rules_for_the_same_packets_are_refused_where_too_many() -> None:
    """1024 rules that match everything are one too few for a packet, 1025 one too many."""
    memory = Memory(4, rules=2000)
    writer = memory.open()
    for number in range(1, 1025):
        writer.insert(memory.encode(Rule(priority=number), number))
    assert memory.find(packet_from(1)) == 1024
    with pytest.raises(WriterError) as refused:
        writer.insert(memory.encode(Rule(), 1025))
    assert refused.value.status is Status.TOO_COMPLEX
    assert memory.numbers(writer) == list(range(1024, 0, -1))
    writer.delete([1024])
    writer.insert(memory.encode(Rule(), 1026))
    assert memory.find(packet_from(1)) == 1023


def test_no_wait_while_there_is_room() -> None:
    """Rules come and go without a wait for packets, until memory has been round once."""
    memory = Memory(4, rules=100)
    writer = memory.open()
    opened = memory.waits
    for number in range(1, 2000):
        writer.insert(memory.encode(host_rule(number % 7), number))
        writer.delete([number])
    assert memory.waits == opened
    for number in range(2000, 20000):
        writer.insert(memory.encode(host_rule(number % 7), number))
        writer.delete([number])
    assert 0 < memory.waits - opened < 20


def test_churn_in_a_full_half_never_fails() -> None:
    """With as many rules as fit, in runs of every length, each change still finds room."""
    chance = random.Random(3)  # noqa: S311 -- not a secret
    memory = Memory(4, rules=3000, slots=64)  # few slots: long runs
    writer, oracle = memory.open(), Oracle()
    for number in range(1, 20000):
        rule = host_rule(chance.randrange(200), port=chance.randrange(1, 400))
        if len(oracle.rules) == (600 if number % 5000 < 2500 else 100):
            gone = chance.choice(list(oracle.rules))
            writer.delete([gone])
            del oracle.rules[gone]
        with suppress(WriterError):
            writer.insert(memory.encode(rule, number))
            oracle.insert(number, rule)
    assert memory.numbers(writer) == [number for number, _ in oracle.in_order()]
    for number, rule in oracle.rules.items():
        host = int(rule.source.network_address) - 0x0A000000 if rule.source else 0
        packet = packet_from(host, rule.destination_ports[0])
        assert memory.find(packet) == oracle.lookup(packet)[0], number


def test_rules_can_be_moved_together() -> None:
    """Where every other place is free, runs move to the front, and are found all the time."""
    memory = Memory(4, rules=2000, slots=1 << 13)
    writer = memory.open()
    writer.insert(b"".join(memory.encode(host_rule(16 * n), n + 1) for n in range(2000)))
    writer.delete(range(1, 2000, 2))
    writer.reclaim()
    before = max(memory.places())
    library().towpath_wildcard_compact(writer._family)
    assert all(memory.find(packet_from(16 * n)) == (n + 1 if n % 2 else 0) for n in range(2000))
    writer.reclaim()
    assert max(memory.places()) < 1500 < before
    assert writer.report().unused == len(memory.rules) - 1 - 1000


def test_a_value_changes_in_place() -> None:
    """A new value is one store; the rule stays where it is."""
    memory = Memory(6)
    writer = memory.open()
    writer.insert(memory.encode(Rule(value=5), 1))
    before = deepcopy(memory.slots)
    writer.set_value(1, 1 << 63)
    assert int(writer.get(1)["head"]["value"]) == 1 << 63
    assert np.array_equal(before, memory.slots)
    with pytest.raises(WriterError):
        writer.set_value(2, 0)


def test_there_is_no_rule_zero() -> None:
    """It isn't mistaken for a place in which no number stands."""
    memory = Memory(4)
    writer = memory.open()
    writer.insert(memory.encode(host_rule(1), 1))
    assert 0 not in writer
    with pytest.raises(WriterError) as caught:
        writer.get(0)
    assert caught.value.status is Status.NO_SUCH_RULE


def test_a_replacement_that_stays_in_its_slot_waits_for_nobody() -> None:
    """New ports, priority or value are one store; another address takes a wait."""
    memory = Memory(4)
    writer = memory.open()
    writer.insert(memory.encode(host_rule(1), 1))
    waits = memory.waits
    writer.replace([memory.encode(host_rule(1, priority=9), 1, 1)])
    assert memory.waits == waits
    writer.replace([memory.encode(host_rule(1 << 20), 1, 2)])
    assert memory.waits == waits + 1
    assert (memory.find(packet_from(1)), memory.find(packet_from(1 << 20))) == (0, 1)


def test_slots_grow_and_shrink_with_the_rules() -> None:
    """A tuple has slots for the rules that it has, give or take, and gives the others back."""
    memory = Memory(4, rules=5000, slots=1 << 15)
    writer = memory.open()
    writer.insert(b"".join(memory.encode(host_rule(16 * n), n + 1) for n in range(5000)))
    grown = writer.report().slots
    assert 5000 < grown <= 20000
    writer.delete(range(1, 4990))
    assert writer.report().slots < 200
    assert all(memory.find(packet_from(16 * n)) == n + 1 for n in range(4989, 5000))
    writer.delete(range(4990, 5001))
    assert (writer.report().tuples, writer.report().slots) == (0, 0)
    writer.reclaim()
    assert writer.report().unused == len(memory.rules) - 1


def test_devices_run_out_and_come_back() -> None:
    """255 devices can be named; those that no rule names any more give their numbers back."""
    memory = Memory(4)
    writer = memory.open()
    given_out = {writer.device(ifindex) for ifindex in range(1000, 1255)}
    assert given_out == set(range(1, 256))
    with pytest.raises(WriterError) as refused:
        writer.device(5000)
    assert refused.value.status is Status.NO_DEVICE
    assert writer.device(1000) in given_out  # known
    writer.insert(encode(memory.family, Rule(ifindex=1001), 1, writer.device(1001)))
    for number in given_out:
        writer.release(number)
    for _ in range(2):
        writer.release(writer.device(1000))
    writer.release(writer.device(1001))
    assert writer.device(5000) in given_out
    kept = int(writer.get(1)["bits"][-1]) & 0xFFF
    assert writer.device(1001) == kept  # its rule is there: it was not taken away
    assert writer.device(6000) != kept


# ---- After a writer that ended anyhow ------------------------------------------------------------


def test_a_replacement_half_done_is_finished() -> None:
    """Of two versions of a rule the next writer keeps the newer."""
    memory = Memory(4)
    writer = memory.open()
    writer.insert(memory.encode(host_rule(1), 1))
    # As replace() does, but for its end.
    writer._replace(writer._family, memory.encode(host_rule(1 << 20), 1, 1))
    assert memory.find(packet_from(1)) == memory.find(packet_from(1 << 20)) == 1
    writer.close()
    writer = memory.open()
    assert (memory.find(packet_from(1)), memory.find(packet_from(1 << 20))) == (0, 1)
    assert memory.numbers(writer) == [1]


def test_bits_too_many_are_cleared() -> None:
    """Columns and tops that a writer has widened in vain fit again after the next opening."""
    memory = Memory(4)
    writer = memory.open()
    writer.insert(b"".join(memory.encode(host_rule(n), n + 1) for n in range(10)))
    writer.close()
    fitting = deepcopy(memory.index)
    for column in ("sources", "destinations", "ports", "protocols"):
        memory.index[column] = ~np.uint64(0)
    for each in ("any_source", "any_destination", "any_port", "any_protocol"):
        memory.index[each] = ~np.uint64(0)
    memory.index["tuples"]["top"] = ~np.uint64(0)
    writer = memory.open()
    for column in ("sources", "destinations", "ports", "protocols", "any_source", "any_port"):
        assert np.array_equal(memory.index[column], fitting[column]), column
    used = fitting["tuples"]["place"] != 0
    assert np.array_equal(memory.index["tuples"]["top"][used], fitting["tuples"]["top"][used])


@settings(max_examples=150)
@given(st.data())
def test_damage_is_noticed_or_harmless(data: st.DataObject) -> None:
    """Whatever is in the arrays, opening them ends, with a family or with an error."""
    memory = Memory(4, rules=50, slots=256)
    writer = memory.open()
    writer.insert(b"".join(memory.encode(host_rule(n, port=n + 1), n + 1) for n in range(40)))
    writer.close()
    where = data.draw(st.sampled_from(("slots", "tuples", "source", "devices", "rules")))
    words: Array = {
        "slots": memory.slots,
        "rules": memory.rules.view(np.uint64)[: 64 * 8],
        **{
            name: memory.index[name].reshape(-1).view(np.uint64)
            for name in ("tuples", "source", "devices")
        },
    }[where]
    for _ in range(data.draw(st.integers(1, 4))):
        used = np.flatnonzero(words)
        chosen = used if data.draw(st.booleans()) and len(used) else np.arange(len(words))
        at = chosen[data.draw(st.integers(0, 1 << 30)) % len(chosen)]
        words[at] ^= np.uint64(1) << np.uint64(data.draw(st.integers(0, 63)))
    try:
        writer = memory.open()
    except WriterError as error:
        refused = error.status
    else:
        assert writer.report().rules <= 40
        writer.insert(memory.encode(host_rule(99), 1000))
        writer.close()
        return
    assert refused is Status.DAMAGED


def test_arrays_of_another_kind_hold_no_table() -> None:
    """Noise is refused."""
    memory = Memory(4)
    chance = np.random.default_rng(1)
    memory.index.view(np.uint64)[:] = chance.integers(0, 1 << 63, memory.index.nbytes // 8)
    with pytest.raises(WriterError, match="DAMAGED"):
        memory.open()


def test_closed_is_closed() -> None:
    """Closing twice is closing once, and leaves the rules."""
    memory = Memory(4)
    writer: FamilyWriter = memory.open()
    writer.insert(memory.encode(host_rule(1), 1))
    writer.close()
    writer.close()
    assert memory.find(packet_from(1)) == 1
