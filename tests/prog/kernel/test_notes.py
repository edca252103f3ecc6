# SPDX-License-Identifier: Apache-2.0
"""Notes beside pins, which outlive the process."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from towpath.kernel.bpf.notes import Notes
from towpath.kernel.errors import KernelError

if TYPE_CHECKING:
    from pathlib import Path


def test_what_is_noted_is_read_by_the_next(pins: Path) -> None:
    """Any text, under a name; replaced and dropped."""
    notes = Notes(pins / "host")
    assert not (pins / "host").exists()
    notes.put("3", "eth0.20")
    notes.put("3-ipv4-forwarding", "0")
    notes.put("3", "eth0.30")
    assert Notes(pins / "host").texts == {"3": "eth0.30", "3-ipv4-forwarding": "0"}
    notes.drop("3")
    notes.drop("3")
    assert Notes(pins / "host").texts == notes.texts == {"3-ipv4-forwarding": "0"}
    notes.drop("3-ipv4-forwarding")
    # The last one takes the directory along, in whose way it would be.
    assert not (pins / "host").exists()


def test_what_somebody_removes_can_be_noted_again(pins: Path) -> None:
    """One, or all with their directory."""
    notes = Notes(pins / "host")
    notes.put("1", "a")
    notes.put("2", "b")
    assert notes.missing() == []
    (pins / "host" / "1").unlink()
    assert notes.missing() == ["1"]
    notes.write_again()
    (pins / "host" / "1").unlink()
    (pins / "host" / "2").unlink()
    (pins / "host").rmdir()
    assert notes.missing() == ["1", "2"]
    notes.write_again()
    assert Notes(pins / "host").texts == {"1": "a", "2": "b"}


def test_a_process_that_died_half_way_has_noted_nothing_new(pins: Path) -> None:
    """Before the new text is in the place of the old one."""
    notes = Notes(pins / "host")
    notes.put("1", "old")
    (pins / "host" / "1-new").symlink_to("new")
    heir = Notes(pins / "host")
    assert heir.texts == {"1": "old"}
    heir.put("1", "newer")
    assert Notes(pins / "host").texts == {"1": "newer"}
    heir.drop("1")
    assert not (pins / "host").exists()


def test_nowhere_is_fine(pins: Path) -> None:
    """They are then remembered for as long as the process lives."""
    notes = Notes(None)
    notes.put("1", "a")
    assert notes.texts == {"1": "a"}
    assert notes.missing() == []
    notes.write_again()
    notes.drop("1")
    assert notes.texts == {}
    assert list(pins.iterdir()) == []


def test_what_can_not_be_noted_is_told(pins: Path) -> None:
    """With its text and its place."""
    notes = Notes(pins / "host")
    with pytest.raises(KernelError, match=rf"note a at {pins}/host/has\.dot"):
        notes.put("has.dot", "a")
