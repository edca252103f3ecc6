# SPDX-License-Identifier: Apache-2.0
"""The table of docs/kubernetes-conformance.md: what came of each rule with each proxy."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import TYPE_CHECKING

from tools.debian.page import table
from tools.kubernetes.versions import KUBERNETES

if TYPE_CHECKING:
    import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs/kubernetes-conformance.md"
_BEGIN, _END = "<!-- make kubernetes -->\n", "<!-- end -->\n"
_TITLES = {"kube-proxy": f"kube-proxy {KUBERNETES}", "towpath": "Towpath"}
_found: dict[str, dict[str, list[str]]] = {}
"""Outcomes by rule and proxy."""


def note(item: pytest.Function, report: pytest.TestReport) -> None:
    """Remember what a test has come to."""
    if report.when == "teardown" or (report.when == "setup" and report.passed):
        return
    rule = (item.function.__doc__ or "").strip().splitlines()[0].rstrip(".")
    proxy = str(item.callspec.params["services"])
    said: str = report.outcome
    if report.skipped and isinstance(report.longrepr, tuple):
        said = report.longrepr[2].removeprefix("Skipped: ")
    _found.setdefault(rule, {}).setdefault(proxy, []).append(said)


def write() -> None:
    """Put the table into the page; not that of a run that has left something out."""
    if not _found or any(set(by) != set(_TITLES) for by in _found.values()):
        return
    rows = [(rule, *(_cell(by[proxy]) for proxy in _TITLES)) for rule, by in _found.items()]
    text = table(("rule", *_TITLES.values()), *rows)
    before, begin, rest = PAGE.read_text().partition(_BEGIN)
    _, end, after = rest.partition(_END)
    where = f"Linux {platform.release().partition('-')[0]}, two nodes.\n\n"
    PAGE.write_text(f"{before}{begin}{where}{text}\n{end}{after}")


def _cell(outcomes: list[str]) -> str:
    """One word where all agree; else what differs."""
    return ", ".join(sorted(set(outcomes) - {"passed"})) or "yes"
