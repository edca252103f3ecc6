# SPDX-License-Identifier: Apache-2.0
"""The compilers that Towpath is made for. This is the one list.

Majors are named here: a release of Debian has several beside each other. Of a major, of libbpf and
of the kernel's headers it has one version at a time, and that one is tried: unstable's archive
keeps no other. A major that is newer than all that are named is told, and where nothing depends on
it (outside CI) it is tried; nothing fails because of it until somebody names it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tools.debian.distributions import Distribution, named

from towpath.doctor.outside import declared

ROOT = Path(__file__).resolve().parents[2]
# hatch_build.py is run by this machine's Python, and fetches nothing.
_NOT_COMPILERS = {"python3-venv", "ca-certificates"}


@dataclass(frozen=True, slots=True)
class Compiler:
    """A clang, with the headers of the same release of Debian."""

    major: int
    distribution: Distribution
    loaded: bool = False
    """Whether the kernels of the matrix (``tools/kernels``) load what it makes."""
    blocking: bool = True
    """Whether a failure fails the run."""

    @property
    def title(self) -> str:
        """How it is called."""
        return f"{self.distribution.title}, clang {self.major}"

    @property
    def name(self) -> str:
        """What its directories are called."""
        return f"{self.distribution.name}-clang-{self.major}"

    @property
    def packages(self) -> list[str]:
        """What it takes to compile Towpath, as outside.txt has it, of this major."""
        ours = {each: f"{each}-{self.major}" for each in ("clang", "llvm")}
        wanted = [each.packages[0] for each in declared() if "build" in each.users]
        return [ours.get(each, each) for each in wanted if each not in _NOT_COMPILERS]

    @property
    def made(self) -> Path:
        """Where what it has made is put: ``objects``, ``kept`` and ``report.json``."""
        return ROOT / "build" / "compilers" / self.name


OLDEST = Compiler(14, named("bookworm"))
NEWEST = Compiler(23, named("sid"), loaded=True)
SUPPORTED = (OLDEST, NEWEST)
