# SPDX-License-Identifier: Apache-2.0
"""Limits grow as far as they have to and may, and are as large at the next start."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.unit.agent.samples import service

from towpath.agent.lb import room
from towpath.agent.lb.room import MEBIBYTE, Room, kernel_bytes, used_by
from towpath.model import Limits

if TYPE_CHECKING:
    from pathlib import Path

SMALL = Limits(services=10, backends=20, table_slots=2510)


def test_what_is_short_and_what_would_be_next(tmp_path: Path) -> None:
    """All at once: each time that tables are made anew costs."""
    path = tmp_path / "limits.json"
    used = {"services": 15, "backends": 100, "table_slots": 2000, "sources": 0}
    assert Room(path, SMALL).grow("services", used, 1024) is None
    limits = Room(path, SMALL).limits
    assert (limits.services, limits.backends, limits.table_slots) == (22, 150, 5020)
    assert limits.flows == SMALL.flows


def test_what_is_not_counted_doubles(tmp_path: Path) -> None:
    """Such as slots that are enough, but not in one piece."""
    path = tmp_path / "limits.json"
    assert Room(path, SMALL).grow("table_slots", {"table_slots": 251}, 1024) is None
    assert Room(path, SMALL).limits.table_slots == 5020


def test_a_configuration_that_asks_for_more(tmp_path: Path) -> None:
    """Each limit is the larger of what was noted and what is configured."""
    path = tmp_path / "limits.json"
    Room(path, SMALL).grow("services", {"services": 100}, 1024)
    limits = Room(path, Limits(services=50, backends=500, table_slots=100_000)).limits
    assert (limits.services, limits.backends, limits.table_slots) == (150, 500, 100_000)


def test_no_more_than_it_may_take(tmp_path: Path) -> None:
    """Nothing is noted then, and what it would take is told."""
    path = tmp_path / "limits.json"
    why = Room(path, SMALL).grow("table_slots", {"table_slots": 1 << 20}, 1)
    assert why is not None
    assert "table_slots 1572864 would take" in why
    assert "allowed: 1 (kubernetes.grow_to)" in why
    assert not path.exists()
    assert Room(path, SMALL).limits == SMALL


def test_no_more_than_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both tables are in memory for a while."""
    monkeypatch.setattr(room, "_available", lambda: 5 * MEBIBYTE)
    why = Room(tmp_path / "limits.json", SMALL).grow("table_slots", {"table_slots": 1 << 21}, 1024)
    assert why is not None
    assert why.endswith("free: 5")


def test_no_larger_than_a_limit_can_be(tmp_path: Path) -> None:
    """What the configuration wouldn't take either."""
    most = Limits(backends=(1 << 20) - 1)
    why = Room(tmp_path / "limits.json", most).grow("backends", {"backends": 1 << 20}, 1 << 20)
    assert why == "limits.backends is as large as it can be"


@pytest.mark.parametrize("text", ["", "[]", '{"services": "many"}', '{"services": null}'])
def test_a_damaged_file(tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    """It is told, and limits are those of the configuration."""
    path = tmp_path / "limits.json"
    path.write_text(text)
    assert Room(path, SMALL).limits == SMALL
    assert ("limits are those of the configuration" in caplog.text) == (text != "[]")


def test_a_directory_that_takes_nothing(tmp_path: Path) -> None:
    """Then they can't: the next start would not know of it."""
    why = Room(tmp_path / "gone" / "limits.json", SMALL).grow("services", {"services": 20}, 1024)
    assert why is not None
    assert why.endswith("No such file or directory")


def test_what_services_use() -> None:
    """As the tables count it."""
    services = [service("a", "203.0.113.1", "192.0.2.1", "192.0.2.2"), service("b", "203.0.113.2")]
    used = used_by(services)
    assert used == {"services": 2, "backends": 2, "table_slots": 251, "sources": 0}
    assert kernel_bytes(SMALL) < kernel_bytes(Limits())
