# SPDX-License-Identifier: Apache-2.0
"""The demo, end to end: the real agent, real clients, real servers, and nothing left of it."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING, Any

import pytest
from tests.lab.harness_lab import assert_nothing_left, leftovers, start, towpath

from towpath.lab.web import LARGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

REQUESTS = 120


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    assert leftovers() == []
    yield
    assert_nothing_left()


@pytest.fixture(scope="module")
def demo_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one small demo has written."""
    directory = tmp_path_factory.mktemp("demo")
    done = towpath(
        *("lab", "demo", "--backends", "3"),
        *("--requests", str(REQUESTS), "--output", str(directory)),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return directory


@pytest.fixture
def summary(demo_out: Path) -> dict[str, Any]:
    """Its figures."""
    found: dict[str, Any] = json.loads((demo_out / "summary.json").read_text())
    return found


def test_every_request_is_answered_over_both_families(summary: dict[str, Any]) -> None:
    """Before and after a backend is removed, none is lost, not even the first."""
    for phase in (summary, summary["after_removal"]):
        assert phase["requests"] == phase["answers"] == 2 * REQUESTS
        for family in ("ipv4", "ipv6"):
            assert phase["families"][family] == {"requests": REQUESTS, "answers": REQUESTS}
            served = [backend[family] for backend in phase["backends"].values()]
            assert sum(served) == REQUESTS


def test_shares_follow_the_weights(summary: dict[str, Any]) -> None:
    """be1 has twice the weight of the others; chance alone stays within five deviations."""
    for family in ("ipv4", "ipv6"):
        for backend in summary["backends"].values():
            expected = backend["expected_share"]
            deviation = (expected * (1 - expected) / REQUESTS) ** 0.5
            assert abs(backend[family] / REQUESTS - expected) < 5 * deviation


def test_a_removed_backend_gets_nothing_and_downloads_go_on(summary: dict[str, Any]) -> None:
    """Downloads that were under way end with every byte of the backend that began them."""
    after = summary["after_removal"]
    removed = after["backends"][after["removed"]]
    assert removed["ipv4"] == removed["ipv6"] == 0
    for download in after["downloads"].values():
        assert download["whole"]
        assert download["backend"] != after["removed"]
        assert 0 < download["bytes_before_removal"] < download["bytes"] == LARGE_SIZE


def test_the_balancer_dropped_nothing(summary: dict[str, Any]) -> None:
    """Its counters say so, and that it has sent every packet of every request."""
    verdicts = summary["counters"]["verdicts"]
    assert not {name: n for name, n in verdicts.items() if name.startswith("drop_") and n}
    assert verdicts["tx"] > 4 * REQUESTS


def test_the_plot_is_a_picture(demo_out: Path) -> None:
    """A PNG file with something in it."""
    assert (demo_out / "distribution.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_too_few_backends_are_refused() -> None:
    """A backend is removed while up to two others serve downloads."""
    refused = towpath("lab", "demo", "--backends", "2")
    assert refused.returncode == 1
    assert refused.stderr == "Error: backends: 2; the demo needs 3 or more\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("seen", ["lab:", "agent in tp-lb", "Requests through"])
def test_an_interrupted_demo_leaves_nothing(
    seen: str, number: signal.Signals, tmp_path: Path
) -> None:
    """Whenever it is stopped, and even when it is stopped twice."""
    demo = start("lab", "demo", "--output", str(tmp_path))
    assert demo.stdout is not None
    assert any(line.startswith(seen) for line in demo.stdout)
    demo.send_signal(number)
    demo.send_signal(number)
    output, _ = demo.communicate(timeout=120)
    assert demo.returncode == -number, output
