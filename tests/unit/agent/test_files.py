# SPDX-License-Identifier: Apache-2.0
"""An agent's own files are missed when they go."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from towpath.agent.files import Files

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_a_file_that_goes_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Removed, replaced, and there again; others are nobody's business."""
    caplog.set_level(logging.WARNING)
    one, other = tmp_path / "one", tmp_path / "other"
    one.touch()
    other.touch()
    files = Files({one: "it is needed"})
    other.unlink()
    files.look()
    assert list(files.troubles) == []
    one.rename(other)
    told = f"{one} was removed or replaced: it is needed"
    for _ in range(2):
        files.look()
        assert list(files.troubles) == [told]
    one.touch()
    files.look()
    assert list(files.troubles) == [told]
    other.rename(one)
    files.look()
    assert list(files.troubles) == []
    assert caplog.messages == [told]


def test_a_file_that_was_never_there_is_not_missed(tmp_path: Path) -> None:
    """But one that comes in its place is."""
    files = Files({tmp_path / "one": "it is needed"})
    files.look()
    assert list(files.troubles) == []
    (tmp_path / "one").touch()
    files.look()
    assert len(files.troubles) == 1
