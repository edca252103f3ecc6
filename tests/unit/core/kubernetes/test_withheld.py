# SPDX-License-Identifier: Apache-2.0
"""Which lists aren't believed."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from towpath.core.kubernetes.withheld import find_loss, joined, keep_unread
from towpath.model import Backend, Service


def service(number: int, backends: int = 2) -> Service:
    """One of many."""
    listed = tuple(Backend(IPv4Address(f"10.244.{number}.{n + 1}")) for n in range(backends))
    return Service(f"s{number}", IPv4Address(f"10.96.0.{number}"), 80, backends=listed)


IN_FORCE = {each.name: each for each in (service(number) for number in range(1, 21))}


@pytest.mark.parametrize(("gone", "large"), [(9, False), (10, True), (20, True)])
def test_services_that_go(gone: int, *, large: bool) -> None:
    """A share of them."""
    loss, losers = find_loss(IN_FORCE, (), list(IN_FORCE)[:gone])
    assert (loss.services, loss.backends, len(losers)) == (gone, 2 * gone, gone)
    assert loss.is_large(50) is large
    assert loss.is_large(100) is (gone == 20)


def test_backends_that_go() -> None:
    """The services stay, and have none: an emptied slice tells as little as one that is absent."""
    emptied = [replace(each, backends=()) for each in IN_FORCE.values()]
    loss, losers = find_loss(IN_FORCE, emptied, ())
    assert (loss.services, loss.backends) == (0, 40)
    assert loss.is_large(50)
    assert losers == set(IN_FORCE)
    assert str(loss) == "0 of 20 services and 40 of 40 backends"


def test_what_is_replaced_counts_by_what_is_lost() -> None:
    """More backends, or others in their place, are no loss: pods that were rolled out anew."""
    more = [service(number, 4) for number in range(1, 21)]
    loss, losers = find_loss(IN_FORCE, more, ())
    assert (loss.backends, losers) == (0, set())
    others = [replace(service(1), backends=service(2).backends)]
    loss, losers = find_loss(IN_FORCE, others, ())
    assert (loss.backends, losers) == (0, set())
    fewer = [replace(service(1), backends=service(2).backends[:1])]
    loss, losers = find_loss(IN_FORCE, fewer, ())
    assert (loss.backends, losers) == (1, {"s1"})
    assert not loss.is_large(1), "so few may go at any time"


def test_a_few_may_go_at_any_time() -> None:
    """All of a handful."""
    few = {name: IN_FORCE[name] for name in ("s1", "s2")}
    loss, _ = find_loss(few, (), few)
    assert not loss.is_large(50)


def test_what_was_not_there_is_no_loss() -> None:
    """Nor is a service of nobody."""
    loss, losers = find_loss({}, IN_FORCE.values(), ("unknown",))
    assert not loss.is_large(1)
    assert losers == set()


def test_what_such_a_list_has_is_taken() -> None:
    """With what it lacks, in a table that has room for both."""
    before = replace(service(1, 3), table_size=65521)
    after = replace(service(1), backends=(*service(2, 1).backends, before.backends[2]))
    made = joined(before, after)
    assert made == replace(
        after, backends=(*after.backends, *before.backends[:2]), table_size=65521
    )


def test_what_cannot_be_read_stays_as_it_was() -> None:
    """Of a Service all, of a slice the backends; others go."""
    names = ("ns:web:80:cluster:10.96.0.1", "ns:api:80:cluster:10.96.0.2", "other:web:80:cluster:x")
    in_force = {name: replace(service(n), name=name) for n, name in enumerate(names, start=1)}
    put = {names[1]: replace(in_force[names[1]], backends=())}
    remove = {names[0], names[2]}
    unread = [("Service", "ns", "web"), ("EndpointSlice", "ns", "api-x7f2k")]
    keep_unread(in_force, put, remove, unread)
    assert remove == {names[2]}
    assert put == {names[1]: in_force[names[1]]}
