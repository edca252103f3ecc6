# SPDX-License-Identifier: Apache-2.0
"""A service that is taken for right by what one like it was is right field by field."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from towpath.model import (
    Affinity,
    Backend,
    BackendState,
    CheckType,
    Health,
    Protocol,
    Quic,
    Service,
)
from towpath.model.kinds import ANY_PORT, FieldError, UnicastAddress, address_of
from towpath.model.parse import _read_problems
from towpath.model.sound import Sound

BACKENDS = tuple(Backend(ip_address(f"192.0.2.{each}"), port=8080) for each in range(1, 11))
WEB = Service(
    "default:web:http:cluster:10.96.0.10",
    ip_address("10.96.0.10"),
    80,
    backends=BACKENDS,
    forwarding="snat",
    table_size=1021,
    scope="node",
)
ADDRESSES = ["192.0.2.1", "192.0.2.2", "203.0.113.1", "127.0.0.1", "255.255.255.255", "0.1.2.3"]
ADDRESSES6 = ["2001:db8::1", "fd00::1", "fe80::1", "::1", "::ffff:192.0.2.1", "ff02::1"]
addresses = st.sampled_from([*map(ip_address, ADDRESSES + ADDRESSES6)])
backends = st.builds(
    Backend,
    addresses,
    st.sampled_from([0, 1, 65535, 65536, -1, True, 1.0, "1"]),
    st.sampled_from([*BackendState, "active", "odd", None]),
    st.sampled_from([None, 1, 65535, 65536, 0, True, "80"]),
    st.sampled_from([False, True, 0, 1, "no"]),
    st.sampled_from([None, None, None, 5]),
)
services: st.SearchStrategy[Service] = st.builds(
    Service,
    name=st.sampled_from(["web", "a:b", "", "-", "x" * 254, 5]),
    vip=addresses | st.just(ip_network("203.0.113.0/24")),
    port=st.sampled_from([80, 1, 0, 65536, True, "80", ANY_PORT]),
    protocol=st.sampled_from([Protocol.TCP, Protocol.UDP, "tcp", "sctp"]),
    backends=st.lists(backends, max_size=3).map(tuple),
    forwarding=st.sampled_from(["dsr", "l2", "snat", "odd"]),
    table_size=st.sampled_from([251, 1021, 1000, 251.0, 2]),
    flow_table=st.sampled_from([True, False, 1]),
    flow_timeout=st.sampled_from([None, 60, 10**6]),
    affinity=st.sampled_from([None, Affinity(60), Affinity(timeout=True), Affinity(0)]),
    allow_from=st.sampled_from([None, (), (ip_network("10.0.0.0/8"),), [1]]),
    health=st.sampled_from([None, Health(CheckType.TCP)]),
    scope=st.sampled_from(["all", "node", "odd"]),
    hash_by=st.sampled_from(["flow", "client", "port"]),
    encap=st.sampled_from(["ipip", "gue"]),
    encap_port=st.sampled_from([None, 6080]),
    quic=st.sampled_from([None, Quic(length=1), Quic()]),
)


def asked(sound: list[Service]) -> Sound:
    """One that notes what it has to have read field by field."""

    def is_right(service: Service) -> bool:
        sound.append(service)
        return not _read_problems(service)

    return Sound(is_right)


@given(st.lists(services, min_size=1, max_size=4))
def test_nothing_that_is_wrong_is_taken_for_right(found: list[Service]) -> None:
    """Whatever was asked for before."""
    read: list[Service] = []
    sound = asked(read)
    for each in found:
        if sound.has(each):
            assert _read_problems(each) == ()


def test_thousands_that_are_alike_are_read_once() -> None:
    """Names, addresses and ports are their own."""
    read: list[Service] = []
    sound = asked(read)
    for number in range(1, 200):
        vip = ip_address(f"10.96.1.{number}")
        own = tuple(replace(each, address=each.address + 10 * number) for each in BACKENDS)
        assert sound.has(replace(WEB, name=f"s{number}", vip=vip, port=number, backends=own))
    (only,) = read
    assert len(only.backends) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"name": "no name"},
        {"port": 0},
        {"vip": BACKENDS[3].address},
        {"vip": ip_address("224.0.0.1")},
        {"vip": ip_address("2001:db8::1")},
        {"backends": (*BACKENDS, BACKENDS[0])},
        {"backends": (*BACKENDS, Backend(ip_address("127.0.0.1")))},
        {"backends": (*BACKENDS, Backend(ip_address("192.0.2.99"), 70000))},
        {"backends": (*BACKENDS, Backend(ip_address("192.0.2.99"), weight=True))},
        {"backends": (*BACKENDS, Backend(ip_address("2001:db8::1")))},
        {"table_size": 1020},
        {"flow_table": 1},
        {"affinity": Affinity(timeout=True)},
    ],
)
def test_one_that_is_wrong_beside_many_that_are_right(change: dict[str, Any]) -> None:
    """One thing that is wrong is enough."""
    sound = asked([])
    assert sound.has(WEB)
    assert not sound.has(replace(WEB, **change))


def test_what_is_remembered_is_bounded() -> None:
    """However many kinds there are."""
    sound = asked([])
    for weight in range(1, 3000):
        assert sound.has(replace(WEB, backends=(replace(BACKENDS[0], weight=weight),)))
    assert len(sound._known) <= 1024


@given(
    st.one_of(
        st.from_regex(r"[0-9a-f.:% \0x]{0,40}", fullmatch=True),
        st.from_regex(r"([0-9]{1,4}\.){3}[0-9]{1,4}", fullmatch=True),
        st.ip_addresses().map(str),
    )
)
def test_an_address_is_read_as_the_library_does(text: str) -> None:
    """Leading zeros, zones and all."""
    try:
        wanted: object = ip_address(text)
    except ValueError:
        with pytest.raises(ValueError, match="address"):
            address_of(text)
    else:
        assert address_of(text) == wanted


@given(st.ip_addresses())
def test_most_addresses_are_known_to_be_unicast_at_a_glance(address: Any) -> None:
    """What is refused is what one of the properties says."""
    odd = (
        address.is_multicast
        or address.is_loopback
        or address.is_unspecified
        or (address.version == 4 and (int(address) >> 24 == 0 or int(address) == 2**32 - 1))
        or (address.version == 6 and (address.is_link_local or address.ipv4_mapped is not None))
    )
    try:
        UnicastAddress().parse(address)
    except FieldError:
        assert odd
    else:
        assert not odd
