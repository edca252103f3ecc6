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
MOST_PARAMETERS = 4
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
        step = -(-len(alike) // MOST_PARAMETERS)
        kept += alike[::step]
        left += [item for i, item in enumerate(alike) if i % step]
    return kept, left


def for_guests(items: Iterable[pytest.Item]) -> tuple[list[pytest.Item], list[pytest.Item]]:
    """Those that guests run; and those marked `host`: no kernel makes a difference to them."""
    kept: list[pytest.Item] = []
    left: list[pytest.Item] = []
    for item in items:
        (left if item.get_closest_marker("host") else kept).append(item)
    return kept, left


def costs() -> dict[str, float]:
    """Seconds that each costly test took in the slowest guest, by its name without parameters.

    `make kernels WRITE=1` writes them.
    """
    known: dict[str, float] = json.loads(COSTS.read_text()) if COSTS.exists() else {}
    return known


def divided(
    items: Iterable[pytest.Item], part: int, parts: int, costs: Mapping[str, float]
) -> tuple[list[pytest.Item], list[pytest.Item]]:
    """What guests that share the costly tests run in one of them; and those left out.

    Of the costly ones each goes to one guest, those with parameters to as many as there are sets
    of them, each to another; so that all have about as much to do. Each guest runs all others.
    """
    costly: dict[str, list[pytest.Item]] = {}
    kept, left = [], []
    for item in items:
        name = item.nodeid.partition("[")[0]
        if name in costs:
            costly.setdefault(name, []).append(item)
        else:
            kept.append(item)
    load = [0.0] * parts
    for name in sorted(costly, key=lambda name: (-costs[name], name)):
        alike = costly[name]
        least = sorted(range(parts), key=load.__getitem__)
        for number, item in enumerate(alike):
            if number >= parts:
                left.append(item)
                continue
            load[least[number]] += costs[name]
            (kept if least[number] == part else left).append(item)
    return kept, left


def cases(on_host: Sequence[T], step: int) -> Sequence[T]:
    """Which of many alike cases to try: all, or in a guest every so manieth."""
    return on_host[::step] if IN_GUEST else on_host
