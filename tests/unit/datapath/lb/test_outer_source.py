# SPDX-License-Identifier: Apache-2.0
"""Outer source addresses as the program reads them."""

from __future__ import annotations

from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_interface,
    ip_network,
)
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.datapath.harness_program import BTF

from towpath.datapath.address import unpack
from towpath.datapath.lb import outer_source
from towpath.datapath.lb.outer_source import (
    Vips,
    alike,
    choose,
    fill_settings,
    node_address,
    vary_mask,
)
from towpath.kernel.net.devices import Owned
from towpath.model import Source

TEMPORARY, DADFAILED, DEPRECATED, TENTATIVE = 0x01, 0x08, 0x20, 0x40  # <linux/if_addr.h>

DEVICE = (
    "169.254.1.1/16",
    "192.0.2.1/24",
    "198.51.100.1/24",
    "fe80::1/64",
    "2001:db8::1/64",
)


def owned(*addresses: str | tuple[str, int]) -> list[Owned]:
    """Addresses of a device, some of them with flags."""
    pairs = (each if isinstance(each, tuple) else (each, 0) for each in addresses)
    return [Owned(7, ip_interface(text), flags) for text, flags in pairs]


def settings(source: Source, addresses: tuple[str, ...] = DEVICE) -> Any:
    """The record that the program reads, where no route leads to any backend."""
    record = np.zeros((), BTF.dtype("settings"))
    record["cookie"] = 7
    fill_settings(record, source, (), Vips(), owned(*addresses))
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
    record = settings(Source(), ("fe80::1/64",))
    assert address(record, 4) == "0.0.0.0"
    assert address(record, 6) == "::"
    assert node_address([], 4) is None


@pytest.mark.parametrize(
    ("addresses", "best"),
    [
        (["2001:db8::1/64", "2001:db8::2/64"], "2001:db8::1"),
        (["fe80::1/64", "2001:db8::2/64"], "2001:db8::2"),
        ([("2001:db8::1/64", DEPRECATED), "2001:db8::2/64"], "2001:db8::2"),
        ([("2001:db8::1/64", TEMPORARY), "2001:db8::2/64"], "2001:db8::2"),
        (
            [("2001:db8::1/64", DEPRECATED), ("2001:db8::2/64", TEMPORARY)],
            "2001:db8::2",
        ),
        ([("2001:db8::1/64", DEPRECATED)], "2001:db8::1"),
        ([("2001:db8::1/64", TENTATIVE), "2001:db8::2/64"], "2001:db8::2"),
        ([("2001:db8::1/64", DADFAILED | TENTATIVE)], None),
        (["2001:db8:4::10/128", "2001:db8::2/64"], "2001:db8::2"),
        (["2001:db8:4::10/128"], None),
        (["2001:db8:99::5/128", "2001:db8::2/64"], "2001:db8::2"),
        (["2001:db8:4::10/128", ("2001:db8::2/64", DEPRECATED)], "2001:db8::2"),
    ],
)
def test_the_address_that_others_can_best_answer_to(
    addresses: list[str | tuple[str, int]], best: str | None
) -> None:
    """Never a VIP, whatever else there is; a deprecated one rather than none."""
    vips = Vips([ip_address("2001:db8:4::10"), ip_network("2001:db8:99::/64")])
    found = node_address(owned(*addresses), 6, vips)
    assert found == (best and ip_address(best))


@pytest.mark.parametrize(
    ("vips", "expected"),
    [
        (["203.0.113.0/24"], (True, "192.0.2.1")),
        (["192.0.2.0/24"], (False, "198.51.100.1")),
        (["192.0.2.0/24", "198.51.100.0/24"], (True, "192.0.2.1")),
        (["192.0.2.1", "198.51.100.0/24"], (False, "198.51.100.1")),
        (["192.0.2.1", "198.51.100.1"], (False, None)),
    ],
)
def test_an_address_within_a_services_prefix_is_the_last_choice(
    monkeypatch: pytest.MonkeyPatch, vips: list[str], expected: tuple[bool, str | None]
) -> None:
    """Rather than none; one that is a VIP itself is never taken. Routes prefer 192.0.2.1."""
    backend = ip_address("192.0.2.77")
    monkeypatch.setattr(outer_source, "preferred_source", {backend: ip_address("192.0.2.1")}.get)
    found = [ip_network(each) if "/" in each else ip_address(each) for each in vips]
    routed, source = choose(4, [backend], Vips(found), owned("192.0.2.1/24", "198.51.100.1/24"))
    assert (routed, source and str(source)) == expected


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


def test_backends_behind_one_route_are_asked_for_once() -> None:
    """And no more than a few dozen of many, whatever their number."""
    near = [IPv4Address("192.0.2.0") + n for n in range(256)]
    six = [IPv6Address("2001:db8::") + n for n in range(300)]
    assert alike([*near, *six]) == [near[0], six[0]]
    far = [IPv4Address("10.0.0.0") + 256 * n for n in range(10_000)]
    assert len(alike(far)) == 32
    assert alike([]) == []


def test_vips_may_be_prefixes() -> None:
    """And more can be added."""
    vips = Vips([ip_address("203.0.113.10"), ip_network("198.51.100.0/24")])
    for inside in ("203.0.113.10", "198.51.100.77"):
        assert ip_address(inside) in vips
    more = vips.with_more([ip_address("203.0.113.11")])
    assert ip_address("203.0.113.11") in more
    assert ip_address("198.51.100.77") in more
    assert ip_address("203.0.113.11") not in vips
