# SPDX-License-Identifier: Apache-2.0
"""The benchmark of whole nodes counts what arrives, and notices what isn't as it should be."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from towpath.bench import BenchError, forward_node, forward_rules, forward_world
from towpath.bench.forward import ForwardReport, measure
from towpath.bench.forward_ways import KUBE_PROXY, SHORT, WAYS
from towpath.cli.main import cli
from towpath.kernel.bpf import probe
from towpath.lab.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Sequence
    from ipaddress import IPv4Address

BY_NAME = {way.name: way for way in WAYS}
FLOWS, BACKENDS, SECONDS = 500, 4, 0.02

pytestmark = pytest.mark.skipif(
    not probe.live_frames() or len(os.sched_getaffinity(0)) == 1,
    reason="needs live frames (Linux 5.18) and two CPUs",
)


def briefly(*names: str, apart: bool = False) -> ForwardReport:
    """Measure some ways once, with some ten thousand packets."""
    ways = [BY_NAME[name] for name in names]
    return measure(ways, backends=BACKENDS, flows=FLOWS, runs=1, seconds=SECONDS, apart=apart)


def surroundings() -> object:
    """What the benchmark must leave as it was."""
    gc.collect()  # what tests before have let go of, and not closed, goes at any moment
    files = sorted(Path("/proc/self/fd").iterdir())
    home = Path("/proc/thread-self/ns/net").stat().st_ino
    return socket.if_nameindex(), os.sched_getaffinity(0), files, home


def test_packets_arrive_by_every_way() -> None:
    """The benchmark looks at each, and at whether the node says the same; here at the figures."""
    briefly("route")  # imports and caches open files of their own
    before = surroundings()
    report = briefly(*BY_NAME)
    assert surroundings() == before
    assert [each.name for each in report.ways] == list(BY_NAME)
    assert report.cpus.clients != report.cpus.node == report.cpus.backends
    for each in report.ways:
        pace = each.packets_per_second
        assert 0 < pace.min == pace.p50 == pace.max <= each.offered_per_second
        assert each.ratio is not None
        assert (each.ratio.p50 == 1) or each.name != KUBE_PROXY
        assert (each.cpu_ns is None) == (each.busy is None)
        assert each.runs == 1


# ---- What isn't as it should be ------------------------------------------------------------------


def changed(monkeypatch: pytest.MonkeyPatch, was: str, to: str) -> None:
    """Change a word of the short rules."""

    def rules(vip: IPv4Address, port: int, backends: Sequence[IPv4Address]) -> str:
        made = forward_rules.short(vip, port, backends)
        assert was in made
        return made.replace(was, to)

    monkeypatch.setitem(forward_node._RULES, SHORT, rules)


def test_a_source_that_is_not_translated_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packets that come from the client rather than from the node don't count."""
    changed(monkeypatch, "masquerade", "accept")
    before = surroundings()
    with pytest.raises(BenchError, match="packets arrived at backends, and 0 at clients, that are"):
        briefly(SHORT)
    assert surroundings() == before


def test_backends_without_packets_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """One backend that gets everything is no load balancing."""
    changed(monkeypatch, "numgen random", "numgen inc")
    briefly(SHORT)  # in turn, that is
    changed(monkeypatch, "mod 4", "mod 1")
    with pytest.raises(BenchError, match="of backends one had 0 packets and another"):
        briefly(SHORT)


def test_packets_that_do_not_arrive_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that drops everything is found out after a while."""
    changed(monkeypatch, "masquerade", "drop")
    monkeypatch.setattr(forward_world, "_PATIENCE", 0.2)
    with pytest.raises(BenchError, match="nftables-short: no packet arrives"):
        briefly(SHORT)


def test_no_nft_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the package that has it."""
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(BenchError, match="nft is not installed: install the package nftables"):
        briefly(KUBE_PROXY)


def test_a_kernel_that_lacks_something_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it lacks is found by trying."""
    monkeypatch.setattr(forward_rules, "_nft", lambda rules, *_: "No" if "masq" in rules else "")
    with pytest.raises(BenchError, match="this kernel has no NFT_MASQ, which"):
        briefly(KUBE_PROXY)


def test_rules_that_nft_refuses_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """In its own words."""
    changed(monkeypatch, "masquerade", "bogus")
    with pytest.raises(BenchError, match=r"nft refuses the rules: .*syntax error"):
        briefly(SHORT)


def test_one_cpu_is_too_few() -> None:
    """Clients and node would take it from each other."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        with pytest.raises(BenchError, match="only one CPU may be used"):
            briefly("route")
    finally:
        os.sched_setaffinity(0, allowed)


# ---- The command ---------------------------------------------------------------------------------

BRIEF = ["bench", "forward", "--flows", "500", "--runs", "2", "--seconds", "0.02"]


def test_json() -> None:
    """The command prints what programs read; without the baseline there is no ratio."""
    arguments = [*BRIEF, "--json", "--backends", "3", "--way", "towpath-snat"]
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    report = json.loads(result.stdout)
    assert list(report) == ["kernel", "backends", "flows", "cpus", "ways"]
    assert (report["backends"], report["flows"]) == (3, 500)
    (only,) = report["ways"]
    assert (only["name"], only["ratio"], only["runs"]) == ("towpath-snat", None, 2)
    assert list(only["packets_per_second"]) == ["p50", "min", "max"]


def test_table() -> None:
    """People get a table."""
    arguments = [*BRIEF, "--way", "route", "--way", KUBE_PROXY]
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "kube-proxy's rules" in result.stdout
    assert "as a multiple of nftables's in the same turn" in result.stdout


def test_unknown_way() -> None:
    """A name that there is not is wrong usage, and the names are listed."""
    result = CliRunner().invoke(cli, ["bench", "forward", "--way", "ipvs"])
    assert result.exit_code == 2
    assert "towpath-snat" in result.output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_benchmark_leaves_nothing(number: signal.Signals) -> None:
    """It ends at once, in the middle of a run, and its namespaces with it."""
    command = [sys.executable, "-m", "towpath", "bench", "forward", "--way", "route"]
    with ExitStack() as undo:
        running = undo.enter_context(
            subprocess.Popen(
                [*command, "--seconds", "20", "--flows", "10"], stderr=subprocess.PIPE, text=True
            )
        )
        # Else the end of the block would wait for all of its runs.
        undo.callback(running.kill)
        tasks = Path("/proc", str(running.pid), "task", str(running.pid))
        home = Path("/proc/self/ns/net").stat().st_ino
        wait_until(
            lambda: (tasks / "ns/net").stat().st_ino != home, seconds=120, what="its namespaces"
        )
        running.send_signal(number)
        _, said = running.communicate(timeout=120)
    assert running.returncode != 0
    assert "Traceback" not in said
