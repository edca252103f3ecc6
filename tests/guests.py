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
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import pytest

IN_GUEST = bool(os.environ.get("TOWPATH_GUEST"))
"""Whether this is one of the kernel matrix's guests."""

T = TypeVar("T")
MAX_PARAMETERS = 4
COSTS = Path(__file__).with_name("guest_costs.json")
_SHARE = 50


_LOGIC = {
    "lb": "affinity allow_from allow_from_kept authentication clocks echo encap_kinds endings"
    " extensions fast flood flow_table flow_timeout flows fragments hash_by icmp_errors l2"
    " malformed other_family outer_source ports ports_capacity quic removal resets reuse"
    " route_from states states_kept trace trace_slow_path untouched vips vlan ways_by_flow",
    "snat": "authentication fast flow_timeout flows fragments fragments_lost fragments_tables"
    " halves icmp martians other_family ports record removal resets reuse services table"
    " ways_by_flow",
    "recorder": "filters memory",
    "decap": "between untouched",
    "masquerade": "errors fragments",
    "neigh": "differences",
    "packets": "errors fragments translation",
    "wildcard": "tutorial",
}
LOGIC = frozenset(
    f"tests/prog/{folder}/test_{name}.py"
    for folder, names in _LOGIC.items()
    for name in names.split()
)
"""Modules of what programs decide, by instructions that all kernels have: guests that share tests
leave them to the host, and `make kernels` runs them in each kernel."""


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


def beyond_logic(
    items: Iterable[pytest.Item],
) -> tuple[list[pytest.Item], list[pytest.Item]]:
    """Those that are in no module of `LOGIC`; and those that are."""
    kept: list[pytest.Item] = []
    left: list[pytest.Item] = []
    for item in items:
        (left if item.nodeid.partition("::")[0] in LOGIC else kept).append(item)
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
    modules, kept = _by_module(items, lambda item: item.nodeid.startswith("tests/prog/"))
    left: list[pytest.Item] = []
    for module, whose in _spread(modules, parts, costs).items():
        by_test: dict[str, list[pytest.Item]] = {}
        for item in modules[module]:
            by_test.setdefault(item.nodeid.partition("[")[0], []).append(item)
        for alike in by_test.values():
            chosen = part % len(alike) if whose == part else None
            kept += [item for at, item in enumerate(alike) if at == chosen]
            left += [item for at, item in enumerate(alike) if at != chosen]
    return kept, left


def divided_lab(
    items: Iterable[pytest.Item], part: int, parts: int, costs: Mapping[str, float]
) -> tuple[list[pytest.Item], list[pytest.Item]]:
    """The same for the lab's tests for guests: some kernel has what the host lacks.

    Whole modules again, but for what is marked ``each_kernel``, and all sets of parameters.
    """
    modules, kept = _by_module(
        items,
        lambda item: (
            item.nodeid.startswith("tests/guest/") and not item.get_closest_marker("each_kernel")
        ),
    )
    left: list[pytest.Item] = []
    for module, whose in _spread(modules, parts, costs).items():
        (kept if whose == part else left).extend(modules[module])
    return kept, left


def _by_module(
    items: Iterable[pytest.Item], wanted: Callable[[pytest.Item], object]
) -> tuple[dict[str, list[pytest.Item]], list[pytest.Item]]:
    """Those that are wanted by their modules, and all others."""
    modules: dict[str, list[pytest.Item]] = {}
    others: list[pytest.Item] = []
    for item in items:
        if wanted(item):
            modules.setdefault(item.nodeid.partition("::")[0], []).append(item)
        else:
            others.append(item)
    return modules, others


def _spread(
    modules: Mapping[str, Sequence[pytest.Item]], parts: int, costs: Mapping[str, float]
) -> dict[str, int]:
    """Which part has each module: dear ones first, each where there is least to do."""
    names = {
        module: len({item.nodeid.partition("[")[0] for item in items})
        for module, items in modules.items()
    }
    cost = {module: costs.get(module, count) for module, count in names.items()}
    load = [0.0] * parts
    found = {}
    for module in sorted(modules, key=lambda module: (-cost[module], module)):
        found[module] = min(range(parts), key=load.__getitem__)
        load[found[module]] += cost[module]
    return found


def cases(on_host: Sequence[T], step: int) -> Sequence[T]:
    """Which of many alike cases to try: all, or in a guest every so manieth."""
    return on_host[::step] if IN_GUEST else on_host
