# SPDX-License-Identifier: Apache-2.0
"""Addresses that sockets may be connected to, one after another in one string."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from towpath.datapath.socket.stale import Addresses

packed = st.lists(st.sampled_from((0, 1, 2)), min_size=16, max_size=16).map(bytes)


@given(st.lists(packed, max_size=5), packed)
def test_an_address_is_found_where_one_begins(those: list[bytes], one: bytes) -> None:
    """Not where the end of one and the beginning of the next look like it."""
    found = Addresses(b"".join(those))
    assert (one in found) == (one in those)
    for each in those:
        assert each in found
    for at in range(len(found.packed) - 15):
        piece = found.packed[at : at + 16]
        assert (piece in found) == (piece in those)
