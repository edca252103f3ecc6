# SPDX-License-Identifier: Apache-2.0
"""What tools have found, in docs/install.md."""

from __future__ import annotations

from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs/install.md"
END = "<!-- end -->\n"


def section(command: str) -> str:
    """Return what was written there by ``make COMMAND``."""
    return PAGE.read_text().partition(_begin(command))[2].partition(END)[0]


def write(command: str, text: str) -> None:
    """Put ``text`` in the place of what ``make COMMAND`` has written before."""
    before, begin, rest = PAGE.read_text().partition(_begin(command))
    _, end, after = rest.partition(END)
    PAGE.write_text(before + begin + text + end + after)


def table(*rows: tuple[str, ...]) -> str:
    """Return a table, the first of whose rows is its head."""
    lines = (rows[0], ("---",) * len(rows[0]), *rows[1:])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _begin(command: str) -> str:
    return f"<!-- make {command} -->\n"
