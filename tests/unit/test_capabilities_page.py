# SPDX-License-Identifier: Apache-2.0
"""docs/design/capabilities.md shows the files as they are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.lab.harness_examples import DIRECTORY, PACKETS

from towpath.agent.parts import Part

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "design" / "capabilities.md").read_text()
BLOCKS = re.findall(r"^`(tests/\S+)`:\n\n```\w+\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize(("path", "block"), BLOCKS, ids=[path for path, _ in BLOCKS])
def test_a_block_is_in_its_file(path: str, block: str) -> None:
    """Line by line."""
    assert block in (ROOT / path).read_text()


def test_every_block_is_of_a_file_or_a_line_that_is_registered() -> None:
    """None was only written down."""
    fenced = re.findall(r"^```\w+\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    others = [block.strip() for block in fenced if block not in {each for _, each in BLOCKS}]
    assert others == [PACKETS, DIRECTORY]


def test_every_file_of_the_example_is_shown() -> None:
    """Each layer has one."""
    shown = {Path(path) for path, _ in BLOCKS}
    there = {path.relative_to(ROOT) for path in (ROOT / "tests/examples/packets").glob("*.*")}
    assert there == {path for path in shown if path.parent.name == "packets"}


def test_every_method_of_a_part_is_explained() -> None:
    """And none that there isn't."""
    names = {name for name in vars(Part) if not name.startswith("_")} - {"name"}
    assert (
        set(re.findall(r"^\| `(\w+)(?:\(\w*\))?` \|", PAGE, re.MULTILINE))
        - {
            "model",
            "datapath",
            "agent",
            "doctor",
            "cli",
        }
        == names
    )
