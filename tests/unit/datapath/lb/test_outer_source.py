# SPDX-License-Identifier: Apache-2.0
"""Outer source addresses as the program reads them."""

from __future__ import annotations

from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_interface,
)
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.datapath.harness_program import BTF

from towpath.datapath.address import unpack
from towpath.datapath.lb.outer_source import fill_settings, node_address, vary_mask
from towpath.model import Source

DEVICE = [
    ip_interface(text)
    for text in (
        "169.254.1.1/16",
        "192.0.2.1/24",
        "198.51.100.1/24",
        "fe80::1/64",
        "2001:db8::1/64",
    )
]


def settings(source: Source, interfaces: list[Any] = DEVICE) -> Any:
    """The record that the program reads."""
    record = np.zeros((), BTF.dtype("settings"))
    record["cookie"] = 7
    fill_settings(record, source, interfaces)
    assert record["cookie"] == 7
    return record


def address(record: Any, version: int) -> str:
    """The source in the record, as text."""
    return str(unpack(record[f"source{version}"].tobytes(), {4: 2, 6: 10}[version]))


def test_node_leaves_it_to_the_route() -> None:
    """The device's own address is beside it, for kernels whose look-up tells none."""
    record = settings(Source())
    assert (record["fib_source4"], record["fib_source6"]) == (1, 1)
    assert (record["vary4"], record["vary6"]) == (0, 0)
    assert address(record, 4) == "192.0.2.1"
    assert address(record, 6) == "2001:db8::1"


def test_node_without_an_address_is_zero() -> None:
    """A device may have none of a family, or only a link-local one."""
    record = settings(Source(), [ip_interface("fe80::1/64")])
    assert address(record, 4) == "0.0.0.0"
    assert address(record, 6) == "::"
    assert node_address([], 4) is None


def test_an_address_is_taken_as_it_is() -> None:
    """Whatever the route would prefer."""
    record = settings(Source(IPv4Address("203.0.113.1"), IPv6Address("2001:db8:5::1")))
    assert (record["fib_source4"], record["fib_source6"]) == (0, 0)
    assert (record["vary4"], record["vary6"]) == (0, 0)
    assert address(record, 4) == "203.0.113.1"
    assert address(record, 6) == "2001:db8:5::1"


def test_a_prefix_varies_in_its_host_bits() -> None:
    """The mask is in network order, as the address's last word is."""
    record = settings(Source(IPv4Network("10.8.0.0/16"), IPv6Network("2001:db8:5::/96")))
    assert (record["fib_source4"], record["fib_source6"]) == (0, 0)
    assert record["vary4"].tobytes() == b"\0\0\xff\xff"
    assert record["vary6"].tobytes() == b"\xff\xff\xff\xff"
    assert address(record, 4) == "10.8.0.0"
    assert address(record, 6) == "2001:db8:5::"


def test_families_are_apart() -> None:
    """One may be given and the other left to the node."""
    record = settings(Source(ipv6=IPv6Network("2001:db8:5::/120")))
    assert (record["fib_source4"], record["fib_source6"]) == (1, 0)
    assert (record["vary4"], record["vary6"]) == (0, 255)


@given(st.integers(8, 32))
def test_every_ipv4_source_is_within_its_prefix(length: int) -> None:
    """Whatever bits the hash fills in."""
    network = IPv4Network((0x0A000000, length))
    assert network.network_address + vary_mask(network) == network.broadcast_address


@pytest.mark.parametrize(("length", "mask"), [(128, 0), (120, 0xFF), (96, 0xFFFFFFFF)])
def test_an_ipv6_prefix_varies_in_its_last_word(length: int, mask: int) -> None:
    """The hash has 32 bits."""
    assert vary_mask(IPv6Network(("2001:db8::", length))) == mask
