# SPDX-License-Identifier: Apache-2.0
"""Rules and packets: what they may be, and how they lie in memory."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.wildcard.oracle_wildcard import matches, packets_for, rules

from towpath.wildcard import Packet, Rule, maps
from towpath.wildcard.codec import FAMILIES, MAX_NUMBER, V4, decode, encode, key_of, matching
from towpath.wildcard.codec import number_of as number_of_rank
from towpath.wildcard.rule import MAX_PRIORITY

ANY4, ANY6 = ip_network("0.0.0.0/0"), ip_network("::/0")


def test_of_reads_what_people_write() -> None:
    """Texts, numbers and pairs stand for networks, ranges and protocols."""
    rule = Rule.of(
        "10.0.0.0/8",
        "192.0.2.1",
        source_ports="1024-65535",
        destination_ports=80,
        protocol="TCP",
        vlan=5,
        ifindex=2,
        priority=7,
        value=9,
    )
    networks = ip_network("10.0.0.0/8"), ip_network("192.0.2.1/32")
    assert rule == Rule(*networks, (1024, 65535), (80, 80), 6, 5, 2, 7, 9)
    assert Rule.of(destination_ports="53", protocol="17") == Rule(
        None, None, (0, 65535), (53, 53), 17
    )
    assert Rule.of(source_ports=(1, 2)).source_ports == (1, 2)


def test_an_address_not_given_is_all_of_the_family() -> None:
    """Rules are equal if they match the same; without any address a rule is of both families."""
    assert Rule.of("10.0.0.0/8") == Rule.of("10.0.0.0/8", "0.0.0.0/0")
    assert Rule.of(None, "2001:db8::/32").source == ANY6
    assert [Rule.of(each).version for each in ("10.0.0.0/8", "::/0", None)] == [4, 6, None]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"source": "10.0.0.1/8"}, "source: 10.0.0.1/8 has host bits set; allowed: a prefix"),
        ({"destination": "web"}, "destination: 'web' does not appear to be"),
        ({"source": "10.0.0.0/8", "destination": "::/0"}, "allowed: both of one family"),
        ({"source_ports": "80-"}, "source_ports: '80-'; allowed: a port or a range"),
        ({"destination_ports": "90-80"}, "destination_ports: 90 to 80 is empty"),
        ({"destination_ports": 65536}, "destination_ports: 65536; allowed: 0 to 65535"),
        ({"destination_ports": "-1"}, "allowed: a port or a range such as 80-90"),
        ({"protocol": "tpc"}, "protocol: 'tpc'; allowed: icmp, "),
        ({"protocol": 256}, "protocol: 256; allowed: 0 to 255"),
        ({"vlan": 4095}, "vlan: 4095; allowed: 0 to 4094"),
        ({"ifindex": 0}, "ifindex: 0; allowed: 1 to 2147483647"),
        ({"priority": 1 << 20}, "priority: 1048576; allowed: 0 to 1048575"),
        ({"value": -1}, "value: -1; allowed: 0 to 18446744073709551615"),
    ],
)
def test_what_is_out_of_range_is_refused(wrong: dict[str, Any], message: str) -> None:
    """The message says what is wrong, where, and what is allowed."""
    with pytest.raises(ValueError) as raised:  # noqa: PT011 -- the whole text is compared
        Rule.of(**wrong)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    "wrong", [{"source": IPv4Address("10.0.0.1")}, {"vlan": True}, {"value": 1.0}]
)
def test_what_is_of_another_type_is_refused(wrong: dict[str, Any]) -> None:
    """An address is no network, a flag no number."""
    with pytest.raises(TypeError, match="allowed"):
        Rule(**wrong)


def test_packets_have_one_family_and_numbers_in_range() -> None:
    """A packet is checked as a rule is."""
    with pytest.raises(ValueError, match="both of one family"):
        Packet(IPv4Address("10.0.0.1"), IPv6Address("::1"))
    with pytest.raises(ValueError, match="destination_port: 65536; allowed: 0 to 65535"):
        Packet(IPv4Address("10.0.0.1"), IPv4Address("10.0.0.2"), 0, 65536)


# ---- In memory -----------------------------------------------------------------------------------


@given(rule=rules(), number=st.integers(1, MAX_NUMBER), version=st.integers(0, 2**32 - 1))
def test_a_record_has_everything_of_a_rule(rule: Rule, number: int, version: int) -> None:
    """What is packed by struct reads as the compiler laid it out, and makes the same rule again."""
    for family in FAMILIES.values():
        if rule.version not in (family.version, None):
            continue
        dtype = maps.wanted().layouts[f"rules{family.version}"].value
        record = np.frombuffer(encode(family, rule, number, 77, version), dtype)[0]
        assert decode(family, record, {77: rule.ifindex or 0}) == rule
        assert number_of_rank(int(record["head"]["rank"])) == number
        assert int(record["head"]["version"]) == version
        assert int(record["head"]["value"]) == rule.value


@given(st.lists(rules(), min_size=1, max_size=8))
def test_comparing_records_with_a_key_is_matching(some: list[Rule]) -> None:
    """The model's comparison, of masks and words, agrees with one of ranges of addresses."""
    for packet in packets_for(some):
        family = FAMILIES[packet.source.version]
        mine = [rule for rule in some if rule.version in (family.version, None)]
        if not mine:
            continue
        dtype = maps.wanted().layouts[f"rules{family.version}"].value
        packed = b"".join(
            encode(family, rule, number + 1, (rule.ifindex or 0) & 0xFF)
            for number, rule in enumerate(mine)
        )
        found = matching(
            np.frombuffer(packed, dtype), key_of(family, packet, packet.ifindex & 0xFF)
        )
        assert found.tolist() == [matches(rule, packet) for rule in mine]


@given(rules(), rules(), st.integers(1, MAX_NUMBER - 1))
def test_priority_outranks_age_and_age_decides_ties(one: Rule, other: Rule, number: int) -> None:
    """The rank of a higher priority is higher, of equal ones that of the lower number."""

    def rank(rule: Rule, number: int) -> int:
        plain = replace(Rule(source=ANY4), priority=rule.priority)
        return int(V4.record.unpack(encode(V4, plain, number))[0])

    if one.priority == other.priority:
        assert rank(one, number) > rank(other, number + 1)
    else:
        first, second = sorted((one, other), key=lambda rule: rule.priority)
        assert rank(first, 1) < rank(second, MAX_NUMBER)
    assert 0 < rank(one, number) < 1 << 64


def test_the_lowest_rank_is_not_that_of_no_rule() -> None:
    """Priority 0 and the highest number still rank above nothing."""
    assert V4.record.unpack(encode(V4, Rule(source=ANY4), MAX_NUMBER))[0] == 1
    assert MAX_PRIORITY == 0xFFFFF


def test_keys_are_in_the_order_that_bpf_has() -> None:
    """Addresses high word first, then ports, protocol, tag and device."""
    packet = Packet(ip_address("2001:db8::1"), ip_address("2001:db8::2"), 1, 2, 3, 4, 9)
    assert key_of(FAMILIES[6], packet, 5) == (
        0x20010DB800000000,
        1,
        0x20010DB800000000,
        2,
        1 << 48 | 2 << 32 | 3 << 24 | 4 << 12 | 5,
    )
