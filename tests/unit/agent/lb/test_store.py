# SPDX-License-Identifier: Apache-2.0
"""What the API set, on disk."""

from __future__ import annotations

import sqlite3
from contextlib import closing, suppress
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING

import pytest
from tests.unit.agent.samples import service

from towpath.agent.lb.store import MIGRATIONS, SCHEMA_VERSION, Store, StoreError
from towpath.core.lb.terminating import Terminating
from towpath.model import Backend, Protocol, Service
from towpath.model.kinds import ANY_PORT, Ports

if TYPE_CHECKING:
    from pathlib import Path

EVERYTHING = Service(
    name="dns",
    vip=ip_address("2001:db8::10"),
    port=53,
    protocol=Protocol.UDP,
    backends=(Backend(ip_address("2001:db8::2"), 0), Backend(ip_address("2001:db8::1"), 65535)),
    table_size=4194301,
    flow_table=False,
)


def saved(path: Path) -> tuple[Service, ...]:
    """What another process would read."""
    with Store(path) as store:
        return store.services()


def test_a_service_comes_back_as_it_was(tmp_path: Path) -> None:
    """Every field, and backends in their order."""
    with Store(tmp_path / "db") as store, store.transaction():
        store.put([EVERYTHING, service("web")])
    assert saved(tmp_path / "db") == (EVERYTHING, service("web"))


def test_who_leaves_comes_back_as_it_was(tmp_path: Path) -> None:
    """Also of many ports and addresses; put again, they are all there are."""
    one = Terminating(
        ip_address("203.0.113.10"), 80, Protocol.TCP, ip_address("192.0.2.1"), 1.5, 61.5
    )
    other = Terminating(
        ip_network("2001:db8::/64"),
        ANY_PORT,
        Protocol.UDP,
        ip_address("2001:db8:1::1"),
        2.0,
        3.0,
    )
    for terminating in ((one, other), (other,), ()):
        with Store(tmp_path / "db") as store, store.transaction():
            store.put_terminating(terminating)
        with Store(tmp_path / "db") as store:
            assert store.terminating() == terminating


def test_a_put_replaces(tmp_path: Path) -> None:
    """The old backends are gone with the old service."""
    with Store(tmp_path / "db") as store:
        with store.transaction():
            store.put([service("web", "203.0.113.10", "192.0.2.1", "192.0.2.2")])
        with store.transaction():
            store.put([service("web", "203.0.113.11", "192.0.2.2")])
        assert store.services() == (service("web", "203.0.113.11", "192.0.2.2"),)


def test_services_exchange_their_vips(tmp_path: Path) -> None:
    """Although a VIP is unique at every moment."""
    with Store(tmp_path / "db") as store:
        with store.transaction():
            store.put([service("a", port=1), service("b", port=2)])
        with store.transaction():
            store.put([service("a", port=2), service("b", port=1)])
        assert [each.port for each in store.services()] == [2, 1]


def test_a_transaction_that_raises_writes_nothing(tmp_path: Path) -> None:
    """All or nothing, and the next transaction is not disturbed."""
    with Store(tmp_path / "db") as store:
        with store.transaction():
            store.put([service("web")])
        with suppress(ZeroDivisionError), store.transaction():
            store.delete(["web"])
            store.put([EVERYTHING])
            _ = 1 / 0
        with store.transaction():
            store.put([service("mail", port=25)])
    assert [each.name for each in saved(tmp_path / "db")] == ["mail", "web"]


def test_a_deleted_service_is_gone(tmp_path: Path) -> None:
    """And one that never was is no error."""
    with Store(tmp_path / "db") as store:
        with store.transaction():
            store.put([EVERYTHING])
        with store.transaction():
            store.delete(["dns", "never was"])
        assert store.services() == ()


def test_an_older_file_is_migrated(tmp_path: Path) -> None:
    """The first schema had columns, and a table of backends."""
    with closing(sqlite3.connect(tmp_path / "db")) as db:
        db.executescript(MIGRATIONS[0])
        db.executescript(
            """
            INSERT INTO services VALUES ('dns', '2001:db8::10', 53, 'udp', 'dsr', 4194301, 0);
            INSERT INTO services VALUES ('web', '203.0.113.10', 80, 'tcp', 'dsr', 251, 1);
            INSERT INTO backends VALUES ('dns', 1, '2001:db8::1', 65535);
            INSERT INTO backends VALUES ('dns', 0, '2001:db8::2', 0);
            PRAGMA user_version = 1;
            """
        )
    assert saved(tmp_path / "db") == (EVERYTHING, replace(service("web"), backends=()))
    assert saved(tmp_path / "db") == (EVERYTHING, replace(service("web"), backends=()))


def test_all_kinds_of_ports_come_back(tmp_path: Path) -> None:
    """Sets and prefixes, as objects."""
    kinds = [
        replace(service("any"), vip=ip_network("203.0.113.0/24"), port=ANY_PORT),
        replace(service("list"), port=Ports.of([(80, 80), (443, 443), (8000, 8999)])),
    ]
    with Store(tmp_path / "db") as store, store.transaction():
        store.put(kinds)
    assert saved(tmp_path / "db") == tuple(kinds)


def test_what_was_committed_is_read_without_a_clean_end(tmp_path: Path) -> None:
    """Another process sees it while the first has not closed, as after a crash."""
    with Store(tmp_path / "db") as store:
        with store.transaction():
            store.put([EVERYTHING])
        assert saved(tmp_path / "db") == (EVERYTHING,)


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    """With what to do; the file is left alone."""
    Store(tmp_path / "db").close()
    with closing(sqlite3.connect(tmp_path / "db")) as db:
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    with pytest.raises(StoreError, match=r"written by a newer Towpath \(schema 5, .* up to 4\)"):
        Store(tmp_path / "db")


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    """With its path and what to do."""
    (tmp_path / "db").write_bytes(b"not a database" * 100)
    with pytest.raises(StoreError, match=r"db: could not open .*: file is not a database; if"):
        Store(tmp_path / "db")


def test_a_full_disk_is_an_error_that_changes_nothing(tmp_path: Path) -> None:
    """SQLite is told that there is no room for another page."""
    with Store(tmp_path / "db") as store:
        with store.transaction():
            store.put([EVERYTHING])
        pages = store._db.execute("PRAGMA page_count").fetchone()[0]
        store._db.execute(f"PRAGMA max_page_count = {pages}")
        many = [f"192.0.{i // 200}.{1 + i % 200}" for i in range(2000)]
        full = pytest.raises(StoreError, match=r"could not write .*: database or disk is full")
        with full, store.transaction():
            store.put([replace(service("web", "203.0.113.10", *many))])
        assert store.services() == (EVERYTHING,)
