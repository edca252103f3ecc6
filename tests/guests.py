# SPDX-License-Identifier: Apache-2.0
"""How much a test does: on the host, and in an emulated guest, which is 16 to 40 times slower.

The host tries many examples, and all of them with TOWPATH_THOROUGH set (`make test THOROUGH=1`).
A guest is there to find what its kernel does differently, which shows in few.
"""

from __future__ import annotations

import json
import os
import time
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    import pytest

THOROUGH = bool(os.environ.get("TOWPATH_THOROUGH"))
"""Whether to try all, however long it takes."""
IN_GUEST = bool(os.environ.get("TOWPATH_GUEST"))
"""Whether this is one of the kernel matrix's guests."""

NO_TIME = "no time was left for it"
"""Why a test was skipped that had not begun in time."""

T = TypeVar("T")
MAX_PARAMETERS = 4
COSTS = Path(__file__).with_name("guest_costs.json")
_SHARE, _SHARE_IN_GUEST = 3, 50
_UNKNOWN_SECONDS = 10.0
_DAY = 86400


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


def examples(all_of_them: int, fewest: int = 100) -> int:
    """How many examples to try: a third of all, in a guest a fiftieth, and not below ``fewest``."""
    if THOROUGH:
        return all_of_them
    share = _SHARE_IN_GUEST if IN_GUEST else _SHARE
    return min(all_of_them, max(fewest, all_of_them // share))


def lines() -> Iterator[int]:
    """Numbers without end at which something is tried: a third of all, others from day to day."""
    step = 1 if THOROUGH else _SHARE
    return count(int(time.time() // _DAY) % step, step)


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


def one_each(
    items: Iterable[pytest.Item], number: int
) -> tuple[list[pytest.Item], list[pytest.Item]]:
    """Of each test of programs one set of parameters, another for another ``number``; the others.

    Everything else is kept.
    """
    by_test: dict[str, list[pytest.Item]] = {}
    kept: list[pytest.Item] = []
    left: list[pytest.Item] = []
    for item in items:
        if item.nodeid.startswith("tests/prog/"):
            by_test.setdefault(item.nodeid.partition("[")[0], []).append(item)
        else:
            kept.append(item)
    for alike in by_test.values():
        chosen = number % len(alike)
        kept.append(alike[chosen])
        left += alike[:chosen] + alike[chosen + 1 :]
    return kept, left


def shared(
    modules: Collection[str], among: Mapping[str, float], costs: Mapping[str, float]
) -> dict[str, list[str]]:
    """Which of ``modules`` each guest runs: as many as give all about as much to do.

    Whole modules, so that what their tests have in common is loaded once. ``among``: by the
    guest's name the seconds of what it has to do already. In each share the cheap ones come first,
    so that the fewest are left where time is out.
    """
    load = dict(among)
    shares: dict[str, list[str]] = {name: [] for name in among}
    for module in sorted(modules, key=lambda module: (-_cost(module, costs), module)):
        name = min(load, key=load.__getitem__)
        shares[name].append(module)
        load[name] += _cost(module, costs)
    return {name: share[::-1] for name, share in shares.items()}


def sum_of(modules: Iterable[str], costs: Mapping[str, float]) -> float:
    """Seconds that modules take in a guest; of unknown ones it is guessed."""
    return sum(_cost(module, costs) for module in modules)


def _cost(module: str, costs: Mapping[str, float]) -> float:
    return costs.get(module, _UNKNOWN_SECONDS)


def cases(on_host: Sequence[T], step: int) -> Sequence[T]:
    """Which of many alike cases to try: all, or in a guest every so manieth."""
    return on_host[::step] if IN_GUEST else on_host
