# SPDX-License-Identifier: Apache-2.0
"""Frames made from others are those that scapy would have made."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.prog.lb.frames import ether, frame, ip, segment

if TYPE_CHECKING:
    from tests.prog.lb.oracle_parse import Address

pytestmark = pytest.mark.host

VIPS: dict[int, st.SearchStrategy[Address]] = {
    4: st.integers(1, 2**32 - 1).map(IPv4Address),
    6: st.integers(1, 2**128 - 1).map(IPv6Address),
}
ports = st.integers(0, 65535)


@given(st.data(), st.sampled_from((4, 6)), st.sampled_from((6, 17)), ports, ports)
def test_a_frame_is_the_one_that_scapy_makes(
    data: st.DataObject, family: int, protocol: int, sport: int, dport: int
) -> None:
    """Checksums too, also where they come out as 0."""
    vip = data.draw(VIPS[family])
    vlan = data.draw(st.none() | st.just(7))
    payload = data.draw(st.binary(max_size=5))
    made = ether(vlan=vlan) / ip(family, vip=vip)
    made /= segment(protocol, sport=sport, dport=dport, payload=payload)
    fast = frame(family, protocol, vip=vip, sport=sport, dport=dport, vlan=vlan, payload=payload)
    assert fast == bytes(made)


def test_a_udp_checksum_is_never_zero() -> None:
    """0 would mean that there is none: of all ports one makes it, and it is sent as 0xffff."""
    sums = {frame(4, 17, sport=port)[40:42] for port in range(65536)}
    assert b"\xff\xff" in sums
    assert b"\0\0" not in sums
