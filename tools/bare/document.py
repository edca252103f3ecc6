# SPDX-License-Identifier: Apache-2.0
"""Writes what was found on bare machines into docs/install.md."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from tools.debian import page

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tools.bare.machine import Ran


def outcome(ran: Ran, counted: str) -> str:
    """Return minutes and result of a command in a few words."""
    ended = {0: "ok", None: "no end in time"}.get(ran.code, f"exit code {ran.code}")
    return ", ".join(each for each in (f"{ran.seconds / 60:.1f} min", ended, counted) if each)


def table(rows: Mapping[str, Mapping[str, str]]) -> str:
    """Return distributions by commands."""
    commands = list(dict.fromkeys(name for row in rows.values() for name in row))
    body = [(title, *(row.get(name, "-") for name in commands)) for title, row in rows.items()]
    return page.table(("", *(f"`make {name}`" for name in commands)), *body)


def write(rows: Mapping[str, Mapping[str, str]]) -> None:
    """Put the table in the page, with this machine's kernel and the day."""
    kernel, day = os.uname().release.partition("-")[0], f"{datetime.now(UTC):%Y-%m-%d}"
    where = f"{day}, Linux {kernel}, {len(os.sched_getaffinity(0))} CPUs:"
    page.write("bare", f"{where}\n\n{table(rows)}\n")
