# SPDX-License-Identifier: Apache-2.0
"""Changes reach the disk and the datapath, both or neither."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from tests.unit.agent.samples import MemoryDatapath, service

from towpath.agent.errors import ConflictError, NotFoundError
from towpath.agent.lb.controller import Controller
from towpath.agent.lb.store import Store, StoreError
from towpath.agent.sources.intake import Update
from towpath.capabilities import API, FILE, ORIGINS, Origin
from towpath.datapath.errors import CapacityError
from towpath.model import Config, ConfigError, Device

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

WEB = service("web", "203.0.113.10", "192.0.2.1")
MAIL = service("mail", "203.0.113.10", "192.0.2.2", port=25)
DNS = service("dns", "203.0.113.10", "192.0.2.3", port=53)
CONFIG = Config(devices=(Device("eth0"),), services=(WEB,))


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
    """With WEB from the file in force."""
    made = Controller(CONFIG, store, datapath)
    made.start()
    return made


def names(datapath: MemoryDatapath) -> set[str]:
    """What is in the datapath."""
    return set(datapath.held)


def test_a_start_brings_the_datapath_to_what_is_desired(
    store: Store, datapath: MemoryDatapath
) -> None:
    """Stored services come back, and what nobody wants any more goes."""
    datapath.held = {"old": service("old", port=99)}
    with store.transaction():
        store.put([MAIL])
    Controller(CONFIG, store, datapath).start()
    assert datapath.held == {"web": WEB, "mail": MAIL}


def test_a_put_is_in_both_places(
    controller: Controller, store: Store, datapath: MemoryDatapath
) -> None:
    """And answered with what it changed."""
    plan = controller.put([MAIL])
    assert [change.action for change in plan.changes] == ["add"]
    assert datapath.held == {"web": WEB, "mail": MAIL}
    assert store.services() == (MAIL,)


def test_pruning_removes_the_apis_services_only(
    controller: Controller, store: Store, datapath: MemoryDatapath
) -> None:
    """The file's are none of its business."""
    controller.put([MAIL])
    controller.put([DNS], prune=True)
    assert names(datapath) == {"web", "dns"}
    assert store.services() == (DNS,)


def test_an_edit_starts_from_what_is_there(controller: Controller, store: Store) -> None:
    """The caller says what to do, not what it believes the service to be."""
    controller.put([MAIL])
    controller.edit("mail", lambda found: replace(found, backends=found.backends[:0]))
    assert store.services() == (replace(MAIL, backends=()),)


def test_a_delete_is_in_both_places(
    controller: Controller, store: Store, datapath: MemoryDatapath
) -> None:
    """And a second one finds nothing."""
    controller.put([MAIL])
    controller.delete("mail")
    assert names(datapath) == {"web"}
    assert store.services() == ()
    with pytest.raises(NotFoundError):
        controller.delete("mail")


@pytest.mark.parametrize("change", ["put", "delete", "edit"])
def test_a_service_of_the_file_is_not_the_apis(
    controller: Controller, store: Store, datapath: MemoryDatapath, change: str
) -> None:
    """Whatever the API tries."""
    tries = {
        "put": lambda: controller.put([replace(WEB, port=81)]),
        "delete": lambda: controller.delete("web"),
        "edit": lambda: controller.edit("web", lambda found: found),
    }
    with pytest.raises(ConflictError, match="belongs to the configuration file"):
        tries[change]()
    assert datapath.held == {"web": WEB}
    assert store.services() == ()


def test_a_wrong_service_changes_nothing(
    controller: Controller, store: Store, datapath: MemoryDatapath
) -> None:
    """Nor do the right ones beside it."""
    with pytest.raises(ConfigError, match=r"services\[1\]\.port: 0 is out of range"):
        controller.put([MAIL, replace(DNS, port=0)])
    assert names(datapath) == {"web"}
    assert store.services() == ()


def test_what_does_not_fit_is_on_neither_side(store: Store) -> None:
    """The datapath refuses, the disk forgets."""
    datapath = MemoryDatapath(room=2)
    controller = Controller(CONFIG, store, datapath)
    controller.start()
    with pytest.raises(CapacityError):
        controller.put([MAIL, DNS])
    assert names(datapath) == {"web"}
    assert store.services() == ()
    controller.put([MAIL])
    assert store.services() == (MAIL,)


def test_a_change_that_breaks_halfway_is_undone(
    controller: Controller, store: Store, datapath: MemoryDatapath
) -> None:
    """In the datapath by applying the state before, on disk by a rollback."""
    controller.put([MAIL])
    datapath.broken = 1
    with pytest.raises(OSError, match="out of memory"):
        controller.put([DNS])
    assert names(datapath) == {"web", "mail"}
    assert store.services() == (MAIL,)
    assert controller.trouble is None


def test_a_change_that_can_not_be_undone_is_trouble_until_one_succeeds(
    controller: Controller, datapath: MemoryDatapath
) -> None:
    """Every apply compares with what is there, so the next one puts it right."""
    controller.put([MAIL])
    datapath.broken = 2
    with pytest.raises(OSError, match="out of memory"):
        controller.put([DNS])
    assert controller.trouble is not None
    assert names(datapath) == {"web"}
    controller.put([DNS])
    assert names(datapath) == {"web", "mail", "dns"}
    assert controller.trouble is None


def test_a_disk_that_refuses_takes_the_change_back(
    controller: Controller, store: Store, datapath: MemoryDatapath
) -> None:
    """Here the database is gone when the change is to be written."""
    store.close()
    with pytest.raises(StoreError, match="state database"):
        controller.put([MAIL])
    assert names(datapath) == {"web"}
    assert [each.service for each in controller.desired] == [WEB]


def test_a_reload_replaces_the_files_services(
    controller: Controller, store: Store, datapath: MemoryDatapath
) -> None:
    """The API's stay."""
    controller.put([MAIL])
    controller.reload(replace(CONFIG, services=(DNS,)))
    assert names(datapath) == {"mail", "dns"}
    assert store.services() == (MAIL,)


def test_a_reload_that_contradicts_the_api_is_refused_whole(
    controller: Controller, datapath: MemoryDatapath
) -> None:
    """The running configuration stays in force."""
    controller.put([MAIL])
    with pytest.raises(ConflictError, match="'mail' was also set through the API"):
        controller.reload(replace(CONFIG, services=(WEB, DNS, replace(MAIL, port=26))))
    assert names(datapath) == {"web", "mail"}


def test_a_plan_changes_nothing(
    controller: Controller, store: Store, datapath: MemoryDatapath
) -> None:
    """For either owner."""
    applied = datapath.applied
    as_api = controller.plan([MAIL])
    as_file = controller.plan([DNS], owner=FILE)
    assert [(c.action, c.service.name) for c in as_api.changes] == [("add", "mail")]
    assert [(c.action, c.service.name) for c in as_file.changes] == [
        ("remove", "web"),
        ("add", "dns"),
    ]
    assert datapath.applied == applied
    assert store.services() == ()


# Sources other than the file and the API


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> str:
    """A source that is registered."""
    origin = Origin("elsewhere", "", "somewhere else")
    monkeypatch.setattr("towpath.capabilities.ORIGINS", (*ORIGINS, origin))
    return origin.name


def test_a_source_s_services_are_in_both_places(
    store: Store, datapath: MemoryDatapath, elsewhere: str
) -> None:
    """All that it has, or a change of it; others' stay."""
    controller = Controller(CONFIG, store, datapath, (API, elsewhere))
    controller.start()
    controller.put([DNS])
    controller.take(elsewhere, Update((MAIL,)))
    assert names(datapath) == {"web", "dns", "mail"}
    assert store.services(elsewhere) == (MAIL,)
    assert store.services() == (DNS,)
    other = service("other", port=8080)
    controller.take(elsewhere, Update((other,), whole=False))
    assert names(datapath) == {"web", "dns", "mail", "other"}
    controller.take(elsewhere, Update((), ("mail", "dns", "web"), whole=False))
    assert names(datapath) == {"web", "dns", "other"}
    controller.take(elsewhere, Update(()))
    assert names(datapath) == {"web", "dns"}


def test_a_source_s_services_are_desired_before_it_hands_them_in(
    store: Store, datapath: MemoryDatapath, elsewhere: str
) -> None:
    """By the next agent; without the source they are forgotten."""
    first = Controller(CONFIG, store, datapath, (API, elsewhere))
    first.start()
    first.put([DNS])
    first.take(elsewhere, Update((MAIL,)))
    Controller(CONFIG, store, datapath, (API, elsewhere)).start()
    assert names(datapath) == {"web", "dns", "mail"}
    Controller(CONFIG, store, datapath).start()
    assert names(datapath) == {"web", "dns"}
    assert store.owners() == (API,)


def test_a_service_moves_from_a_source_to_the_file_while_no_agent_runs(
    store: Store, datapath: MemoryDatapath, elsewhere: str
) -> None:
    """What was handed in before doesn't stand in its way; the rest of it stays."""
    first = Controller(CONFIG, store, datapath, (API, elsewhere))
    first.start()
    first.take(elsewhere, Update((MAIL, DNS)))
    moved = replace(MAIL, backends=WEB.backends)
    config = replace(CONFIG, services=(WEB, moved))
    second = Controller(config, store, datapath, (API, elsewhere))
    second.start()
    assert second.desired.get("mail") == (FILE, moved)
    assert moved.backends[0] in datapath.held["mail"].backends
    assert [each.service.name for each in second.desired if each.owner == elsewhere] == ["dns"]
    assert store.services(elsewhere) == (DNS,)
    second.take(elsewhere, Update((DNS,)))


def test_a_source_that_contradicts_another_is_refused_whole(
    store: Store, datapath: MemoryDatapath, elsewhere: str
) -> None:
    """What it had stays."""
    controller = Controller(CONFIG, store, datapath, (API, elsewhere))
    controller.start()
    controller.take(elsewhere, Update((MAIL,)))
    with pytest.raises(ConflictError, match="'web' was also set through the configuration file"):
        controller.take(elsewhere, Update((DNS, replace(WEB, port=81))))
    assert names(datapath) == {"web", "mail"}
    assert store.services(elsewhere) == (MAIL,)
    with pytest.raises(ConflictError, match="'mail' belongs to somewhere else; change it there"):
        controller.put([MAIL])
