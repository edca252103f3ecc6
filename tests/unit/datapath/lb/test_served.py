# SPDX-License-Identifier: Apache-2.0
"""What is kept in step with changes is what would be counted anew."""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st
from tests.unit.datapath.harness_services import ADDRESSES, states

from towpath.datapath.lb.outer_source import route_of
from towpath.datapath.lb.served import Served
from towpath.model import Backend, Protocol, Service, ServiceKey

if TYPE_CHECKING:
    from collections.abc import Sequence

VIPS = [ip_address("203.0.113.10"), ip_address("203.0.113.11"), ip_address("2001:db8::10")]


@given(st.lists(states, max_size=6))
def test_as_counted_anew(ways: Sequence[tuple[Service, ...]]) -> None:
    """Whatever comes, changes and goes."""
    served, before = Served(), dict[ServiceKey, Service]()
    for services in ways:
        after = {each.key: each for each in services}
        for key in before.keys() | after.keys():
            served.change(before.get(key), after.get(key))
        before = after
        addresses = [each.address for one in services for each in one.backends]
        assert served.versions == {each.version for each in addresses}
        vips = {one.vip for one in services}
        assert {each for each in VIPS if each in served.vips} == vips
        routes = list(map(route_of, served.towards()))
        assert sorted(routes) == sorted(set(map(route_of, addresses)))


def test_a_backend_may_be_asked_for_that_has_gone() -> None:
    """As long as another one is behind the same route."""
    both = tuple(map(Backend, ADDRESSES[:2]))
    one = Service("any", VIPS[0], 80, Protocol.TCP, both)
    other = Service("any", VIPS[0], 80, Protocol.TCP, both[1:])
    served = Served.of([one])
    served.change(one, other)
    assert served.towards() == [ADDRESSES[0]]
    served.change(other, None)
    assert served.towards() == []
