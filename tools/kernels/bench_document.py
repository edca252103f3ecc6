# SPDX-License-Identifier: Apache-2.0
"""Writes the tables of docs/performance.md from results of pods' bandwidth."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

PAGE = Path(__file__).resolve().parents[2] / "docs/performance.md"
END = "<!-- to here -->\n"
_MEGA = 1_000_000
_WAYS = {
    "towpath": "Towpath, past the stack (`direct`)",
    "towpath-routed": "Towpath, routed",
    "cake": "CAKE on an ifb",
    "tbf": "tbf on an ifb",
}


def tables(found: Mapping[str, Any]) -> dict[str, str]:
    """Return the tables, by part."""
    return {
        "latency": _table(*_latency(found.get("latency", []))),
        "accuracy": _table(*_accuracy(found.get("accuracy", []))),
        "fairness": _table(*_fairness(found.get("fairness", []), found.get("separate", []))),
    }


def written(page: str, found: Mapping[str, Any]) -> str:
    """Return the page with these tables in place of those that are there."""
    for part, table in tables(found).items():
        before, begin, rest = page.partition(_begin(part))
        _, end, after = rest.partition(END)
        page = before + begin + table + end + after
    return page


def write(found: Mapping[str, Any]) -> None:
    """Put the tables into the page."""
    PAGE.write_text(written(PAGE.read_text(), found))


def _begin(part: str) -> str:
    return f"<!-- {part}: written by make kernels-bench -->\n"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = (head, ["---"] * len(head), *rows)
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _rates(rows: Iterable[Mapping[str, Any]]) -> list[int]:
    return sorted({row["rate"] for row in rows})


def _latency(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], Iterator[list[str]]]:
    rates = _rates(rows)
    by = {(row["way"], row["rate"]): row for row in rows}
    ways = [*_WAYS, *sorted({way for way, _ in by} - _WAYS.keys())]

    def line(way: str) -> Iterator[str]:
        yield _WAYS.get(way) or f"CNI bandwidth plugin {way.removeprefix('cni-')}"
        for rate in rates:
            row = by.get((way, rate))
            yield f"{_ms(row['p50'])} / {_ms(row['p99'])}" if row else "-"

    head = ["way", *(f"{rate // _MEGA}M, p50 / p99 in ms" for rate in rates)]
    return head, (list(line(way)) for way in ways)


def _ms(value: float) -> str:
    return f"{value:.1f}" if value >= 10 else f"{value:.3f}"  # noqa: PLR2004 - digits enough


def _accuracy(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], Iterator[list[str]]]:
    rates = _rates(rows)
    by = {(row["traffic"], row["rate"]): row for row in rows}

    def line(traffic: str) -> Iterator[str]:
        yield traffic
        for rate in rates:
            row = by.get((traffic, rate))
            yield _errors(row) if row else "-"

    head = ["traffic", *(f"{rate // _MEGA}M" for rate in rates)]
    names = sorted({row["traffic"] for row in rows}, key=_order)
    return head, (list(line(name)) for name in names)


def _order(traffic: str) -> tuple[str, float]:
    """By what it is, then by how much: udp-1.2 before udp-10."""
    kind, _, number = traffic.rpartition("-")
    return kind, float(number)


def _errors(row: Mapping[str, Any]) -> str:
    runs = f" of {row['runs']}" if "runs" in row else ""
    dropped = f"{row['began']} + {row['dropped']} dropped"
    return f"{row['median']:+.2f} / {row['worst']:+.2f} %{runs}, {dropped}"


def _fairness(
    rows: Sequence[Mapping[str, Any]], separate: Sequence[Mapping[str, Any]]
) -> tuple[list[str], Iterator[list[str]]]:
    def lines() -> Iterator[list[str]]:
        for row in rows:
            flows = f"{row['flows']} flows, {row['small']} of them small"
            yield [
                f"two pods with {row['rate'] // _MEGA}M together, {flows}",
                f"{row['jain']:.3f}",
                f"{row['least']:.3f}",
                f"{row['error']:+.2f} %",
            ]
        for row in separate:
            one = f"{'one' if row['pod'] == 'pod' else 'the other'} of two pods"
            what = f"{one}, {row['rate'] // _MEGA}M of its own, {row['traffic']}"
            yield [what, "-", "-", f"{row['error']:+.2f} %"]

    return ["", "Jain's index", "least flow's share", "error of the rate"], lines()
