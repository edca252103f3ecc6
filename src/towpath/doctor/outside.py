# SPDX-License-Identifier: Apache-2.0
"""What Towpath uses from outside its own Python packages, and what this machine has of it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from towpath.kernel import _libc

TABLE = Path(__file__).with_name("outside.txt")
_SYSTEM = "/usr/sbin:/sbin"


@dataclass(frozen=True, slots=True)
class Need:
    """One line of the table."""

    ways: tuple[str, ...]
    """Programs, files (with a slash) and libraries (lib*.so*); any of them will do."""
    packages: tuple[str, ...]
    """The first that the distribution has is installed."""
    users: tuple[str, ...]
    needed_by: str
    """Which part of an installed Towpath; empty: none, it is for who builds and tests Towpath."""
    loses: str
    """What that goes without."""

    @property
    def name(self) -> str:
        """How it is called in the diagnosis."""
        return self.ways[0]

    def found(self) -> str:
        """Where there is one of the ways; empty: there is none."""
        return next((found for each in self.ways if (found := _find(each))), "")


@cache
def declared() -> tuple[Need, ...]:
    """Return the table's lines."""
    lines = TABLE.read_text().splitlines()
    return tuple(_need(line) for line in lines if line and not line.startswith("#"))


def _need(line: str) -> Need:
    what, package, users, *without = line.split(maxsplit=3)
    needed_by, _, loses = "".join(without).partition(": ")
    return Need(
        tuple(what.split("|")),
        tuple(package.split("|")),
        tuple(users.split(",")),
        needed_by,
        loses,
    )


def _find(what: str) -> str:
    if what.startswith("/"):
        return what if Path(what).exists() else ""
    if is_library(what):
        return what if _libc.has_library(what) else ""
    return shutil.which(what) or shutil.which(what, path=_SYSTEM) or ""


def is_library(what: str) -> bool:
    """Whether this is the name of a library, neither a program's nor a file's."""
    return what.startswith("lib") and ".so" in what


def is_program(what: str) -> bool:
    """Whether this is the name of a program."""
    return not what.startswith("/") and not is_library(what)
