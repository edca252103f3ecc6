# SPDX-License-Identifier: Apache-2.0
"""The folders of ``bpf/`` are layers: what a header includes is below it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

BPF = Path(__file__).resolve().parents[2] / "bpf"
BELOW: dict[str, set[str]] = {
    "abi": set(),
    "net": {"abi"},
    "lb": {"abi", "net", "decap"},
    "snat": {"abi", "net", "lb"},
    "health": {"abi", "net", "lb"},
    "wildcard": {"abi"},
    "recorder": {"abi", "net", "lb", "wildcard"},
    "xlat": {"abi", "net", "snat"},
    "masquerade": {"abi", "lb", "net", "snat", "xlat"},
    "socket": {"abi", "lb", "net", "snat", "xlat"},
    "local": {"abi", "lb", "net", "socket"},
    "bandwidth": {"abi", "net"},
    "decap": {"abi", "net"},
    "dispatcher": {"abi"},
}
"""Programs (``*.bpf.c``) put together what they need; headers of other folders are no one's."""


@pytest.mark.parametrize(
    "header", sorted(BPF.rglob("*.h")), ids=lambda path: f"{path.parent.name}-{path.stem}"
)
def test_header_includes_what_is_below_it(header: Path) -> None:
    """What is built on routes or encapsulation doesn't get the load balancer's maps with them."""
    folder = header.relative_to(BPF).parts[0]
    included = re.findall(r'^#include "(\w+)/', header.read_text(), re.MULTILINE)
    assert set(included) <= BELOW[folder] | {folder}


def test_headers_are_found() -> None:
    """Every folder with a rule has a header that the rule is for."""
    assert BELOW.keys() == {path.parent.name for path in BPF.rglob("*.h")}
