# SPDX-License-Identifier: Apache-2.0
"""Many services, too many of them, and changes that are cut short."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.lab.harness_balancer import DEVICE, SMALL, VIP, device, unchanged

from towpath import LoadBalancer
from towpath.datapath.errors import CapacityError
from towpath.datapath.lb import contents
from towpath.datapath.lb.execute import execute as carry_out
from towpath.documents import ServiceName
from towpath.model import Backend, FlowTuple, Service

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from towpath.core.lb.steps import Step
    from towpath.datapath.lb.tables import Tables


@pytest.fixture(autouse=True)
def _device() -> Iterator[None]:
    with device():
        yield


def services(number: int, backends: int, table_size: int = 251) -> list[Service]:
    """Services with VIPs and backends that count up."""
    first = IPv4Address("10.0.0.0")
    return [
        Service(
            f"s{i}",
            VIP + i,
            80,
            backends=tuple(Backend(first + i * 16 + j) for j in range(1, backends + 1)),
            table_size=table_size,
        )
        for i in range(number)
    ]


@pytest.mark.parametrize(
    ("limits", "many", "message"),
    [
        ({"services": 3}, services(4, 1), r"services: 4 needed, 3 at most; raise limits\.services"),
        ({"backends": 5}, services(3, 2), r"backends: 6 needed, 5 at most; raise limits\.backends"),
        (
            {"table_slots": 800},
            services(3, 1, 397),
            r"Maglev slots in one piece: 397 needed, 6 at most; raise limits\.table_slots",
        ),
    ],
)
def test_what_there_is_no_room_for_is_refused(
    limits: dict[str, int], many: list[Service], message: str
) -> None:
    """One fewer fits, and is untouched by the refusal."""
    with LoadBalancer(DEVICE, limits=replace(SMALL, **limits)) as balancer:
        balancer.apply(many[:-1], prune=True)
        for _ in range(2):
            with unchanged(balancer), pytest.raises(CapacityError, match=message):
                balancer.apply(many)
            with unchanged(balancer), pytest.raises(CapacityError, match=message):
                balancer.put_service(many[-1])
        balancer.apply(many[1:], prune=True)
        assert set(balancer.services()) == set(many[1:])


# ---- Changes that are cut short --------------------------------------------------------------


@pytest.fixture
def balancer() -> Iterator[LoadBalancer]:
    """An empty one."""
    with LoadBalancer(DEVICE, limits=SMALL) as balancer:
        yield balancer


def test_a_change_that_is_interrupted_can_be_made_again(
    balancer: LoadBalancer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After any of its steps, what is said to be in the kernel is what packets find."""
    before = (*services(2, 3), replace(services(3, 2)[2], name="gone"))
    new = replace(services(4, 2)[3], name="new")
    after = (replace(before[0], backends=before[0].backends[1:], table_size=397), before[1], new)
    for last in count():
        balancer.apply(before, prune=True)
        with monkeypatch.context() as patch:
            patch.setattr(contents, "execute", _interrupted_after(last))
            try:
                balancer.apply(after, prune=True)
            except KeyboardInterrupt:
                pass
            else:
                break
        found = balancer.services()
        assert {service.name for service in found} <= {"s0", "s1", "gone", "new"}
        for service in found:
            assert _reached(balancer, service) <= {each.address for each in service.backends}
        balancer.apply(after, prune=True)
        assert {each.name: each for each in balancer.services()} == {e.name: e for e in after}
    assert last > 10


def _interrupted_after(last: int) -> Callable[[Step, Tables], None]:
    """What carries out so many steps and is then interrupted."""
    steps = iter(range(last))

    def execute(step: Step, tables: Tables) -> None:
        if next(steps, None) is None:
            raise KeyboardInterrupt
        carry_out(step, tables)

    return execute


def _reached(balancer: LoadBalancer, service: Service) -> set[object]:
    """The backends that some flows of a service get to."""
    traces = [
        balancer.trace(FlowTuple.parse(f"198.51.100.7:{port} -> {service.vip}:{service.port} tcp"))
        for port in range(40000, 40020)
    ]
    assert all(trace.service == ServiceName.of(service) for trace in traces)
    return {trace.backend for trace in traces}


# ---- One change among many -----------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 1000])
def test_a_change_takes_as_many_steps_whatever_else_there_is(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And stores as often: nothing of the other services is written again."""
    with LoadBalancer(DEVICE) as balancer:
        balancer.apply(services(count, 10, 16381))
        changed = balancer.services()[count // 2]
        steps: list[Step] = []

        def execute(step: Step, tables: Tables) -> None:
            steps.append(step)
            carry_out(step, tables)

        monkeypatch.setattr(contents, "execute", execute)
        before = words(balancer)
        balancer.set_backend(changed.name, changed.backends[3].address, 2)
        assert sorted(type(step).__name__ for step in steps) == ["SetBackend", "SetTable"]
        # Where a service's table is and how large is one word, and one word has changed.
        assert np.count_nonzero(words(balancer) != before) == 1
        assert _reached(balancer, balancer.services()[-1])


def words(balancer: LoadBalancer) -> Any:
    """What the kernel has of all services but their backends."""
    return balancer._balancer._program.rows("services").view(np.uint64).copy()
