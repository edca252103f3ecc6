# SPDX-License-Identifier: Apache-2.0
"""A service's backends and their handles, beside a dictionary of both."""

from __future__ import annotations

import tracemalloc
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from towpath.datapath.lb import noted as module
from towpath.datapath.lb.noted import Noted
from towpath.model import Backend

if TYPE_CHECKING:
    from towpath.model import Address

numbers = st.integers(1, 9)
changes = st.lists(st.tuples(st.sampled_from(("add", "set", "remove")), st.lists(numbers)))


def address(number: int) -> IPv4Address:
    """Another object at each call, as another text gives."""
    return IPv4Address("192.0.2.0") + number


def compare(noted: Noted, expected: dict[Address, tuple[Backend, int]], done: int) -> None:
    """Compare all that can be asked."""
    assert noted.backends == tuple(backend for backend, _ in expected.values()), done
    assert [*noted.handles] == [handle for _, handle in expected.values()]
    assert list(noted.items()) == [(at, handle) for at, (_, handle) in expected.items()]
    for number in range(1, 10):
        if (at := address(number)) in expected:
            assert (noted.backend(at), noted.handle(at)) == expected[at]
    turned = noted.backends[::-1]
    assert list(noted.handles_of(turned)) == [expected[each.address][1] for each in turned]
    assert list(noted.handles_of(noted.backends)) == list(noted.handles)


@pytest.mark.parametrize("few", [3, 32])
@settings(max_examples=40)
@given(changes)
def test_it_is_a_dictionary(few: int, made: list[tuple[str, list[int]]]) -> None:
    """However many are few, and a copy stays as it is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "FEW", few)
        noted = Noted()
        expected: dict[Address, tuple[Backend, int]] = {}
        for done, (what, those) in enumerate(made):
            copy, before = noted.copy(), expected.copy()
            there = [each for each in dict.fromkeys(those) if address(each) in expected]
            if what == "add":
                come = [each for each in dict.fromkeys(those) if each not in there]
                backends = [Backend(address(each)) for each in come]
                handles = [100 * done + each for each in come]
                noted.add(backends, handles)
                pairs = zip(backends, handles, strict=True)
                expected |= {each.address: (each, handle) for each, handle in pairs}
            for each in there:
                at = address(each)
                if what == "set":
                    noted.set(Backend(at, done), done)
                    expected[at] = Backend(at, done), done
                elif what == "remove":
                    noted.remove(at)
                    del expected[at]
            compare(noted, expected, done)
            compare(copy, before, done)


def test_what_a_new_service_has_is_not_copied() -> None:
    """Its backends are those very objects, in that very tuple; and so after a copy."""
    backends = tuple(Backend(address(each)) for each in (1, 2))
    noted = Noted(backends, (1, 2))
    assert noted.backends is backends
    assert noted.copy().handles is noted.handles


def test_a_backend_takes_few_bytes() -> None:
    """Beside what the service has of it: four of a handle, and its part of what few share."""
    services = [tuple(Backend(address(each)) for each in range(1, 11)) for _ in range(100)]
    tracemalloc.start()
    try:
        kept = [Noted(each, range(1000, 1010)) for each in services]
        found, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found / sum(len(each.backends) for each in kept) < 30
