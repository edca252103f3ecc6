# SPDX-License-Identifier: Apache-2.0
"""docs/kernels.md is of the kernels that are supported, and of the sizes that are accepted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tools.kernels import growth
from tools.kernels.supported import SUPPORTED

if TYPE_CHECKING:
    import pytest

PAGE = Path(__file__).parents[2] / "docs" / "kernels.md"


def table(heading: str) -> list[list[str]]:
    """The rows of the table under a heading, the first with its columns' names."""
    lines = PAGE.read_text().split(f"\n## {heading}\n", 1)[1].strip().splitlines()
    rows = [line for line in lines[: lines.index("")] if not line.startswith("| ---")]
    return [[cell.strip(" `") for cell in row.strip("|").split("|")] for row in rows]


def test_the_kernels_are_those_that_are_supported() -> None:
    """In their order; those whose packages rotate away may be missing."""
    found = [row[0] for row in table("Which kernels")[1:]]
    assert [name for name in found if name not in {k.name for k in SUPPORTED}] == []
    assert [k.name for k in SUPPORTED if k.blocking or k.name in found] == found
    assert table("What each can do")[0][1 : 1 + len(found)] == found


def test_nothing_failed_there() -> None:
    """The page is written from a run that is well."""
    blocking = {k.name for k in SUPPORTED if k.blocking}
    rows = [row for row in table("Which kernels") if row[0] in blocking]
    assert not [row for row in rows if any("failed" in cell for cell in row)]


def test_the_sizes_are_the_accepted_ones() -> None:
    """Of every program in every kernel, whichever compiler has made it."""
    accepted = growth.accepted()
    parts = PAGE.read_text().split("\n### clang ")[1:]
    assert parts
    for part in parts:
        sizes = accepted[growth.compiler(part.partition("\n")[0])]
        rows = [line.strip("|").split("|") for line in part.splitlines() if line.startswith("|")]
        names = [cell.strip() for cell in rows[0]][1:]
        assert set(names) <= set(sizes)
        for program, *cells in rows[2:]:
            for name, cell in zip(names, cells, strict=True):
                size = sizes[name].get(program.strip(" `"))
                shown = f"{size['verified']:,} / {size['jited']:,}" if size else "-"
                assert cell.strip() == shown


def test_sizes_are_held_to_those_of_the_same_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which is its major. What is accepted of one leaves the others' as they were."""
    monkeypatch.setattr(growth, "BASELINE", tmp_path / "baseline.json")
    old, new = {"lb": {"verified": 100, "jited": 10}}, {"lb": {"verified": 111, "jited": 11}}
    assert growth.compiler("14.0.6") == "clang 14"
    growth.accept({"clang 14": {"5.10": old, "6.1": old}})
    growth.accept({"clang 14": {"6.1": new}, "clang 23": {"6.1": new}})
    assert growth.accepted() == {"clang 14": {"5.10": old, "6.1": new}, "clang 23": {"6.1": new}}
    assert growth.grown("x", old, new) == ["x: lb: verified 100 -> 111"]
    assert growth.grown("x", new, old) == []
