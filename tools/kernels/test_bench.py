# SPDX-License-Identifier: Apache-2.0
"""Results that are kept, and what is drawn from them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tools.kernels import figure
from tools.kernels.bench import RATES, merged, turns

if TYPE_CHECKING:
    from pathlib import Path


def latency(way: str, rate: int, p99: float) -> dict[str, Any]:
    """A row."""
    return {"way": way, "rate": rate, "traffic": "tcp-cubic-2", "p99": p99}


def test_results_take_the_place_of_those_they_are_of() -> None:
    """Others stay, and so do parts that weren't measured."""
    before = {
        "kernel": "6.12.1",
        "fairness": [{"rate": 5, "flows": 2, "small": 0}],
        "latency": [latency("cake", 10, 4.0), latency("cake", 20, 4.0)],
    }
    found = {"kernel": "6.12.2", "latency": [latency("cake", 20, 3.0), latency("tbf", 20, 90.0)]}
    made = merged(before, found)
    assert made["kernel"] == "6.12.2"
    assert made["fairness"] == before["fairness"]
    assert made["latency"] == [
        latency("cake", 10, 4.0),
        latency("cake", 20, 3.0),
        latency("tbf", 20, 90.0),
    ]


def test_each_limit_is_measured_once() -> None:
    """In full three times each, which is the benchmark's own number."""
    full = list(turns(full=True))
    assert [words for words in full if "accuracy" in words] == [
        ["--part", "accuracy", "--rate", rate] for rate in RATES
    ]
    assert sum("latency" in words for words in full) == len(RATES)
    assert [words for words in full if "fairness" in words] == [
        ["--part", "fairness", "--rate", "100M"]
    ]
    assert all(words[-2:] == ["--runs", "1"] for words in list(turns(full=False))[:-1])


def test_the_same_picture_is_drawn_of_the_same_results(tmp_path: Path) -> None:
    """So that it changes with the results only."""
    for kernel, kept in (("5.10", False), ("6.12", True)):
        stamps = {
            "kernel": f"{kernel}.1-amd64",
            "kept": kept,
            "limit": 100_000_000,
            "pace": 20_000_000,
            "times": [0.1, 0.2],
            "rates": [19_000_000, 21_000_000],
        }
        (tmp_path / f"bandwidth-{kernel}.json").write_text(json.dumps({"stamps": stamps}))
    first = figure.draw(tmp_path, ("5.10", "6.12")).read_text()
    assert figure.draw(tmp_path, ("5.10", "6.12")).read_text() == first
    assert "<svg" in first
