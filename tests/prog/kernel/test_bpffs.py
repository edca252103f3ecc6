# SPDX-License-Identifier: Apache-2.0
"""The BPF file system: mounting it, and pins that appear together or not at all."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest
from tests.prog.kernel.harness_caps import only

from towpath.kernel import _libc
from towpath.kernel.bpf import bpffs
from towpath.kernel.bpf.maps import Map
from towpath.kernel.bpf.programs import Program
from towpath.kernel.errors import KernelError
from towpath.kernel.net.netns import unshare

if TYPE_CHECKING:
    from pathlib import Path

    from towpath.kernel.bpf.object import BpfObject


def test_mounted_once(tmp_path: Path) -> None:
    """It is mounted where it isn't, with directories made, and left alone where it is."""
    path = tmp_path / "a" / "b"
    assert not bpffs.is_bpffs(path)
    assert bpffs.ensure_bpffs(path) == path
    assert bpffs.is_bpffs(path)
    (path / "kept").mkdir()
    bpffs.ensure_bpffs(path)
    bpffs.ensure_bpffs(path / "kept")
    assert (path / "kept").is_dir()
    assert path.stat().st_mode & 0o777 == 0o700
    _libc.umount(path)
    assert not bpffs.is_bpffs(path)


def test_missing_capabilities_are_named(tmp_path: Path) -> None:
    """Mounting takes CAP_SYS_ADMIN."""
    with only(), pytest.raises(KernelError, match=r"mount a BPF file system at .*CAP_SYS_ADMIN"):
        bpffs.ensure_bpffs(tmp_path)


def test_pins_appear_together(sample: BpfObject, pins: Path) -> None:
    """Until the block is over there is nothing under the final name."""
    target = pins / "all"
    with bpffs.new_pin_dir(target) as building:
        for name in ("entries", "pairs"):
            sample.maps[name].pin(building / name)
        assert not target.exists()
    assert sorted(path.name for path in target.iterdir()) == ["entries", "pairs"]
    assert [path.name for path in pins.iterdir()] == ["all"]
    with Map.from_pin(target / "entries") as found:
        assert found.id == sample.maps["entries"].id


def test_failed_pins_go_together(sample: BpfObject, pins: Path) -> None:
    """A failure leaves nothing, neither under the final name nor another."""

    def fail_half_way() -> None:
        with bpffs.new_pin_dir(pins / "all") as building:
            sample.maps["entries"].pin(building / "entries")
            (building / "deeper").mkdir()
            sample.maps["pairs"].pin(building / "deeper" / "pairs")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_half_way()
    assert list(pins.iterdir()) == []


def test_existing_pins_are_not_replaced(pins: Path) -> None:
    """Whoever wants them gone removes them."""
    (pins / "all").mkdir()
    with (
        pytest.raises(FileExistsError, match="all exists already"),
        bpffs.new_pin_dir(pins / "all"),
    ):
        pytest.fail("there is one")
    bpffs.remove_pins(pins / "all")
    bpffs.remove_pins(pins / "all")


def test_wrong_places_are_told(sample: BpfObject, pins: Path, tmp_path: Path) -> None:
    """Why a pin can't be there is in the message."""
    made = sample.maps["entries"]
    made.pin(pins / "taken")
    for path, hint in (
        (pins / "taken", "EEXIST.*: that name is taken"),
        (pins / "with.dot", "allows no dot in a name"),
        (pins / "no" / "where", "there is no directory"),
        (tmp_path / "entries", "is not on a BPF file system"),
    ):
        with pytest.raises(KernelError, match=f"pin map entries at {path}: .*{hint}"):
            made.pin(path)


def test_wrong_pins_are_told(sample: BpfObject, pins: Path, tmp_path: Path) -> None:
    """What is pinned instead, or that nothing is, is in the message."""
    sample.maps["entries"].pin(pins / "entries")
    with pytest.raises(KernelError, match=r"open pinned prog .*: a map is pinned there"):
        Program.from_pin(pins / "entries")
    with pytest.raises(KernelError, match=r"open pinned map .*/none: No such file"):
        Map.from_pin(pins / "none")
    with pytest.raises(KernelError, match="is not on a BPF file system"):
        Map.from_pin(tmp_path / "none")
    assert bpffs.kind_of_pin(pins / "entries") == "map"


def test_root_is_mounted_for_who_has_none() -> None:
    """Where /sys/fs/bpf isn't mounted, as in a container, the default path gets it."""
    seen = []

    def alone() -> None:
        unshare(mounts=True)
        while bpffs.is_bpffs(bpffs.ROOT):
            _libc.umount(bpffs.ROOT)
        seen.append(bpffs.is_bpffs(bpffs.ROOT))
        bpffs.ensure_bpffs()
        seen.append(bpffs.is_bpffs(bpffs.ROOT))

    thread = threading.Thread(target=alone)
    thread.start()
    thread.join()
    assert seen == [False, True]
