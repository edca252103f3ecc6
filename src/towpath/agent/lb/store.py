# SPDX-License-Identifier: Apache-2.0
"""What sources have handed in and what goes on, in SQLite below the state directory.

A service is one row: its name and the JSON document that the API has of it, so that
a field that a newer version adds needs no other schema. The schema's version is
SQLite's own ``user_version``: an older file is migrated when it is opened, a newer
one is refused. Write-ahead logging: what has been committed survives the process, and, where
nobody would tell it again, the machine.
"""

from __future__ import annotations

import json
import sqlite3
from contextlib import contextmanager
from typing import TYPE_CHECKING

from towpath.agent.errors import AgentError
from towpath.agent.lb.reading import ServiceReader
from towpath.api.codec import build, plain, text
from towpath.capabilities import API
from towpath.closeable import Closeable
from towpath.core.lb.terminating import Terminating

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from towpath.model import Service

# MIGRATIONS[n] leads from version n to n + 1. Entries are only ever added.
MIGRATIONS = (
    """
    CREATE TABLE services (
        name        TEXT PRIMARY KEY,
        vip         TEXT NOT NULL,
        port        INTEGER NOT NULL,
        protocol    TEXT NOT NULL,
        forwarding  TEXT NOT NULL,
        table_size  INTEGER NOT NULL,
        flow_table  INTEGER NOT NULL,
        UNIQUE (vip, port, protocol)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE backends (
        service   TEXT NOT NULL REFERENCES services (name) ON DELETE CASCADE,
        position  INTEGER NOT NULL,
        address   TEXT NOT NULL,
        weight    INTEGER NOT NULL,
        PRIMARY KEY (service, position),
        UNIQUE (service, address)
    ) STRICT, WITHOUT ROWID;
    """,
    """
    CREATE TABLE documents (name TEXT PRIMARY KEY, document TEXT NOT NULL) STRICT, WITHOUT ROWID;
    INSERT INTO documents SELECT name, json_object(
        'name', name, 'vip', vip, 'port', port, 'protocol', protocol, 'forwarding', forwarding,
        'table_size', table_size, 'flow_table', json(iif(flow_table, 'true', 'false')),
        'backends', (
            SELECT json_group_array(json_object('address', address, 'weight', weight))
            FROM (SELECT * FROM backends WHERE service = services.name ORDER BY position)
        )
    ) FROM services;
    DROP TABLE backends;
    DROP TABLE services;
    ALTER TABLE documents RENAME TO services;
    """,
    """
    CREATE TABLE leaving (document TEXT NOT NULL) STRICT;
    """,
    """
    ALTER TABLE services ADD COLUMN owner TEXT NOT NULL DEFAULT 'api';
    """,
)
SCHEMA_VERSION = len(MIGRATIONS)

DATABASE = "state.db"
"""The file's name in the state directory."""


class StoreError(AgentError):
    """The state database could not be opened, read or written."""


class Store(Closeable):
    """The services of all sources but the file. Used by one thread at a time.

    Args:
        path: The database; made when absent. Its directory must exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lasting = True
        with self._explained("open"):
            # Transactions are begun explicitly: nothing else opens one behind our back.
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            try:
                self._prepare()
            except BaseException:
                self._db.close()
                raise

    def close(self) -> None:
        """Close the database; what was committed is on disk already."""
        self._db.close()

    def services(self, owner: str = API) -> tuple[Service, ...]:
        """Every stored service of a source, by name; backends in the order they were given."""
        with self._explained("read"):
            rows = self._db.execute(
                "SELECT document FROM services WHERE owner = ? ORDER BY name", (owner,)
            )
            reader = ServiceReader()
            return tuple([reader.read(document) for (document,) in rows])

    def names(self, owner: str = API) -> set[str]:
        """The names of a source's services."""
        with self._explained("read"):
            rows = self._db.execute("SELECT name FROM services WHERE owner = ?", (owner,))
            return {name for (name,) in rows}

    def owners(self) -> tuple[str, ...]:
        """The sources that have services here."""
        with self._explained("read"):
            return tuple(
                each for (each,) in self._db.execute("SELECT DISTINCT owner FROM services")
            )

    @contextmanager
    def transaction(self, *, lasting: bool = True) -> Iterator[None]:
        """Whatever is written in the block is there as a whole, or, if it raises, not at all.

        ``lasting``: it survives the machine. Else it may be lost with what the kernel holds, but
        not with this process alone: that costs no wait for the disk.
        """
        with self._explained("write"):
            if lasting != self._lasting:
                self._db.execute(f"PRAGMA synchronous = {'FULL' if lasting else 'NORMAL'}")
                self._lasting = lasting
            self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            with self._explained("write"):
                self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def put(self, services: Iterable[Service], owner: str = API) -> None:
        """Add services, replacing those of the same name. Call it in a transaction."""
        with self._explained("write"):
            self._db.executemany(
                "INSERT OR REPLACE INTO services (name, document, owner) VALUES (?, ?, ?)",
                # By name, as they are kept: neighbours are written to one page at once.
                sorted((each.name, text(each), owner) for each in services),
            )

    def delete(self, names: Iterable[str]) -> None:
        """Forget services. Call it in a transaction."""
        with self._explained("write"):
            self._db.executemany("DELETE FROM services WHERE name = ?", ((n,) for n in names))

    def terminating(self) -> tuple[Terminating, ...]:
        """Backends that were removed and keep their flows for a while."""
        with self._explained("read"):
            rows = self._db.execute("SELECT document FROM leaving ORDER BY rowid")
            return tuple(build(Terminating, json.loads(document)) for (document,) in rows)

    def put_terminating(self, terminating: Iterable[Terminating]) -> None:
        """Make these all that are terminating. Call it in a transaction."""
        with self._explained("write"):
            self._db.execute("DELETE FROM leaving")
            self._db.executemany("INSERT INTO leaving VALUES (?)", map(_row, terminating))

    def change_terminating(
        self, put: Iterable[Terminating], gone: Iterable[Terminating] = ()
    ) -> None:
        """Forget some that were put and note more. Call it in a transaction."""
        with self._explained("write"):
            self._db.executemany("DELETE FROM leaving WHERE document = ?", map(_row, gone))
            self._db.executemany("INSERT INTO leaving VALUES (?)", map(_row, put))

    def _prepare(self) -> None:
        """Set the connection up and bring the schema to SCHEMA_VERSION."""
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version > SCHEMA_VERSION:
            raise StoreError(
                f"{self.path}: written by a newer Towpath (schema {version}, this one knows up to"
                f" {SCHEMA_VERSION}); start that one, or move the file away to begin anew"
            )
        for step in range(version, SCHEMA_VERSION):
            self._db.executescript(
                f"BEGIN; {MIGRATIONS[step]} PRAGMA user_version = {step + 1}; COMMIT;"
            )
        # No other schema: an older version needs to know nothing of it.
        self._db.execute("CREATE INDEX IF NOT EXISTS leaving_by_document ON leaving (document)")
        # Who has which, without going through all documents.
        self._db.execute("CREATE INDEX IF NOT EXISTS services_by_owner ON services (owner)")

    @contextmanager
    def _explained(self, doing: str) -> Iterator[None]:
        """Turn SQLite's errors into ours, with the file and what to do."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise StoreError(
                f"{self.path}: could not {doing} the state database: {error};"
                " if the file is damaged, move it away: services of the YAML file are not in it"
            ) from error


def _row(terminating: Terminating) -> tuple[str]:
    return (json.dumps(plain(terminating)),)
