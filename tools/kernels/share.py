# SPDX-License-Identifier: Apache-2.0
"""What each guest runs where all of them share the tests, as in CI.

The host has run every test that it can. What it can't, some kernel does; and of the tests of
programs each guest does a part, but for what no kernel decides.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests import guests
from tools.kernels import inside

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from tools.kernels.supported import Kernel

_SHARED = ("lab", "prog")
# What no host runs comes first. Last is what may change the kernel for good.
_ORDER = ("degrade", "compilers", "lab", "prog", "tags")
_LEFT_OUT = re.compile(r"^pytestmark = pytest\.mark\.(host|thorough)$", re.MULTILINE)
"""In a module of which guests that share tests run nothing."""


@dataclass(frozen=True, slots=True)
class Share:
    """What a guest runs where several share the tests."""

    paths: list[str]
    number: int
    """Which of each test's sets of parameters."""
    seconds: float
    """What has not begun by then is not tried."""

    def arguments(self) -> list[str]:
        """As the words of a guest's command."""
        return [*self.paths, f"--one-of={self.number}", f"--within={self.seconds:.0f}"]


def shares(kernels: Sequence[Kernel], suites: Collection[str], seconds: float) -> list[Share]:
    """Return for each kernel what it runs of these suites, in its order."""
    costs = guests.costs()
    found: dict[str, dict[str, list[str]]] = {
        kernel.name: {
            suite: [inside.TESTS[suite]]
            for suite in kernel.suites
            if suite in suites and suite in inside.TESTS and suite not in _SHARED
        }
        for kernel in kernels
    }
    for suite in _SHARED:
        if suite in suites:
            having = [kernel.name for kernel in kernels if suite in kernel.suites]
            load = {name: _seconds(found[name].values(), costs) for name in having}
            for name, modules in guests.shared(_modules(suite), load, costs).items():
                found[name][suite] = modules
    return [
        Share([path for suite in _ORDER for path in own.get(suite, ())], number, seconds)
        for number, own in enumerate(found.values())
    ]


def _modules(suite: str) -> list[str]:
    paths = Path(inside.TESTS[suite]).rglob("test_*.py")
    found = {str(path) for path in paths if not _LEFT_OUT.search(path.read_text())}
    return sorted(found - guests.LOGIC)


def _seconds(paths: Collection[Sequence[str]], costs: Mapping[str, float]) -> float:
    """What these take, directories and modules alike."""
    modules = {
        str(module)
        for each in paths
        for path in each
        for module in ([Path(path)] if path.endswith(".py") else Path(path).rglob("test_*.py"))
    }
    return guests.sum_of(modules, costs)
