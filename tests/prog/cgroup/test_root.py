# SPDX-License-Identifier: Apache-2.0
"""Where programs are attached, and whether they are seen to run there."""

from __future__ import annotations

import fcntl
import os
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.prog.cgroup.harness_nodes import CONNECT4, apart, calls, counting
from tests.prog.kernel.harness_caps import only
from tests.prog.kernel.harness_cgroups import NONE, attached_legacy, new_cgroup, remove

from towpath.datapath.cgroup import probe
from towpath.datapath.cgroup.fault import has_fault
from towpath.datapath.cgroup.probe import PREFIX, Destination
from towpath.datapath.cgroup.root import CgroupRoot, Proof
from towpath.kernel import _libc
from towpath.kernel.bpf.attached import Inventory
from towpath.kernel.bpf.cgroups import attach_cgroup
from towpath.kernel.cgroup import cgroup_id, mount_point
from towpath.kernel.cgroup_mounts import ROOT_ID, mounted, opened_at
from towpath.kernel.errors import (
    CAP_BPF,
    CAP_DAC_OVERRIDE,
    CAP_NET_ADMIN,
    CAP_PERFMON,
    CAP_SYS_ADMIN,
    KernelError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from towpath.kernel.bpf.object import BpfObject

MS_RDONLY, MS_REMOUNT, MS_BIND, MNT_DETACH = 1, 32, 4096, 2
MOUNTS = Path("/proc/thread-self/mountinfo")


def proven(configured: Path | None = None) -> Proof:
    """What comes of an attempt."""
    with CgroupRoot(configured) as root:
        return root.prove()


def unproven(configured: Path | None = None) -> str:
    """Why nothing came of it."""
    proof = proven(configured)
    assert not proof.proven
    return proof.why


def state(path: Path) -> object:
    """Everything that a proof could leave: cgroups, programs, mounts, files and processes."""
    below = sorted(each.name for each in path.iterdir() if each.is_dir())
    programs = [(each.program_id, each.place) for each in Inventory().cgroup_hooks(path)]
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    return below, programs, MOUNTS.read_text(), files(), children


def files() -> int:
    """How many this process has open."""
    return len([*Path("/proc/self/fd").iterdir()])


# ---- Proven --------------------------------------------------------------------------------------


def test_the_machines_root_is_found_and_proven() -> None:
    """By a process in a cgroup below it, of which nothing is left."""
    root = mount_point()
    before = state(root)
    with CgroupRoot() as found:
        assert (found.path, found.node, found.name) == (root, root, str(root))
        assert (found.id, found.within, found.why) == (ROOT_ID, None, "the machine's root")
        proof = found.prove()
        assert proof.proven
        assert proof.why == f"a process in {root} connected, and the program ran for it"
        assert found.is_current()
    assert state(root) == before


def test_another_is_configured(cgroup: Path) -> None:
    """Whatever would be found."""
    before = state(cgroup)
    with CgroupRoot(cgroup) as found:
        assert (found.node, found.id) == (cgroup, cgroup_id(cgroup))
        assert found.why.startswith("configured")
        assert found.prove().proven
    assert state(cgroup) == before


def test_nowhere_mounted_it_is_mounted_privately() -> None:
    """Nobody else sees that mount, and nothing of it is left."""

    def alone() -> None:
        _libc.umount(mount_point(), MNT_DETACH)
        before, opened = MOUNTS.read_text(), files()
        with CgroupRoot() as found:
            assert (found.name, found.id) == ("a private mount", ROOT_ID)
            assert found.prove().proven
            assert MOUNTS.read_text() == before
            assert found.is_current()
            with (
                counting() as counted,
                attach_cgroup(counted.programs["connect4"], found.path, CONNECT4),
            ):
                assert found.prove().proven
                # It is the machine's root: others' connections count too.
                assert calls(counted) >= 1
        assert MOUNTS.read_text() == before
        assert files() == opened

    apart(alone)


def test_a_mount_that_is_read_only_is_fine(cgroup: Path) -> None:
    """Programs are attached there all the same, and the process is put in by another mount."""

    def alone() -> None:
        _libc.mount("none", mount_point(), None, MS_REMOUNT | MS_BIND | MS_RDONLY)
        with pytest.raises(OSError, match="Read-only"):
            (cgroup / "new").mkdir()
        assert proven().proven
        assert proven(cgroup).proven
        # As the service has it that comes with Towpath.
        with only(CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN):
            why = unproven(cgroup)
        assert f"make a cgroup in {cgroup}: Read-only file system" in why
        assert "a service of systemd's needs ProtectControlGroups=no" in why
        assert "needs CAP_SYS_ADMIN" in why

    apart(alone)


def test_one_more_capability_than_the_service_has_is_needed(cgroup: Path) -> None:
    """At the root, where there is no right to write for anybody; deploy/towpath.service has it."""
    service = (CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN)
    with only(*service):
        assert proven(cgroup).proven or has_fault()
        assert "Permission denied (EACCES): needs CAP_DAC_OVERRIDE" in unproven()
    with only(*service, CAP_DAC_OVERRIDE):
        assert proven().proven


def test_what_was_left_is_removed_and_what_is_in_use_is_not(cgroup: Path) -> None:
    """By who was killed; by who is at it."""
    left, used = cgroup / f"{PREFIX}1-left", cgroup / f"{PREFIX}2-used"
    left.mkdir()
    used.mkdir()
    with opened_at(used) as held:
        fcntl.flock(int(held.path.name), fcntl.LOCK_EX)
        assert proven(cgroup).proven
        assert [each.name for each in cgroup.glob(f"{PREFIX}*")] == [used.name]


# ---- Another's witness ---------------------------------------------------------------------------


class Counting:
    """As a capability has it whose own programs are attached already."""

    def __init__(self, counted: BpfObject) -> None:
        self.destination = Destination("127.1.2.3", 53)
        self._counted, self._before = counted, 0

    @contextmanager
    def at(self, path: Path) -> Iterator[Counting]:
        """Nothing is attached, they are there."""
        assert path.exists()
        self._before = calls(self._counted)
        yield self

    def calls(self) -> int:
        """How often they have run since."""
        return calls(self._counted) - self._before


def test_the_programs_themselves_are_proven(cgroup: Path) -> None:
    """By what they count; elsewhere they don't run."""
    with new_cgroup() as other, counting() as counted, CgroupRoot(cgroup) as root:
        witness = Counting(counted)
        with attach_cgroup(counted.programs["connect4"], root.path, CONNECT4):
            assert root.prove(witness).proven
        with attach_cgroup(counted.programs["connect4"], other, CONNECT4):
            proof = root.prove(witness)
        assert not proof.proven
        assert f"a process in {cgroup} connected, and the program did not run for it" in proof.why


# ---- Not proven ----------------------------------------------------------------------------------


def test_64_programs_are_too_many(cgroup: Path) -> None:
    """They are others' to take away; with one less it is proven."""
    with counting() as counted, ExitStack() as attached, CgroupRoot(cgroup) as root:
        program = counted.programs["connect4"]
        links = [
            attached.enter_context(attach_cgroup(program, root.path, CONNECT4)) for _ in range(64)
        ]
        proof = root.prove()
        assert (proof.proven, "64 programs are there already" in proof.why) == (False, True)
        links[0].detach()
        assert root.prove().proven


def test_a_program_that_is_alone_is_named(cgroup: Path) -> None:
    """None can come beside it."""
    with (
        counting() as counted,
        CgroupRoot(cgroup) as root,
        attached_legacy(counted.programs["connect4"], root.path, CONNECT4, NONE),
    ):
        proof = root.prove()
    assert not proof.proven
    assert "without BPF_F_ALLOW_MULTI, so that no other can be" in proof.why


def test_missing_capabilities_are_named(cgroup: Path) -> None:
    """Whichever are missing first."""
    with CgroupRoot(cgroup) as root:
        with only():
            proof = root.prove()
        assert (proof.proven, "CAP_BPF" in proof.why) == (False, True)
        with only(CAP_SYS_ADMIN, CAP_NET_ADMIN):
            assert root.prove().proven


def test_no_more_cgroups_are_allowed(cgroup: Path) -> None:
    """By whoever set the limit."""
    (cgroup / "cgroup.max.descendants").write_text("0")
    assert "cgroup.max.descendants or cgroup.max.depth allows no more" in unproven(cgroup)
    assert [each for each in cgroup.iterdir() if each.is_dir()] == []


def test_a_threaded_cgroup_takes_no_process(cgroup: Path) -> None:
    """It is for the threads of one."""
    with new_cgroup(cgroup) as threaded:
        (threaded / "cgroup.type").write_text("threaded")
        assert "a threaded cgroup takes no process" in unproven(threaded)
        assert [each for each in threaded.iterdir() if each.is_dir()] == []


def test_a_cgroup_that_is_frozen_is_told(cgroup: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process never gets to connect, and is ended."""
    monkeypatch.setattr(probe, "SECONDS", 0.1)
    (cgroup / "cgroup.freeze").write_text("1")
    assert "is it frozen, or without CPU?" in unproven(cgroup)
    assert [each for each in cgroup.iterdir() if each.is_dir()] == []


def test_a_cgroup_that_was_removed_is_told() -> None:
    """And another one of its name isn't it."""
    with new_cgroup() as path, CgroupRoot(path) as root:
        remove(path)
        proof = root.prove()
        assert not proof.proven
        assert "No such file" in proof.why
        with pytest.raises(KernelError, match="No such file"):
            root.is_current()
        path.mkdir()
        assert not root.there
        assert not root.is_current()


# ---- Bad input -----------------------------------------------------------------------------------


def test_what_is_no_cgroup_is_told(tmp_path: Path) -> None:
    """With where those are."""
    with pytest.raises(KernelError, match=f"open cgroup {tmp_path}: .* it is no cgroup; those are"):
        CgroupRoot(tmp_path)
    with pytest.raises(KernelError, match=r"open cgroup /nowhere: No such file"):
        CgroupRoot(Path("/nowhere"))


def test_none_can_be_had() -> None:
    """With what to do."""

    def alone() -> None:
        _libc.umount(mount_point(), MNT_DETACH)
        with only(), pytest.raises(KernelError) as told:
            CgroupRoot()
        assert "needs CAP_SYS_ADMIN" in str(told.value)
        assert "mount -t cgroup2 none /sys/fs/cgroup/unified" in str(told.value)

    apart(alone)


def test_a_cgroup_is_found_by_its_number(cgroup: Path) -> None:
    """Wherever it is, for as long as it is there."""
    with new_cgroup(cgroup) as below, mounted() as mount:
        number = cgroup_id(below)
        with mount.by_id(number) as found:
            assert (found.id, cgroup_id(found.path)) == (number, number)
        with only(CAP_SYS_ADMIN), pytest.raises(KernelError, match="needs CAP_DAC_READ_SEARCH"):
            mount.by_id(number)
        with pytest.raises(KernelError, match=r"open cgroup number 4294967295: .*it is gone"):
            mount.by_id((1 << 32) - 1)
