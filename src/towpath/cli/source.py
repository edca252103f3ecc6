# SPDX-License-Identifier: Apache-2.0
"""``towpath source list|accept``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from towpath.cli.command import ManualGroup
from towpath.cli.output import Format, emit, output_option, print_table, say, socket_option

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from towpath.api.documents import SourceStatus

EXAMPLES = {
    "towpath source list": "What each follows, and how old that is.",
    "towpath source accept kubernetes": "Take over a list that lacks a large share.",
}


@click.group(cls=ManualGroup, examples=EXAMPLES)
def source() -> None:
    """Where services come from, besides the configuration file and the API."""


@source.command("list")
@socket_option
@output_option
def list_(socket_path: Path, form: Format) -> None:
    """List sources, and what of their objects can't be served."""
    from towpath.api.client import Client
    from towpath.api.codec import plain

    with Client(socket_path) as client:
        found = client.status().sources

    def table() -> None:
        columns = ("source", "kind", "objects", "age", "state")
        rows = [row for name, each in found.items() for row in _rows(name, each)]
        print_table(columns, rows, numbers=("objects", "age"))
        problems = [
            (name, p) for name, each in found.items() for p in (*each.problems, *each.unserved)
        ]
        if problems:
            say()
            print_table(("source", "not served"), problems)

    emit(plain(found), form, table)


def _rows(name: str, status: SourceStatus) -> Iterator[tuple[object, ...]]:
    if not status.kinds:
        yield name, "", None, None, status.trouble or "followed"
    for kind in status.kinds:
        age = None if kind.age is None else f"{kind.age:.0f} s"
        state = kind.error or ("followed" if kind.synced else "not all are known yet")
        yield name, kind.name, kind.objects, age, state
    if status.withheld:
        yield name, "services", status.withheld, None, "withheld: a list lacks them"
    for pool in status.pools:
        yield name, f"pool {pool.name}", pool.addresses, None, f"{pool.used} of them are taken"
    if status.pools:
        yield name, "addresses", None, None, f"given by {status.leader or 'nobody just now'}"
    if status.held:
        yield name, "endpoints", status.held, None, "held: in no slice just now"


@source.command()
@click.argument("name")
@socket_option
def accept(name: str, socket_path: Path) -> None:
    """Believe what a source has, though it lacks a large share of what is in force."""
    from towpath.api.client import Client

    with Client(socket_path) as client:
        client.accept_source(name)
