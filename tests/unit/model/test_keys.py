# SPDX-License-Identifier: Apache-2.0
"""Which services are for the same packets, and that finding out takes no time."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Any

from hypothesis import given
from hypothesis import strategies as st

from towpath.model import Protocol, ServiceKey
from towpath.model.keys import KeyIndex
from towpath.model.kinds import PortRange, Ports
from towpath.model.parse import make_config

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest

VIPS = [ip_address("203.0.113.1"), ip_address("2001:db8::1"), ip_network("203.0.113.0/30")]
PORTS = st.lists(
    st.tuples(st.integers(1, 40), st.integers(0, 5)).map(lambda p: (p[0], p[0] + p[1])),
    min_size=1,
    max_size=4,
).map(Ports.of)
KEYS = st.builds(
    ServiceKey,
    st.sampled_from(VIPS),
    PORTS.map(lambda ports: ports.plain),
    st.sampled_from(Protocol),
)


def ports_of(key: ServiceKey) -> set[int]:
    """One by one."""
    return set(key.ports)


def taken(key: ServiceKey, there: list[ServiceKey]) -> list[ServiceKey]:
    """Those that are for a packet that this is for, found by looking at each."""
    return [
        each
        for each in there
        if (each.vip, each.protocol, each.scope) == (key.vip, key.protocol, key.scope)
        and each.exact is key.exact
        and ports_of(each) & ports_of(key)
    ]


@given(st.lists(st.tuples(KEYS, st.booleans()), max_size=30))
def test_a_clash_is_found_if_there_is_one(steps: list[tuple[ServiceKey, bool]]) -> None:
    """Whatever was added and removed before, in the index and in copies of it."""
    index, there = KeyIndex[str](), list[ServiceKey]()
    for key, goes in steps:
        found, expected = index.clash(key), taken(key, there)
        assert bool(found) is bool(expected)
        if found:
            (other,) = [each for each in expected if str(each) == found.owner]
            assert ports_of(found.key) == ports_of(key) & ports_of(other)
        before, index = index, index.copy()
        if goes:
            index.remove(key)
            there = [each for each in there if each != key]
        elif not expected:
            index.add(key, str(key))
            there.append(key)
        assert before.clash(key) == found


@given(PORTS, PORTS)
def test_overlap_is_what_both_have(one: Ports, other: Ports) -> None:
    """As sets have it."""
    both = set(one) & set(other)
    found = one.overlap(other)
    assert (set(found) if found else set()) == both
    assert found is None or found == Ports.of((port, port) for port in both)


class Counted(tuple[PortRange, ...]):
    """Ranges, and how often they have been gone through."""

    __slots__ = ()
    times = 0

    def __iter__(self) -> Iterator[PortRange]:
        Counted.times += 1
        return super().__iter__()


def test_overlap_goes_through_each_once() -> None:
    """Sets of thousands of ports are compared in as many steps, not in millions."""
    even, odd = (Ports(Counted(PortRange(n, n) for n in range(k, 2000, 2))) for k in (1, 2))
    assert even.overlap(odd) is None
    assert Counted.times == 2


def test_services_are_not_compared_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of thousands with one VIP, only those are that do clash."""
    compared = []
    shared = ServiceKey.shared

    def counted(self: ServiceKey, other: ServiceKey) -> ServiceKey | None:
        compared.append(other)
        return shared(self, other)

    monkeypatch.setattr(ServiceKey, "shared", counted)
    services: list[dict[str, Any]] = [
        {"name": f"s{n}", "vip": "203.0.113.1", "port": f"{20 * n + 1}-{20 * n + 20}"}
        for n in range(3000)
    ]
    assert len(make_config({"devices": ["eth0"], "services": services}).services) == 3000
    assert compared == []
