# SPDX-License-Identifier: Apache-2.0
"""Where the cgroups of version 2 are mounted, in mount namespaces in which they are elsewhere."""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.prog.kernel.harness_cgroups import new_cgroup

from towpath.kernel import _libc
from towpath.kernel import cgroup as cgroups
from towpath.kernel.cgroup import cgroup_id, is_cgroup, lineage, mount_point
from towpath.kernel.errors import KernelError
from towpath.kernel.net.netns import unshare

if TYPE_CHECKING:
    from collections.abc import Callable

MS_BIND, MNT_DETACH = 4096, 2
ROOT_ID = 1  # of the hierarchy's root
SYS = Path("/sys/fs/cgroup")


def elsewhere(prepare: Callable[[], None]) -> Path:
    """What `mount_point` says in a mount namespace of its own, without what is usually mounted."""
    found: list[Path | Exception] = []

    def alone() -> None:
        try:
            unshare(mounts=True)
            _libc.umount(mount_point(), MNT_DETACH)
            _libc.mount("none", SYS, "tmpfs", 0)
            prepare()
            found.append(mount_point())
        except Exception as error:  # noqa: BLE001 -- raised again below
            found.append(error)

    thread = threading.Thread(target=alone)
    thread.start()
    thread.join()
    if isinstance(found[0], Exception):
        raise found[0]
    return found[0]


def mount_at(path: Path) -> None:
    """Mount the whole hierarchy."""
    path.mkdir(parents=True, exist_ok=True)
    _libc.mount("none", path, "cgroup2", 0)


def test_it_is_where_this_machine_has_it() -> None:
    """The root of all, as the kernel numbers it, seen from a machine's own namespaces."""
    root = mount_point()
    assert root in {SYS, SYS / "unified"}
    assert is_cgroup(root)
    assert (root / "cgroup.procs").exists()


def test_mixed_with_version_1() -> None:
    """As systemd's hybrid layout has it."""

    def prepare() -> None:
        (SYS / "net_cls").mkdir()
        mount_at(SYS / "unified")

    assert elsewhere(prepare) == SYS / "unified"


def test_a_place_of_its_own(tmp_path: Path) -> None:
    """Whatever it is called."""
    for name in ("own", "with space", "with\ttab"):
        path = tmp_path / name
        assert elsewhere(partial(mount_at, path)) == path


def test_the_usual_place_before_others(tmp_path: Path) -> None:
    """It is what the others of the machine look at."""
    both = [tmp_path / "own", SYS / "unified"]

    def prepare(paths: list[Path]) -> None:
        for path in paths:
            mount_at(path)

    for paths in (both, both[::-1]):
        assert elsewhere(partial(prepare, paths)) == SYS / "unified"


def test_the_whole_before_a_part(tmp_path: Path) -> None:
    """A part is better than nothing."""
    part, whole = tmp_path / "part", tmp_path / "whole"
    part.mkdir()

    def mount_part() -> None:
        mount_at(whole)
        _libc.mount(str(whole / made.name), part, None, MS_BIND)
        _libc.umount(whole)

    def mount_both() -> None:
        mount_part()
        mount_at(whole)

    with new_cgroup() as made:
        assert elsewhere(mount_part) == part
        assert elsewhere(mount_both) == whole


def test_a_mount_that_another_covers_is_not_it(tmp_path: Path) -> None:
    """Nobody gets there."""

    def prepare() -> None:
        for name in ("covered", "seen"):
            mount_at(tmp_path / name)
        _libc.mount("none", tmp_path / "covered", "tmpfs", 0)

    assert elsewhere(prepare) == tmp_path / "seen"


def test_nowhere_is_told() -> None:
    """With the command that mounts it."""
    with pytest.raises(KernelError, match=r"find the cgroups of version 2: .*mount -t cgroup2"):
        elsewhere(lambda: None)


def test_a_kernel_without_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mounting would be of no use."""
    (tmp_path / "filesystems").write_text("nodev\tcgroup\n\text4\n")
    monkeypatch.setattr(cgroups, "_FILE_SYSTEMS", tmp_path / "filesystems")
    with pytest.raises(KernelError, match="this kernel has none"):
        elsewhere(lambda: None)


def test_a_cgroup_has_a_number_and_a_lineage(cgroup: Path, tmp_path: Path) -> None:
    """No other has had it, and all that it is in are known."""
    with new_cgroup(cgroup) as below:
        assert list(lineage(below)) == [below, cgroup, mount_point()]
        number = cgroup_id(below)
        assert number not in {0, cgroup_id(cgroup)}
        path = below
    path.mkdir()
    assert cgroup_id(path) != number
    path.rmdir()
    assert not is_cgroup(path)
    assert not is_cgroup(tmp_path)
    assert not is_cgroup(cgroup / "cgroup.procs")
    assert list(lineage(mount_point())) == [mount_point()]
