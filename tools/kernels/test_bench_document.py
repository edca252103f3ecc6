# SPDX-License-Identifier: Apache-2.0
"""Tables of results, in the page."""

from __future__ import annotations

import json

from tools.kernels import bench_document
from tools.kernels.bench import KERNEL, results

FOUND = {
    "latency": [
        {"way": "cake", "rate": 10_000_000, "p50": 0.9504, "p99": 12.34},
        {"way": "cni-1.9.1", "rate": 20_000_000, "p50": 99.0, "p99": 109.0},
    ],
    "accuracy": [
        {
            "traffic": "udp-0.9",
            "rate": 10_000_000,
            "median": -0.004,
            "worst": 1.5,
            "began": 4,
            "dropped": 0,
            "runs": 3,
        }
    ],
    "separate": [{"pod": "other", "rate": 10_000_000, "traffic": "udp-10", "error": 0.1}],
}
PAGE = """Before.
<!-- latency: written by make kernels-bench -->
old
<!-- to here -->
between
<!-- accuracy: written by make kernels-bench -->
<!-- to here -->
<!-- fairness: written by make kernels-bench -->
<!-- to here -->
After.
"""


def test_tables_take_the_place_of_those_that_are_there() -> None:
    """Nothing else in the page is otherwise."""
    page = bench_document.written(PAGE, FOUND)
    lines = page.splitlines()
    assert (lines[0], lines[-1]) == ("Before.", "After.")
    assert "old" not in page
    assert "between" in lines
    assert "| CAKE on an ifb | 0.950 / 12.3 | - |" in lines
    assert "| CNI bandwidth plugin 1.9.1 | - | 99.0 / 109.0 |" in lines
    assert "| udp-0.9 | -0.00 / +1.50 % of 3, 4 + 0 dropped |" in lines
    assert "| the other of two pods, 10M of its own, udp-10 | - | - | +0.10 % |" in lines
    assert bench_document.written(page, FOUND) == page


def test_the_page_has_what_was_found() -> None:
    """It isn't written by hand."""
    found = json.loads((bench_document.PAGE.parents[1] / results(KERNEL)).read_text())
    page = bench_document.PAGE.read_text()
    assert bench_document.written(page, found) == page
