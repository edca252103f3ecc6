# SPDX-License-Identifier: Apache-2.0
"""The benchmark of changes times what there is, and leaves nothing."""

from __future__ import annotations

import json
import socket
from pathlib import Path

from click.testing import CliRunner

from towpath.cli.main import cli
from towpath.kernel.bpf.bpffs import ROOT

BRIEF = ["bench", "control", "--services", "3", "--rounds", "1", "--changes", "2"]
FEW = [*BRIEF, "--large", "0"]


def surroundings() -> object:
    """What the benchmark must leave as it was."""
    home = Path("/proc/thread-self/ns/net").stat().st_ino
    return socket.if_nameindex(), home, sorted(ROOT.iterdir())


def test_json() -> None:
    """Each figure, and ratios to what was measured beside it."""
    before = surroundings()
    result = CliRunner().invoke(cli, [*BRIEF, "--large", "2", "--json"], catch_exceptions=False)
    report = json.loads(result.stdout)
    assert (report["services"], report["backends"]) == (3, 10)
    for name in ("one_ms", "many_ms", "all_ms", "python_ms", "command_ms"):
        assert 0 < report[name]["min"] == report[name]["p50"] == report[name]["max"]
    for name, this, that in (
        ("ratio", "many_ms", "one_ms"),
        ("command_ratio", "command_ms", "python_ms"),
    ):
        assert abs(report[name]["p50"] - report[this]["p50"] / report[that]["p50"]) < 0.02
    assert report["resident_mib"] > 10
    large = report["large"]
    assert (large["services"], large["backends"]) == (2, 10)
    for name in ("begin_bare_s", "apply_s", "begin_s"):
        assert 0 <= large[name]["min"] <= large[name]["p50"] <= large[name]["max"]
    assert large["settle_s"]["min"] >= large["begin_s"]["min"] > 0
    assert min(large["resident_mib"], large["resident_again_mib"]) > 10
    assert surroundings() == before


def test_table() -> None:
    """People get a table."""
    result = CliRunner().invoke(cli, FEW, catch_exceptions=False)
    assert result.exit_code == 0
    assert "a change, 3 services there" in result.stdout
    assert "towpath --help" in result.stdout
