# SPDX-License-Identifier: Apache-2.0
"""Primes against a sieve."""

from __future__ import annotations

from itertools import pairwise

from towpath.model.primes import is_prime, prime_at_least, prime_at_most
from towpath.model.service import DEFAULT_TABLE, MAX_TABLE, MIN_TABLE

LIMIT = 1 << 16


def sieve() -> list[int]:
    """All primes below LIMIT."""
    flags = bytearray([0, 0]) + bytearray([1]) * (LIMIT - 2)
    for number in range(2, 256):
        if flags[number]:
            flags[number * number :: number] = bytes(len(range(number * number, LIMIT, number)))
    return [number for number in range(LIMIT) if flags[number]]


def test_equals_a_sieve() -> None:
    """Every number below 65536 is told apart, and its neighbours are found."""
    primes = sieve()
    assert [number for number in range(-5, LIMIT) if is_prime(number)] == primes
    for before, after in pairwise(primes):
        assert prime_at_most(after - 1) == before
        assert prime_at_least(before + 1) == after


def test_what_fools_weaker_tests() -> None:
    """Carmichael numbers and strong pseudoprimes to the bases 2, 3 and 5."""
    assert not any(map(is_prime, [561, 2821, 2047, 1373653, 25326001, 2047 * 2047]))


def test_table_sizes_are_primes() -> None:
    """The default and both ends of the range are allowed themselves."""
    assert all(map(is_prime, [MIN_TABLE, DEFAULT_TABLE, MAX_TABLE]))
