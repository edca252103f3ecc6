# SPDX-License-Identifier: Apache-2.0
"""Writes what was compiled, and with what, into docs/install.md."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from tools.compilers.supported import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tools.compilers.build import Made

PAGE = ROOT / "docs" / "install.md"
_BETWEEN = re.compile(r"(?<=<!-- make compilers -->\n).*?(?=<!-- end -->)", re.DOTALL)
_HEAD = ("", "clang", "libbpf's headers", "the kernel's headers", "objects")


def table(all_made: Iterable[Made]) -> str:
    """Return what was made, one line for each compiler."""
    rows = [
        (made.compiler.distribution.title, made.clang, made.libbpf, made.headers, str(made.objects))
        for made in all_made
    ]
    lines = [f"| {' | '.join(line)} |" for line in (_HEAD, ("---",) * len(_HEAD), *rows)]
    return "\n".join(lines)


def write(all_made: Iterable[Made]) -> None:
    """Put the table in the page, with the day."""
    text = f"{datetime.now(UTC):%Y-%m-%d}:\n\n{table(all_made)}\n"
    PAGE.write_text(_BETWEEN.sub(lambda _: text, PAGE.read_text()))
