# SPDX-License-Identifier: Apache-2.0
"""Writes what was compiled, and with what, into docs/install.md."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from tools.debian import page

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tools.compilers.build import Made

_HEAD = ("", "clang", "libbpf's headers", "the kernel's headers", "objects")


def write(all_made: Iterable[Made]) -> None:
    """Put what was made in the page, one line for each compiler, with the day."""
    rows = [
        (made.compiler.distribution.title, made.clang, made.libbpf, made.headers, str(made.objects))
        for made in all_made
    ]
    page.write("compilers", f"{datetime.now(UTC):%Y-%m-%d}:\n\n{page.table(_HEAD, *rows)}\n")
