# SPDX-License-Identifier: Apache-2.0
"""The benchmark of masquerade has each way translate what it says, and leaves nothing."""

from __future__ import annotations

import json
import os

import pytest
from click.testing import CliRunner
from tests.lab.test_bench_forward import surroundings

from towpath.bench.forward_ways import MASQUERADE, NFT_MASQUERADE, REDIRECT_SKB
from towpath.cli.main import cli
from towpath.kernel.bpf import probe

pytestmark = pytest.mark.skipif(
    not probe.live_frames() or len(os.sched_getaffinity(0)) == 1,
    reason="needs live frames (Linux 5.18) and two CPUs",
)


def test_json() -> None:
    """Nanoseconds of the program's, and packets a second of each way beside nftables."""
    options = ["bench", "masquerade", "--flows", "500", "--runs", "1", "--seconds", "0.02"]
    CliRunner().invoke(cli, options, catch_exceptions=False)  # opens files that stay open
    before = surroundings()
    result = CliRunner().invoke(cli, [*options, "--json"], catch_exceptions=False)
    assert surroundings() == before
    report = json.loads(result.stdout)
    names = [REDIRECT_SKB, NFT_MASQUERADE, MASQUERADE]
    assert [way["name"] for way in report["ways"]] == names
    for way in report["ways"]:
        pace = way["packets_per_second"]
        assert 0 < pace["min"] == pace["p50"] <= way["offered_per_second"]
    assert report["ways"][1]["ratio"]["p50"] == 1
    assert report["ratio_to_nftables"]["median"] == report["ways"][2]["ratio"]["p50"]
    assert [way["name"] for way in report["new_flows"]] == names[1:]
    assert all(way["packets_per_second"]["min"] > 0 for way in report["new_flows"])
    held = report["held"]
    assert held["asked"] * 0.99 < held["flows"] <= held["asked"] == 500_000
    assert held["bytes"] > held["flows"] * 64
    assert 0 < report["ns_per_packet"]["out"]["p50"] < report["ns_per_packet"]["new"]["p50"]
