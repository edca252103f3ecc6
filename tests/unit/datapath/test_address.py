# SPDX-License-Identifier: Apache-2.0
"""Addresses and keys come back from the kernel's records as they went in."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.datapath.harness_program import BTF

from towpath.datapath.address import family, pack, unpack
from towpath.datapath.lb.lookup import pack_key
from towpath.model import Protocol, ServiceKey

addresses = st.ip_addresses()


@given(addresses)
def test_an_address_comes_back(address: IPv4Address | IPv6Address) -> None:
    """With its family beside it, also an IPv6 address that could be IPv4 by its bytes."""
    assert unpack(pack(address), family(address)) == address


def test_one_address_in_two_families_is_two_keys() -> None:
    """::c000:201 has the bytes of 192.0.2.1."""
    twins = [ip_address("192.0.2.1"), ip_address("::c000:201")]
    assert pack(twins[0]) == pack(twins[1])
    assert len({pack_key(ServiceKey(each, 80, Protocol.TCP)) for each in twins}) == 2


def test_a_key_is_the_record_of_the_program() -> None:
    """Field by field, by the types of the compiled object."""
    key = ServiceKey(ip_address("2001:db8::10"), 443, Protocol.UDP)
    record = np.frombuffer(pack_key(key), BTF.dtype("vip_key"))[0]
    assert [f"{word:08x}" for word in record["addr"]["word"]] == [
        "20010db8",
        "00000000",
        "00000000",
        "00000010",
    ]
    assert (record["port"], record["protocol"]) == (443, 17)
    assert record["family"] == BTF.enum("family")["FAMILY_V6"]
