# SPDX-License-Identifier: Apache-2.0
"""What type checkers say of the public names, and that those are all there.

mypy reads this file as part of lint: an ``assert_type`` that is no longer true, or an ignored
error that no longer is one, fails there. The functions that need a load balancer aren't run.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any, assert_type

import pytest

import towpath
from towpath import documents, errors


@pytest.mark.parametrize("name", towpath.__all__)
def test_every_public_name_is_there(name: str) -> None:
    """Wherever it is made."""
    assert name in dir(towpath)
    assert getattr(towpath, name) is not None


@pytest.mark.parametrize("name", errors.__all__)
def test_every_error_is_there(name: str) -> None:
    """Below the one root."""
    assert issubclass(getattr(errors, name), towpath.Error)


def both_are_balancing(
    script: towpath.LoadBalancer, agent: towpath.Client
) -> tuple[towpath.Balancing, towpath.Balancing]:
    """A function for either takes the other one, too."""
    return script, agent


def changes(balancer: towpath.Balancing, service: towpath.Service) -> None:
    """What changes something tells what."""
    assert_type(balancer.services(), tuple[towpath.Service, ...])
    assert_type(balancer.service("web"), towpath.Service)
    assert_type(balancer.apply([service], prune=True), documents.Plan)
    assert_type(balancer.plan([service]), documents.Plan)
    assert_type(balancer.put_service(service, force=True), documents.Plan)
    assert_type(balancer.remove_service("web"), documents.Plan)
    assert_type(balancer.backends("web"), tuple[towpath.Backend, ...])
    assert_type(balancer.set_backend("web", "192.0.2.11", state="down"), documents.Plan)
    assert_type(balancer.remove_backend("web", "192.0.2.11", force=True), documents.Plan)
    assert_type(balancer.backend_status("web"), tuple[documents.BackendStatus, ...])
    with balancer.drained("web", "192.0.2.11") as plan:
        assert_type(plan.changes[0].service, documents.ServiceName)
    with balancer.temporary(service) as plan:
        assert_type(plan, documents.Plan)


def fields_are_checked(balancer: towpath.Balancing) -> None:
    """Their names, their types, and that those are given which have to be."""
    made = balancer.add_service(
        "web",
        vip="203.0.113.10",
        port="80,8000-8099",
        protocol=towpath.Protocol.UDP,
        backends=["192.0.2.11", {"address": "192.0.2.12", "weight": 2}],
        forwarding="l2",
        affinity="3h",
        health=towpath.Health(towpath.model.CheckType.TCP),
    )
    assert_type(made, towpath.Service)
    balancer.add_service("web", port=80)  # type: ignore[call-arg]
    balancer.add_service("web", vip="203.0.113.10", port=80, colour="red")  # type: ignore[call-arg]
    balancer.add_service("web", vip=1, port=80)  # type: ignore[arg-type]
    balancer.add_service("web", vip="203.0.113.10", port=80, forwarding="nat")  # type: ignore[arg-type]
    balancer.count_flows(client=7)  # type: ignore[arg-type]
    balancer.flows(start=7)  # type: ignore[call-arg]


def readings(balancer: towpath.Balancing) -> None:
    """What is read is of one type each."""
    assert_type(balancer.counters(per_cpu=True), documents.Counters)
    assert_type(balancer.counters().service("web"), documents.ServiceCounters)
    assert_type(balancer.service_counters("web").backend("192.0.2.11"), documents.BackendCounters)
    assert_type(balancer.flows(service="web", limit=7), Iterator[documents.Flow])
    assert_type(balancer.count_flows(client="198.51.100.0/24"), documents.FlowCounts)
    assert_type(balancer.trace("198.51.100.7:1 -> 203.0.113.10:80"), documents.Trace)
    with balancer.record(towpath.Capture(packets=1)) as capture:
        assert_type(list(capture), list[bytes])
        assert_type(capture.save("capture.pcapng"), int)


async def asynchronously(agent: towpath.AsyncClient, service: towpath.Service) -> None:
    """The same, to be awaited."""
    assert_type(await agent.services(), tuple[towpath.Service, ...])
    assert_type(await agent.apply([service]), documents.Plan)
    assert_type(agent.flows(service="web"), AsyncIterator[documents.Flow])
    async with agent.drained("web", "192.0.2.11") as plan:
        assert_type(plan, documents.Plan)
    async with await agent.record({"packets": 1}) as capture:
        assert_type([piece async for piece in capture], list[bytes])
    await agent.add_service("web", port=80)  # type: ignore[call-arg]


def mapping(table: towpath.WildcardTable) -> Mapping[int, towpath.Rule]:
    """A wildcard table is a mapping of rules."""
    for number, rule in table.items():
        assert_type(number, int)
        assert_type(rule, towpath.Rule)
    return table


def caught(error: towpath.Error) -> Any:
    """What the errors have to say."""
    if isinstance(error, errors.ApiError):
        return error.status, error.problems
    if isinstance(error, errors.CapacityError):
        return error.limit
    return str(error)
