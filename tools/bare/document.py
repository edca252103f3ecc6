# SPDX-License-Identifier: Apache-2.0
"""Writes what was found on bare machines into docs/install.md."""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tools.bare.machine import Ran

PAGE = Path("docs/install.md")
_BETWEEN = re.compile(r"(?<=<!-- make bare -->\n).*(?=<!-- end -->)", re.DOTALL)


def outcome(ran: Ran, counted: str) -> str:
    """Return minutes and result of a command in a few words."""
    ended = {0: "ok", None: "no end in time"}.get(ran.code, f"exit code {ran.code}")
    return ", ".join(each for each in (f"{ran.seconds / 60:.1f} min", ended, counted) if each)


def table(rows: Mapping[str, Mapping[str, str]]) -> str:
    """Return distributions by commands."""
    commands = list(dict.fromkeys(name for row in rows.values() for name in row))
    head = [["", *(f"`make {name}`" for name in commands)], ["---"] * (len(commands) + 1)]
    body = [[title, *(row.get(name, "-") for name in commands)] for title, row in rows.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in [*head, *body])


def write(rows: Mapping[str, Mapping[str, str]]) -> None:
    """Put the table in the page, with this machine's kernel and the day."""
    kernel, day = os.uname().release.partition("-")[0], f"{datetime.now(UTC):%Y-%m-%d}"
    where = f"{day}, Linux {kernel}, {len(os.sched_getaffinity(0))} CPUs:"
    text = _BETWEEN.sub(lambda _: f"{where}\n\n{table(rows)}\n", PAGE.read_text())
    PAGE.write_text(text)
