# SPDX-License-Identifier: Apache-2.0
"""What figures beside kube-proxy's are held to."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from tools.kubernetes import checks

RESULTS = Path(__file__).resolve().parents[2] / "docs/results/kubernetes.json"


@pytest.fixture
def found() -> dict[str, Any]:
    """What docs/performance.md has, and an agent's memory as it is by now."""
    made: dict[str, Any] = json.loads(RESULTS.read_text())
    for row in made["rows"]:
        row["resident_mib"] = min(row["resident_mib"], 180.0)
    return made


def test_figures_within_their_limits_pass(found: dict[str, Any]) -> None:
    """Those that are published."""
    assert checks.scale(found) == []
    assert checks.told([]) == 0


@pytest.mark.parametrize(
    ("services", "change", "told"),
    [
        (10, {"change_ms": {"p50": 99.0, "p99": 1.0}}, "change at rest, p50"),
        (3_000, {"change_ms": {"p50": 1.0, "p99": 18.0}}, "change at rest, p99"),
        (10, {"change_beside_ms": {"p50": 52.0, "p99": 1.0}}, "change beside others, p50"),
        (10_000, {"first_sync_s": 8.0}, "first sync"),
        (10_000, {"resident_mib": 191.0}, "resident"),
    ],
)
def test_one_above_its_limit_is_told(
    found: dict[str, Any], services: int, change: dict[str, Any], told: str
) -> None:
    """That one alone, and where it is."""
    for each in found["rows"]:
        if (each["proxy"], each["services"]) == ("towpath", services):
            each.update(change)
    (failure,) = checks.scale(found)
    assert failure.startswith(f"{services:,} Services: {told}")
    assert checks.told([failure]) == 1


def test_limits_of_other_sizes_are_not_asked_for(found: dict[str, Any]) -> None:
    """Ten Services may take as long as it takes an agent to start."""
    found["rows"] = [each for each in found["rows"] if each["services"] == 10]
    assert checks.scale(found) == []


def test_without_kube_proxy_nothing_is_known(found: dict[str, Any]) -> None:
    """It fails."""
    found["rows"] = [each for each in found["rows"] if each["proxy"] == "towpath"]
    assert any("kube-proxy's isn't known" in each for each in checks.scale(found))


def test_requests_that_failed_and_late_removals_are_told() -> None:
    """In each part; removals and CPU time where endpoints change."""
    asked = {"requests": 100, "failed": {}}
    ours = {
        "node": asked,
        "outside": asked,
        "reached_after_removal": {"p99_ms": 80.0},
        "cpu_ms_each_change": 1.5,
    }
    theirs = copy.deepcopy(ours) | {"reached_after_removal": {"p99_ms": 900.0}}
    good = {"towpath": {"endpoints": ours}, "kube-proxy": {"endpoints": theirs}}
    assert checks.churn(good) == []
    bad = copy.deepcopy(good)
    bad["towpath"]["endpoints"]["node"] = {"requests": 100, "failed": {"TimeoutError": 2}}
    bad["towpath"]["endpoints"]["reached_after_removal"] = {"p99_ms": 400.0}
    bad["towpath"]["endpoints"]["cpu_ms_each_change"] = 4.9
    first, second, third = checks.churn(bad)
    assert first == "endpoints: 2 of 100 requests failed"
    assert "last connection after removal, p99, ms: 400, kube-proxy 900" in second
    assert "CPU time of a change" in third
