# SPDX-License-Identifier: Apache-2.0
"""What a source has told is there for the next agent."""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING

from towpath.agent.bandwidth.sourced import FILE, SourcedLimits
from towpath.model.bandwidth import Group, Pod, Sourced

if TYPE_CHECKING:
    from pathlib import Path

SOURCED = Sourced(
    "kubernetes",
    (
        Pod("a:web", addresses=(ip_address("10.0.0.1"), ip_address("fd00::1")), egress=1_000_000),
        Pod("a:db", addresses=(ip_address("10.0.0.2"),), priority=3, group="a:-all"),
    ),
    (Group("a:-all", egress=1_000_000, ingress=2_000_000),),
)


def test_it_is_the_same_again(tmp_path: Path) -> None:
    """Pods, groups, addresses."""
    SourcedLimits(tmp_path, wanted=True).put(SOURCED)
    assert SourcedLimits(tmp_path, wanted=True).found == SOURCED
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600


def test_it_goes_when_nobody_tells_any(tmp_path: Path) -> None:
    """An agent whose configuration doesn't ask for it limits nothing by it."""
    SourcedLimits(tmp_path, wanted=True).put(SOURCED)
    assert SourcedLimits(tmp_path, wanted=False).found == Sourced()
    assert SourcedLimits(tmp_path, wanted=True).found == Sourced()


def test_a_file_that_makes_no_sense_counts_for_nothing(tmp_path: Path) -> None:
    """The source will tell again: no agent stays away for it."""
    for text in ("", "{", "[]", '{"owner": "x"}', '{"owner": "x", "pods": [{}], "groups": []}'):
        (tmp_path / FILE).write_text(text)
        assert SourcedLimits(tmp_path, wanted=True).found == Sourced()
