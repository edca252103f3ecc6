# SPDX-License-Identifier: Apache-2.0
"""The flow hash: one key at a time, many at once, and spread over slots."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from towpath.core.lb.hash import hash_flow, hash_flows, hash_vip, scale, step

FAMILY_V4, FAMILY_V6 = 2, 10
U64 = st.integers(0, 2**64 - 1)


def flow_key(source: str, sport: int, destination: str, dport: int, protocol: int) -> bytes:
    """The 40 bytes of a struct flow_key."""
    if is_v6 := ":" in source:
        addresses = IPv6Address(source).packed + IPv6Address(destination).packed
    else:
        pad = bytes(12)
        addresses = pad + IPv4Address(source).packed + pad + IPv4Address(destination).packed
    ports = sport.to_bytes(2, "big") + dport.to_bytes(2, "big")
    return addresses + ports + bytes([protocol, FAMILY_V6 if is_v6 else FAMILY_V4, 0, 0])


@pytest.mark.parametrize("is_v6", [False, True])
@given(
    keys=st.lists(st.binary(min_size=40, max_size=40), max_size=8),
    seed=U64,
)
def test_many_at_once_are_as_one_by_one(keys: list[bytes], seed: int, *, is_v6: bool) -> None:
    """Both forms agree on every key and seed, as bytes and as records."""
    expected = [hash_flow(key, seed, is_v6=is_v6) for key in keys]
    records = np.array(keys, "V40")
    assert hash_flows(records, seed, is_v6=is_v6).tolist() == expected
    rows = np.frombuffer(b"".join(keys), np.uint8).reshape(-1, 40)
    assert hash_flows(rows, seed, is_v6=is_v6).tolist() == expected


def test_is_the_same_forever() -> None:
    """Nodes of different releases share flows: the hash must never change."""
    v4 = flow_key("198.51.100.7", 40000, "203.0.113.10", 80, 6)
    v6 = flow_key("2001:db8::7", 40000, "2001:db8::10", 80, 17)
    assert hash_flow(v4, 0, is_v6=False) == 0xF0A96455BC8D5AF0
    assert hash_flow(v6, 1, is_v6=True) == 0x975E02636A21EF7C


def test_every_field_counts() -> None:
    """Flows that differ in one field have different hashes."""
    flows = [
        flow_key("198.51.100.7", 40000, "203.0.113.10", 80, 6),
        flow_key("198.51.100.8", 40000, "203.0.113.10", 80, 6),
        flow_key("198.51.100.7", 40001, "203.0.113.10", 80, 6),
        flow_key("198.51.100.7", 40000, "203.0.113.11", 80, 6),
        flow_key("198.51.100.7", 40000, "203.0.113.10", 81, 6),
        flow_key("198.51.100.7", 40000, "203.0.113.10", 80, 17),
    ]
    assert len({hash_flow(flow, 0, is_v6=False) for flow in flows}) == len(flows)
    assert hash_flow(flows[0], 0, is_v6=False) != hash_flow(flows[0], 1, is_v6=False)


@given(state=U64, words=st.lists(U64, min_size=2, max_size=2, unique=True))
def test_words_that_differ_do_not_collide(state: int, words: list[int]) -> None:
    """For a fixed state a step is a bijection of its word."""
    assert step(state, words[0]) != step(state, words[1])


@pytest.mark.parametrize("field", ["source", "port"])
def test_flows_spread_evenly_over_slots(field: str) -> None:
    """Clients that count their address or port up fill 64 bins as chance would."""
    keys = [
        flow_key(str(IPv4Address("198.18.0.0") + i), 40000, "203.0.113.10", 80, 6)
        if field == "source"
        else flow_key("198.51.100.7", i, "203.0.113.10", 80, 6)
        for i in range(65536)
    ]
    hashes = hash_flows(np.array(keys, "V40"), 0, is_v6=False)
    bins = np.bincount([scale(int(value) >> 32, 64) for value in hashes], minlength=64)
    chi_square = float(((bins - 1024) ** 2 / 1024).sum())
    assert chi_square < 117  # of 63 degrees of freedom, exceeded by chance once in 30,000


@given(st.integers(0, 2**32 - 1), st.integers(1, 2**22))
def test_scale_keeps_order_and_range(hash32: int, n: int) -> None:
    """The hash's share of 32 bits is the slot's share of n."""
    slot = scale(hash32, n)
    assert 0 <= slot < n
    assert slot == hash32 * n // 2**32


def test_vip_hash_takes_all_of_an_ipv6_address() -> None:
    """For IPv4 only the last word counts, for IPv6 all four do."""
    tail = (80).to_bytes(2, "big") + bytes([6, FAMILY_V6])
    keys = [IPv6Address(f"2001:db8:{i:x}:{i:x}:{i:x}::10").packed + tail for i in range(100)]
    assert len({hash_vip(key, is_v6=True) for key in keys}) == 100
    assert len({hash_vip(key, is_v6=False) for key in keys}) == 1
