# SPDX-License-Identifier: Apache-2.0
"""``towpath recorder list|stop``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from towpath.cli.command import ManualGroup
from towpath.cli.output import Format, count, emit, output_option, print_table, socket_option

if TYPE_CHECKING:
    from pathlib import Path

    from towpath.api.captures import CaptureEntry

EXAMPLES = {
    "towpath recorder list": "Captures that go on, and the last ones that have ended.",
    "towpath recorder stop 3": "End one; whoever reads it gets the rest of the file.",
}


@click.group(cls=ManualGroup, examples=EXAMPLES)
def recorder() -> None:
    """List and stop captures, whoever began them (towpath record)."""


@recorder.command("list")
@socket_option
@output_option
def list_(socket_path: Path, form: Format) -> None:
    """List captures."""
    from towpath.api.client import Client
    from towpath.api.codec import plain

    with Client(socket_path) as client:
        entries = client.captures()
    columns = ("id", "started", "for", "packets", "frames", "lost", "state")
    numbers = ("id", "packets", "frames", "lost")
    emit(plain(entries), form, lambda: print_table(columns, map(_row, entries), numbers=numbers))


def _row(entry: CaptureEntry) -> tuple[str, ...]:
    from towpath.model.capture import filter_text

    return (
        str(entry.id),
        entry.started,
        filter_text(entry.capture) or "everything",
        count(entry.packets),
        count(entry.frames),
        count(entry.lost),
        entry.ended or "goes on",
    )


@recorder.command()
@click.argument("number", type=int)
@socket_option
def stop(number: int, socket_path: Path) -> None:
    """End a capture."""
    from towpath.api.client import Client

    with Client(socket_path) as client:
        client.stop_capture(number)
