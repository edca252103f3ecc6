# SPDX-License-Identifier: Apache-2.0
"""The benchmark of changing next hops sees what is lost, and leaves nothing."""

from __future__ import annotations

import json

from click.testing import CliRunner
from tests.lab.test_bench_control import surroundings

from towpath.cli.main import cli

CHECKED, MAC = "backend-mac-change-checked", "backend-mac-change"


def test_json() -> None:
    """Managed neighbours heal where permanent ones never do."""
    before = surroundings()
    options = ["bench", "neigh", "--scenario", CHECKED, "--scenario", "route-change"]
    result = CliRunner().invoke(cli, [*options, "--limit", "3", "--json"], catch_exceptions=False)
    report = json.loads(result.stdout)
    found = {each["name"]: each for each in report["scenarios"]}
    assert found.keys() == {CHECKED, "route-change"}
    assert found[CHECKED]["heal_ms"] is not None
    for way in ("permanent", "kernel"):
        beside = found[CHECKED]["beside"][way]
        assert beside["heal_ms"] is None
        assert beside["lost"] > found[CHECKED]["lost"]
    assert surroundings() == before


def test_load() -> None:
    """Requests are spread out, where the kernel's own come all at once."""
    before = surroundings()
    options = ["bench", "neigh", "--load", "--hops", "150", "--seconds", "3", "--json"]
    result = CliRunner().invoke(cli, options, catch_exceptions=False)
    report = json.loads(result.stdout)
    managed, floor = report["managed"], report["floor"]
    assert managed["resolved"] == floor["resolved"] == 150
    assert managed["most_in_a_second"] < floor["most_in_a_second"]
    assert report["many"] == 10_000
    assert surroundings() == before


def test_table() -> None:
    """For people."""
    options = ["bench", "neigh", "--scenario", MAC, "--limit", "1"]
    result = CliRunner().invoke(cli, options, catch_exceptions=False)
    assert MAC in result.stdout
    assert "permanent: lost" in result.stdout
    assert "Linux" in result.stdout
