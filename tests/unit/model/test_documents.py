# SPDX-License-Identifier: Apache-2.0
"""What the documentation says of services is what the parser takes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from towpath.model import Service, parse_config, parse_services

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "services.md").read_text()
BLOCKS = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_examples_are_right(number: int) -> None:
    """Each is a list of services, or the whole of a file."""
    block = BLOCKS[number]
    if block.startswith("devices:"):
        assert parse_config(block, "docs/services.md").devices
        return
    text = block if block.startswith("services:") else f"services:\n{block}"
    assert parse_services(text, "docs/services.md")


def test_every_field_that_changes_packets_is_explained() -> None:
    """By its name in the configuration."""
    elsewhere = {"name", "backends", "table_size", "flow_table"}
    for field in set(Service.__slots__) - elsewhere:
        assert f"`{field}" in PAGE or f"{field}:" in PAGE
