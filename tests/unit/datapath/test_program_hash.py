# SPDX-License-Identifier: Apache-2.0
"""User space and the program hash alike: compared with the compiled headers themselves."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from tests.unit.datapath import harness_program

from towpath.core.lb import hash as user_space
from towpath.datapath.address import FAMILY_V4, FAMILY_V6

families = st.sampled_from([FAMILY_V4, FAMILY_V6])


@given(st.binary(min_size=16, max_size=16), st.binary(min_size=3, max_size=3), families)
def test_a_vip_hashes_to_the_same(address: bytes, port_and_protocol: bytes, family: int) -> None:
    """Whatever the bytes of the key are."""
    key = address + port_and_protocol + bytes([family])
    found = user_space.hash_vip(key, is_v6=family == FAMILY_V6)
    assert found == harness_program.hash_vip(key)


@given(
    st.binary(min_size=37, max_size=37),
    families,
    st.integers(0, 2**64 - 1),
)
def test_a_flow_hashes_to_the_same(start: bytes, family: int, seed: int) -> None:
    """Whatever the bytes of the key are, and for every seed."""
    key = start + bytes([family, 0, 0])
    found = user_space.hash_flow(key, seed, is_v6=family == FAMILY_V6)
    assert found == harness_program.hash_flow(key, seed)


@given(st.binary(min_size=37, max_size=37), families)
def test_every_bit_of_a_flow_flips_half_of_the_hash(start: bytes, family: int) -> None:
    """Flipping one bit of the ports changes 32 of 64 bits, give or take chance."""
    flips = []
    base = user_space.hash_flow(start + bytes([family, 0, 0]), 1, is_v6=family == FAMILY_V6)
    for bit in range(32):
        ports = int.from_bytes(start[32:36], "big") ^ 1 << bit
        key = start[:32] + ports.to_bytes(4, "big") + start[36:] + bytes([family, 0, 0])
        changed = user_space.hash_flow(key, 1, is_v6=family == FAMILY_V6) ^ base
        flips.append((changed >> 32).bit_count())
    # Mean of 32 binomials of 32 bits: 16, standard deviation 0.5.
    assert 13 < sum(flips) / len(flips) < 19
