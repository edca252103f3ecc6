# SPDX-License-Identifier: Apache-2.0
"""A root that is proven again whenever something changes."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

import pytest
from tests.lab.harness_files import no_more_files
from tests.prog.cgroup.harness_nodes import CONNECT4, apart, calls, counting
from tests.prog.kernel.harness_cgroups import (
    NONE,
    SECONDS,
    Inside,
    attached_legacy,
    dead_port,
    remove,
)

from towpath.datapath.cgroup import follower
from towpath.datapath.cgroup.fault import has_fault
from towpath.datapath.cgroup.follower import Follower
from towpath.datapath.cgroup.probe import PREFIX
from towpath.datapath.cgroup.root import CgroupRoot
from towpath.kernel import _libc
from towpath.kernel.bpf.cgroups import attach_cgroup
from towpath.kernel.cgroup import cgroup_id, mount_point
from towpath.kernel.cgroup_watch import Watch
from towpath.kernel.errors import KernelError
from towpath.lab.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from towpath.kernel.bpf.links import Link

MNT_DETACH = 2


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else is going on."""
    monkeypatch.setattr(follower, "SETTLE_SECONDS", 0.01)
    monkeypatch.setattr(follower, "RETRY_SECONDS", 0.05)
    monkeypatch.setattr(follower, "FAULT_SECONDS", 3600.0)


class Attempts:
    """Sees that there has been another attempt."""

    def __init__(self, followed: Follower) -> None:
        self._followed, self._seen = followed, followed.proof

    def another(self, what: str) -> None:
        """Wait for it."""
        wait_until(
            lambda: self._followed.proof is not self._seen, seconds=SECONDS, what=f"a proof: {what}"
        )
        self._seen = self._followed.proof


def test_it_is_proven_again_when_cgroups_change(cgroup: Path) -> None:
    """Those directly in it, but for its own; and whenever that is asked for."""
    with Follower(cgroup) as followed:
        assert followed.proof.proven
        assert followed.trouble is None
        seen = Attempts(followed)
        (cgroup / "new").mkdir()
        seen.another("a cgroup was made")
        (cgroup / "new").rmdir()
        seen.another("a cgroup was removed")
        followed.prove_again()
        seen.another("it was asked for")
        # Its own come and go as well. Would it go by them, it would never come to an end.
        before = followed.proof
        (cgroup / f"{PREFIX}0-another").mkdir()
        followed.asked(lambda _: None)
        (cgroup / "one-more").mkdir()
        seen.another("another cgroup was made")
        assert followed.proof is not before


def test_it_is_proven_again_when_mounts_change(tmp_path: Path) -> None:
    """Another may be in the place of the one that was looked at."""

    def alone() -> None:
        with Follower() as followed:
            seen = Attempts(followed)
            _libc.mount("none", tmp_path, "tmpfs", 0)
            seen.another("something was mounted")
            _libc.umount(tmp_path)
            seen.another("it was unmounted")
            assert followed.proof.proven

    apart(alone)


def test_another_root_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """Here the same cgroup isn't mounted any more; a private mount takes its place."""
    caplog.set_level(logging.INFO)

    def alone() -> None:
        with Follower() as followed:
            seen = Attempts(followed)
            root = mount_point()
            assert followed.asked(lambda root: root.name) == str(root)
            _libc.umount(root, MNT_DETACH)
            seen.another("it was unmounted")
            # The cgroup is the same, so that what is attached goes on.
            assert followed.asked(lambda root: root.id) == 1

    apart(alone)


def test_a_cgroup_that_is_removed_while_attached(cgroup: Path) -> None:
    """It is told at once, with what to do; one that is made again is gone on with."""
    path = cgroup / "goes"
    path.mkdir()
    links: list[Link] = []
    with counting() as counted:

        def attach(root: CgroupRoot) -> None:
            links.append(attach_cgroup(counted.programs["connect4"], root.path, CONNECT4))

        with Follower(path, moved=attach) as followed:
            assert len(links) == 1
            remove(path)
            wait_until(lambda: not followed.proof.proven, seconds=SECONDS, what="it to be told")
            assert f"{path} was removed" in (followed.trouble or "")
            assert "make it again, or name another" in (followed.trouble or "")
            if not has_fault():  # with it they are at the machine's root
                wait_until(lambda: not links[0].attached, seconds=SECONDS, what="it to be detached")
            path.mkdir()
            wait_until(lambda: followed.proof.proven, seconds=SECONDS, what="it to be proven again")
            assert followed.trouble is None
            assert followed.asked(lambda root: root.id) == cgroup_id(path)
            assert len(links) == 2
        before = calls(counted)
        with Inside(path) as inside:
            assert inside.connect(dead_port()) == "ConnectionRefusedError"
        # With the fault the first one is still there: at the machine's root.
        assert calls(counted) == before + sum(each.attached for each in links)
        assert links[1].attached
        for each in links:
            each.detach()


def test_what_was_in_the_way_is_waited_for(cgroup: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is tried again, and logged once each time that it changes."""
    caplog.set_level(logging.INFO)
    place = mount_point() if has_fault() else cgroup
    with counting() as counted:
        with attached_legacy(counted.programs["connect4"], place, CONNECT4, NONE):
            followed = Follower(cgroup)
            assert "aren't proven to run" in (followed.trouble or "")
            seen = Attempts(followed)
            seen.another("once more")
            seen.another("and again")
        with followed:
            wait_until(lambda: followed.proof.proven, seconds=SECONDS, what="it to be proven")
        told = [each for each in caplog.messages if each.startswith("programs of cgroups:")]
        assert len(told) == 2


def test_what_cant_be_attached_is_tried_again(cgroup: Path) -> None:
    """Whoever attaches says why not, and that is told."""
    allowed = threading.Event()
    attached: list[int] = []

    def attach(root: CgroupRoot) -> None:
        if not allowed.is_set():
            raise KernelError("attach it", hint="it is not to be")
        attached.append(root.id)

    with Follower(cgroup, moved=attach) as followed:
        told = followed.trouble
        assert told == "programs of cgroups aren't proven to run: attach it: it is not to be"
        allowed.set()
        wait_until(lambda: followed.proof.proven, seconds=SECONDS, what="it to be proven")
        assert followed.trouble is None
        seen = Attempts(followed)
        followed.prove_again()
        seen.another("it was asked for")
    assert attached == [cgroup_id(cgroup)]


def test_none_to_begin_with_is_waited_for(cgroup: Path) -> None:
    """Nothing else has to wait for that; it is told, and gone on with once there is one."""
    path, found = cgroup / "later", list[int]()
    with Follower(path, moved=lambda root: found.append(root.id)) as followed:
        assert "No such file" in (followed.trouble or "")
        what = "ask for the root of cgroups: open cgroup .*No such file"
        with pytest.raises(KernelError, match=what):
            followed.asked(lambda root: root.id)
        path.mkdir()
        wait_until(lambda: followed.proof.proven, seconds=SECONDS, what="it to be proven")
        assert found == [cgroup_id(path)]
        assert followed.trouble is None


def test_what_can_not_be_asked_for_is_not_taken_for_removed(cgroup: Path) -> None:
    """Without open files it is told what is wrong, and it is proven again afterwards."""
    with Follower(cgroup) as followed:
        with no_more_files():
            followed.prove_again()
            wait_until(lambda: not followed.proof.proven, seconds=SECONDS, what="trouble")
            assert "Too many open files" in followed.proof.why
            assert "was removed" not in followed.proof.why
        wait_until(lambda: followed.proof.proven, seconds=SECONDS, what="its end")


def test_a_failure_that_nobody_expects_is_told_and_is_no_end(
    cgroup: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is proven again when that is over."""

    def fail(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    with Follower(cgroup) as followed:
        for what, where in (("changed", Watch), ("prove", CgroupRoot)):
            with monkeypatch.context() as failing:
                failing.setattr(where, what, fail)
                followed.prove_again()
                wait_until(
                    lambda: "can't start new thread" in (followed.trouble or ""),
                    seconds=SECONDS,
                    what=f"trouble: {what}",
                )
            wait_until(lambda: followed.proof.proven, seconds=SECONDS, what=f"its end: {what}")
