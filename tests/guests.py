# SPDX-License-Identifier: Apache-2.0
"""How much a test does in an emulated guest, which is 16 to 40 times slower than its host.

The host tries the many. A guest is there to find what its kernel does differently, which shows in
few.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import pytest

IN_GUEST = bool(os.environ.get("TOWPATH_GUEST"))
"""Whether this is one of the kernel matrix's guests."""

T = TypeVar("T")
MAX_PARAMETERS = 4
COSTS = Path(__file__).with_name("guest_costs.json")
_SHARE = 50


def examples(on_host: int, fewest: int = 100) -> int:
    """How many examples to try: ``on_host``, or in a guest a fiftieth, but ``fewest`` at least."""
    return max(fewest, on_host // _SHARE) if IN_GUEST else on_host


def thinned(items: Iterable[pytest.Item]) -> tuple[list[pytest.Item], list[pytest.Item]]:
    """Of each test with many sets of parameters a few, evenly chosen; and those left out."""
    by_test: dict[str, list[pytest.Item]] = {}
    for item in items:
        by_test.setdefault(item.nodeid.partition("[")[0], []).append(item)
    kept, left = [], []
    for alike in by_test.values():
        step = -(-len(alike) // MAX_PARAMETERS)
        kept += alike[::step]
        left += [item for i, item in enumerate(alike) if i % step]
    return kept, left


def unmarked(
    items: Iterable[pytest.Item], marker: str
) -> tuple[list[pytest.Item], list[pytest.Item]]:
    """Those without a marker; and those that have it."""
    kept: list[pytest.Item] = []
    left: list[pytest.Item] = []
    for item in items:
        (left if item.get_closest_marker(marker) else kept).append(item)
    return kept, left


def costs() -> dict[str, float]:
    """Seconds that each module of tests of programs took in a guest.

    `make kernels WRITE=1` writes them.
    """
    known: dict[str, float] = json.loads(COSTS.read_text()) if COSTS.exists() else {}
    return known


def divided(
    items: Iterable[pytest.Item], part: int, parts: int, costs: Mapping[str, float]
) -> tuple[list[pytest.Item], list[pytest.Item]]:
    """What a guest runs that shares the tests of programs with others; and those left out.

    Whole modules, so that what their tests have in common is loaded once, and as many for each
    guest as give all about as much to do. Of a test's sets of parameters one. Everything else is
    run in each guest.
    """
    modules: dict[str, dict[str, list[pytest.Item]]] = {}
    kept: list[pytest.Item] = []
    left: list[pytest.Item] = []
    for item in items:
        module, _, name = item.nodeid.partition("::")
        if module.startswith("tests/prog/"):
            alike = modules.setdefault(module, {}).setdefault(name.partition("[")[0], [])
            alike.append(item)
        else:
            kept.append(item)
    cost = {module: costs.get(module, len(tests)) for module, tests in modules.items()}
    load = [0.0] * parts
    for module in sorted(modules, key=lambda module: (-cost[module], module)):
        least = min(range(parts), key=load.__getitem__)
        load[least] += cost[module]
        for alike in modules[module].values():
            chosen = part % len(alike) if least == part else None
            kept += [item for at, item in enumerate(alike) if at == chosen]
            left += [item for at, item in enumerate(alike) if at != chosen]
    return kept, left


def cases(on_host: Sequence[T], step: int) -> Sequence[T]:
    """Which of many alike cases to try: all, or in a guest every so manieth."""
    return on_host[::step] if IN_GUEST else on_host
