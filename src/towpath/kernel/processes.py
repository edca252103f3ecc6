# SPDX-License-Identifier: Apache-2.0
"""Processes that this one sees."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

PROC = Path("/proc")


def named(name: str) -> Iterator[Path]:
    """Yield what /proc has of each that is called so: its program, up to 15 bytes of it."""
    for process in PROC.iterdir():
        if process.name.isdigit():
            with suppress(OSError):
                if (process / "comm").read_text().strip() == name:
                    yield process
