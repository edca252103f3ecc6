# SPDX-License-Identifier: Apache-2.0
"""Backends that are removed leave: until their flows have ended, whatever happens meanwhile."""

from __future__ import annotations

import time
from dataclasses import replace
from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest
from tests.unit.agent.samples import MemoryDatapath, service

from towpath.agent.errors import ConflictError, NotFoundError
from towpath.agent.lb.controller import Controller
from towpath.agent.lb.store import Store
from towpath.core.lb.states import BackendKey
from towpath.model import Backend, BackendState, CheckType, Config, Device, Drain, Health, Service

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from towpath.model import Address

FILE = service("file", "203.0.113.9", "192.0.2.1", "192.0.2.2")
WEB = service("web", "203.0.113.10", "192.0.2.1", "192.0.2.2", "192.0.2.3")
A, B, C = (ip_address(f"192.0.2.{host}") for host in (1, 2, 3))
CONFIG = Config(devices=(Device("eth0"),), services=(FILE,), drain=Drain(timeout=60))
GONE = Backend(B, 0, BackendState.DRAINING)
KEY = BackendKey(WEB.key, B)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A real database."""
    with Store(tmp_path / "db") as opened:
        yield opened


@pytest.fixture
def datapath() -> MemoryDatapath:
    """Room for a hundred services."""
    return MemoryDatapath()


@pytest.fixture
def controller(store: Store, datapath: MemoryDatapath) -> Controller:
    """With FILE of the file and WEB of the API in force."""
    made = Controller(CONFIG, store, datapath)
    made.start()
    made.put([WEB])
    return made


def addresses(datapath: MemoryDatapath) -> list[Address]:
    """The backends that WEB has."""
    return [each.address for each in datapath.held["web"].backends]


def without(of: Service, *addresses: object) -> Service:
    """The service as one that doesn't have these backends."""
    return replace(of, backends=tuple(b for b in of.backends if b.address not in addresses))


def test_a_removed_backend_drains(
    controller: Controller, store: Store, datapath: MemoryDatapath
) -> None:
    """It is no part of what is desired, and known on disk before anything else happens."""
    before = time.time()
    plan = controller.remove_backend("web", B)
    assert plan.changes[0].backends_leaving == (B,)
    assert datapath.held["web"].backends == (Backend(A), Backend(C), GONE)
    assert controller.desired.get("web").service == without(WEB, B)
    (terminating,) = store.terminating()
    assert terminating.key == KEY
    assert before <= terminating.since <= time.time()
    assert terminating.until == terminating.since + 60
    with pytest.raises(NotFoundError, match=r"no backend 192\.0\.2\.2; it has: 192"):
        controller.remove_backend("web", B)


def test_whichever_way_it_is_removed(controller: Controller, datapath: MemoryDatapath) -> None:
    """By a put, by an edit, or from the file."""
    controller.put([without(WEB, B)])
    assert GONE in datapath.held["web"].backends
    controller.edit("web", lambda found: without(found, C))
    assert len(datapath.held["web"].backends) == 3
    controller.reload(replace(CONFIG, services=(without(FILE, B),)))
    assert GONE in datapath.held["file"].backends
    assert len(controller.terminating) == 3


def test_force_ends_it_at_once(
    controller: Controller, store: Store, datapath: MemoryDatapath
) -> None:
    """Of the one that is named and of no other, also when it is terminating already."""
    controller.remove_backend("web", C, force=True)
    assert addresses(datapath) == [A, B]
    controller.remove_backend("web", B)
    controller.reload(replace(CONFIG, services=(without(FILE, B),)))
    controller.remove_backend("web", B, force=True)
    assert addresses(datapath) == [A]
    assert [each.key.service for each in store.terminating()] == [FILE.key]
    controller.put([WEB])
    controller.put([without(WEB, A, B)], force=True)
    assert addresses(datapath) == [C]
    with pytest.raises(ConflictError):
        controller.remove_backend("file", B, force=True)


def test_no_timeout_no_leave(store: Store, datapath: MemoryDatapath) -> None:
    """drain.timeout 0 is a removal as it would be by force; a reload changes it."""
    config = replace(CONFIG, drain=Drain(timeout=0))
    controller = Controller(config, store, datapath)
    controller.start()
    controller.put([WEB])
    controller.remove_backend("web", B)
    assert datapath.held["web"] == without(WEB, B)
    controller.reload(CONFIG)
    controller.remove_backend("web", C)
    assert len(controller.terminating) == 1


def test_back_before_it_was_gone(
    controller: Controller, store: Store, datapath: MemoryDatapath
) -> None:
    """It is as if it had never left."""
    controller.remove_backend("web", B)
    plan = controller.put([WEB])
    assert plan.changes[0].backends_added == (B,)
    assert datapath.held["web"] == WEB
    assert store.terminating() == ()


def test_a_restart_goes_on_waiting(
    controller: Controller, store: Store, datapath: MemoryDatapath
) -> None:
    """With the same end, whenever the process died."""
    controller.remove_backend("web", B)
    before = store.terminating()
    heir = Controller(CONFIG, store, datapath)
    assert heir.start().steps == 0
    assert store.terminating() == before
    assert GONE in datapath.held["web"].backends


def test_what_was_removed_while_nobody_ran_leaves(
    controller: Controller, store: Store, datapath: MemoryDatapath
) -> None:
    """From the file, by an editor: the kernel still has it."""
    del controller
    heir = Controller(replace(CONFIG, services=(without(FILE, B),)), store, datapath)
    heir.start()
    assert GONE in datapath.held["file"].backends
    assert store.terminating()[0].key == BackendKey(FILE.key, B)


def test_a_change_that_fails_leaves_nobody_leaving(
    controller: Controller, store: Store, datapath: MemoryDatapath
) -> None:
    """On disk and in the datapath all is as before."""
    datapath.broken = 1
    with pytest.raises(OSError, match="out of memory"):
        controller.remove_backend("web", B)
    assert datapath.held == {"file": FILE, "web": WEB}
    assert store.terminating() == ()
    assert not controller.terminating


def test_a_plan_says_who_would_leave(controller: Controller, datapath: MemoryDatapath) -> None:
    """And changes nothing."""
    plan = controller.plan([without(WEB, B)])
    assert plan.changes[0].backends_leaving == (B,)
    assert datapath.held["web"] == WEB
    assert not controller.terminating


def test_the_last_flow_ends_it(
    controller: Controller, store: Store, datapath: MemoryDatapath
) -> None:
    """Not before; what still has flows stays."""
    controller.put([without(WEB, B, C)])
    terminating = controller.terminating
    assert controller.reap(terminating, dict.fromkeys(terminating, 1)) is None
    plan = controller.reap(terminating, {KEY: 0, BackendKey(WEB.key, C): 5})
    assert plan is not None
    assert plan.changes[0].backends_removed == (B,)
    assert plan.moved == 0
    assert addresses(datapath) == [A, C]
    assert [each.address for each in store.terminating()] == [C]


def test_its_time_ends_it(
    controller: Controller, datapath: MemoryDatapath, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever flows it has."""
    controller.remove_backend("web", B)
    terminating, now = controller.terminating, time.time()
    monkeypatch.setattr(time, "time", lambda: now + 59)
    assert controller.reap(terminating, {KEY: 1}) is None
    monkeypatch.setattr(time, "time", lambda: now + 61)
    controller.reap(terminating, {KEY: 1})
    assert datapath.held["web"] == without(WEB, B)
    assert not controller.terminating


def test_a_count_of_before_ends_nothing(controller: Controller, datapath: MemoryDatapath) -> None:
    """It came back and left again since: flows of between were not counted."""
    controller.remove_backend("web", B)
    counted = controller.terminating
    controller.put([WEB])
    controller.remove_backend("web", B)
    assert controller.reap(counted, {KEY: 0}) is None
    assert GONE in datapath.held["web"].backends


def test_findings_hold_until_the_next(controller: Controller, datapath: MemoryDatapath) -> None:
    """Through every change, as far as they are about what is still wished for."""
    checked = replace(WEB, health=Health(CheckType.TCP))
    controller.put([checked])
    controller.set_down({WEB.key: {B}})
    assert datapath.held["web"].backends[1] == Backend(B, 1, BackendState.QUARANTINED)
    controller.put([replace(checked, flow_table=False)])
    assert datapath.held["web"].backends[1] == Backend(B, 1, BackendState.QUARANTINED)
    controller.set_down({})
    assert datapath.held["web"] == replace(checked, flow_table=False)
