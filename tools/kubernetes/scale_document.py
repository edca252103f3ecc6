# SPDX-License-Identifier: Apache-2.0
"""Writes the table of docs/performance.md, and docs/results, from what a large cluster costs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ROOT = Path(__file__).resolve().parents[2]
PAGE, RESULTS = ROOT / "docs/performance.md", ROOT / "docs/results/kubernetes.json"
BEGIN, END = "<!-- scale: written by tools.kubernetes.scale -->\n", "<!-- to here -->\n"
_NAMES = {"kube-proxy": "kube-proxy 1.37.2, nftables", "towpath": "Towpath"}


def table(found: Mapping[str, Any]) -> str:
    """Return the rows of all sizes, the proxies side by side."""
    rows = found["rows"]
    proxies = [name for name in _NAMES if any(row["proxy"] == name for row in rows)]
    head = ["", *(_NAMES[name] for name in proxies)]
    lines = ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    for services in sorted({row["services"] for row in rows}):
        by = {row["proxy"]: row for row in rows if row["services"] == services}
        for what, cells in _lines(services, by, proxies):
            lines.append("| " + " | ".join((what, *cells)) + " |")
    return "\n".join(lines) + "\n"


def _lines(
    services: int, by: Mapping[str, Mapping[str, Any]], proxies: list[str]
) -> Iterator[tuple[str, list[str]]]:
    def of(key: str, unit: str) -> list[str]:
        return [_told(by[name][key], unit) if name in by else "-" for name in proxies]

    def both(key: str) -> list[str]:
        cells = (by[name][key] if name in by else None for name in proxies)
        return [f"{each['p50']} / {each['p99']} ms" if each else "-" for each in cells]

    what = f"{services:,} Services"
    yield f"**{what}**: from the start until they are in force", of("first_sync_s", "s")
    yield "CPU time until then", of("first_sync_cpu_s", "s")
    yield "resident after all changes, without maps of BPF", of("resident_mib", "MiB")
    yield "held by the kernel", of("kernel_mib", "MiB")
    yield "CPU at rest, of a core over 30 s", of("rest_percent", "%")
    yield "from the PUT of a slice to the first connection that obeys, p50 / p99", both("change_ms")
    yield "the same while another slice changes ten times a second", both("change_beside_ms")
    yield "CPU time of a change", of("cpu_ms_each_change", "ms")
    yield "connect() to an address of no Service, p50", _connects(by, proxies, "connect_other_us")


def _connects(by: Mapping[str, Mapping[str, Any]], proxies: list[str], key: str) -> list[str]:
    return [f"{by[name][key]['p50']} us" if name in by else "-" for name in proxies]


def _told(value: float | None, unit: str) -> str:
    return "not told" if value is None else f"{value} {unit}"


def written(page: str, found: Mapping[str, Any]) -> str:
    """Return the page with the table in place of the one that is there."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    return before + begin + table(found) + end + after


def write(found: Mapping[str, Any]) -> None:
    """Put it into the page and the results."""
    RESULTS.write_text(json.dumps(found, indent=2) + "\n")
    PAGE.write_text(written(PAGE.read_text(), found))
