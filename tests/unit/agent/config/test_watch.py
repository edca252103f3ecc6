# SPDX-License-Identifier: Apache-2.0
"""A file's changes are noticed, and none that isn't one."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from towpath.agent.config.watch import Watch

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file with content."""
    path = tmp_path / "file"
    path.write_text("before")
    return path


def test_an_unchanged_file_is_never_reported(file: Path) -> None:
    """However often one looks."""
    watch = Watch(file)
    assert not any(watch.changed() for _ in range(5))


def test_a_change_is_reported_once_it_rests(file: Path) -> None:
    """At the second look that sees the same, until it has been taken."""
    watch = Watch(file)
    file.write_text("after")
    assert [watch.changed() for _ in range(3)] == [False, True, True]
    watch.taken()
    assert not watch.changed()


def test_a_file_that_is_being_written_is_left_alone(file: Path) -> None:
    """Half a list of services is no list of services."""
    watch = Watch(file)
    with file.open("w") as writing:
        for _ in range(5):
            writing.write("more")
            writing.flush()
            assert not watch.changed()
    assert watch.changed()


def test_a_rename_over_the_file_is_a_change(file: Path) -> None:
    """Even to one of the same size and time, as editors and deployment tools do."""
    watch = Watch(file)
    other = file.with_name("other")
    other.write_text("BEFORE")
    stat = file.stat()
    os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    other.rename(file)
    assert [watch.changed() for _ in range(2)] == [False, True]


def test_a_link_that_is_pointed_elsewhere_is_a_change(tmp_path: Path) -> None:
    """As Kubernetes replaces what a volume of a ConfigMap holds."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("same")
    (tmp_path / "data").symlink_to("one")
    watch = Watch(tmp_path / "data" / "file")
    (tmp_path / "new").symlink_to("two")
    (tmp_path / "new").rename(tmp_path / "data")
    assert [watch.changed() for _ in range(2)] == [False, True]


def test_a_file_that_is_gone_is_no_change_until_it_is_back(file: Path) -> None:
    """Between a removal and a creation there is nothing to take over."""
    watch = Watch(file)
    file.unlink()
    assert not any(watch.changed() for _ in range(3))
    file.write_text("back")
    assert [watch.changed() for _ in range(2)] == [False, True]
