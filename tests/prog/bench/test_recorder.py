# SPDX-License-Identifier: Apache-2.0
"""The recorder's benchmark measures what it says."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from towpath.bench import recorder
from towpath.kernel.bpf import probe

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.host


@pytest.mark.skipif(not probe.test_run_context(), reason="runs need a context: Linux 5.15")
def test_all_cases_are_timed_and_packets_reach_the_file(tmp_path: Path) -> None:
    """Each case beside the program without a recorder; at a low rate nothing is lost."""
    path = tmp_path / "x.pcapng"
    report = recorder.measure(runs=1, rates={64: 5000}, seconds=0.3, path=path)
    for size in recorder.SIZES:
        assert [each.name for each in report.costs[size]] == list(recorder.CASES)
        assert all(each.off.p50_ns > 0 < each.on.p50_ns for each in report.costs[size])
    both, inward, kept = report.throughput
    assert (kept.keep, kept.lost, kept.packets) == (1 << 26, 0, kept.offered)
    assert both.packets == both.offered > 0
    assert (both.frames, inward.frames) == (2 * both.packets, inward.packets)
    assert both.lost == inward.lost == 0
    assert both.file_bytes > both.frames * 64
    assert not path.exists()
    assert json.loads(json.dumps(report.as_json()))["costs"]["64"]
