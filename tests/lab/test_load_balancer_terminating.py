# SPDX-License-Identifier: Apache-2.0
"""Backends that a script has removed and that still have flows: who sees to it that they go."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from contextlib import contextmanager
from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest
from tests.lab.harness_balancer import DEVICE, PINS, SMALL, WEB, device
from tests.lab.test_balancing import flow, frame, send

from towpath import BackendState, ConfigError, Drain, LoadBalancer
from towpath.lab.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

GONE, OTHER = map(ip_address, WEB["backends"])
FLOWS = range(20000, 20032)


@pytest.fixture(autouse=True)
def _device() -> Iterator[None]:
    with device():
        yield


@contextmanager
def terminating(drain: Drain, pins: Path | None = None) -> Iterator[LoadBalancer]:
    """A load balancer that a backend with flows has just been removed from."""
    with LoadBalancer(DEVICE, limits=SMALL, drain=drain, pins=pins) as balancer:
        balancer.add_service("web", **WEB)
        send(*(frame(flow(number)) for number in FLOWS))
        wait_until(
            lambda: balancer.count_flows(service="web").total == len(FLOWS),
            seconds=10,
            what="the flows",
        )
        balancer.remove_backend("web", GONE)
        yield balancer


def in_kernel(balancer: LoadBalancer) -> list[object]:
    """The backends that the kernel has of the service."""
    return [each.address for service in balancer._balancer.observed() for each in service.backends]


def test_it_goes_when_its_time_is_over() -> None:
    """Whatever flows it has; until then it stays, however often one looks."""
    with terminating(Drain(timeout=2)) as balancer:
        assert balancer.reap()
        assert GONE in in_kernel(balancer)
        (entry,) = (each for each in balancer.backend_status("web") if each.leaving)
        assert (entry.address, entry.state) == (GONE, BackendState.DRAINING)
        assert entry.flows > 0
        wait_until(lambda: not balancer.reap(), seconds=5, what="it to go")
        assert in_kernel(balancer) == [OTHER]
        assert {balancer.trace(flow(number)).backend for number in FLOWS} == {OTHER}


def test_it_goes_when_its_flows_have_ended() -> None:
    """Those that nothing came of for long enough."""
    with terminating(Drain(idle=1)) as balancer:
        wait_until(lambda: not balancer.reap(), seconds=10, what="it to go")
        assert in_kernel(balancer) == [OTHER]


def test_run_sees_to_it() -> None:
    """While it waits for the signal."""
    with terminating(Drain(timeout=1)) as balancer:
        seen: list[bool] = []

        def watch() -> None:
            wait_until(lambda: GONE not in in_kernel(balancer), seconds=10, what="it to go")
            seen.append(True)

        def watch_and_end() -> None:
            try:
                watch()
            finally:
                os.kill(os.getpid(), signal.SIGTERM)

        watching = threading.Thread(target=watch_and_end)
        watching.start()
        balancer.run()
        watching.join()
        assert seen


def test_the_next_change_sees_to_it() -> None:
    """Of any service."""
    with terminating(Drain(timeout=1)) as balancer:
        over = threading.Event()
        over.wait(1.1)
        balancer.add_service("dns", vip="203.0.113.11", port=53, table_size=251)
        assert GONE not in in_kernel(balancer)


def test_without_a_time_it_goes_at_once() -> None:
    """As by force."""
    with terminating(Drain(timeout=0)) as balancer:
        assert in_kernel(balancer) == [OTHER]


def test_who_takes_over_finds_it_draining() -> None:
    """With weight 0: that somebody wanted it gone the kernel doesn't know."""
    try:
        with terminating(Drain(), PINS):
            pass
        with LoadBalancer(DEVICE, limits=SMALL, pins=PINS) as heir:
            (service,) = heir.services()
            found = service.backend(GONE)
            assert (found.weight, found.state) == (0, BackendState.DRAINING)
            heir.detach()
    finally:
        shutil.rmtree(PINS, ignore_errors=True)


def test_a_time_that_is_not_allowed_is_refused() -> None:
    """As in the agent's configuration."""
    with pytest.raises(ConfigError, match=r"drain\.idle"):
        LoadBalancer(DEVICE, limits=SMALL, drain=Drain(idle=0))
