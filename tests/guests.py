# SPDX-License-Identifier: Apache-2.0
"""How much a test does in an emulated guest, which is 16 to 40 times slower than its host.

The host tries the many. A guest is there to find what its kernel does differently, which shows in
few.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import pytest

IN_GUEST = bool(os.environ.get("TOWPATH_GUEST"))
"""Whether this is one of the kernel matrix's guests."""

T = TypeVar("T")
MOST_PARAMETERS = 4
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


def divided(
    items: Iterable[pytest.Item], part: int, parts: int
) -> tuple[list[pytest.Item], list[pytest.Item]]:
    """Of the tests of programs every so manieth, from one on; all others; and those left out."""
    numbers: dict[str, int] = {}
    kept: list[pytest.Item] = []
    left: list[pytest.Item] = []
    for item in items:
        name = item.nodeid.partition("[")[0]
        mine = not name.startswith("tests/prog/")
        mine = mine or numbers.setdefault(name, len(numbers)) % parts == part
        (kept if mine else left).append(item)
    return kept, left


def cases(on_host: Sequence[T], step: int) -> Sequence[T]:
    """Which of many alike cases to try: all, or in a guest every so manieth."""
    return on_host[::step] if IN_GUEST else on_host
