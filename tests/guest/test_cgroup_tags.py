# SPDX-License-Identifier: Apache-2.0
"""Tags of version 1 beside programs of version 2, on kernels with the fault and on others.

On a kernel with it the first tag is for good, until it is booted again: only in guests, after all
other tests. Tests are in the order of what happens.
"""

from __future__ import annotations

import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner
from tests.guests import IN_GUEST
from tests.prog.cgroup.harness_nodes import CONNECT4, NODES, assert_apart, calls, counting, node
from tests.prog.kernel.harness_cgroups import Inside, dead_port, new_cgroup

from towpath.cli.main import cli
from towpath.datapath.cgroup.fault import has_fault
from towpath.datapath.cgroup.root import CgroupRoot
from towpath.doctor.cgroup_report import CgroupDiagnosis, diagnose
from towpath.kernel import _libc
from towpath.kernel.bpf.cgroups import attach_cgroup
from towpath.kernel.cgroup import cgroup_id, mount_point
from towpath.kernel.cgroup_mounts import ROOT_ID

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

assert IN_GUEST, "it would be for good"


pytestmark = pytest.mark.always

REFUSED = "ConnectionRefusedError"
TAG, PRIORITY = "1048577", "5"  # 10:1 as tc has it


@pytest.fixture(scope="module")
def version_1(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """Mount both controllers, each with a cgroup in it that has no process."""
    with ExitStack() as undo:
        made = {}
        for name in ("net_cls", "net_prio"):
            path = tmp_path_factory.mktemp(name)
            _libc.mount("none", path, "cgroup", 0, name)
            undo.callback(_libc.umount, path)
            made[name] = path / "tagged"
            made[name].mkdir()
            undo.callback(made[name].rmdir)
        yield made


@pytest.fixture
def pods() -> Iterator[list[Path]]:
    """A cgroup with one within, and one beside it."""
    with new_cgroup() as path, new_cgroup() as beside:
        (path / "pod").mkdir()
        yield [path, path / "pod", beside]


def ran(pods: list[Path], times: int = 1) -> int:
    """How often a program that is attached to the pod's cgroup runs for its connections."""
    with counting() as counted, Inside(pods[1]) as inside:
        with attach_cgroup(counted.programs["connect4"], pods[0], CONNECT4):
            for _ in range(times):
                assert inside.connect(dead_port()) == REFUSED
        return calls(counted)


def diagnosed(path: Path) -> CgroupDiagnosis:
    """What the doctor says, whose exit code goes by it."""
    found = diagnose(path)
    ran = CliRunner().invoke(cli, ["doctor", "cgroup", "--cgroup", str(path)])
    assert ran.exit_code == int(found.state != "well")
    assert all(advice in ran.stdout.replace("\n", " ") for advice in found.advice)
    return found


def test_controllers_of_version_1_alone_change_nothing(
    version_1: dict[str, Path], pods: list[Path]
) -> None:
    """There is no tag yet; the doctor says what the first would do, and has written none."""
    assert ran(pods) == 1
    found = diagnosed(pods[0])
    assert (found.state, found.fault) == (("at risk", True) if has_fault() else ("well", False))
    for each in found.tagging:
        assert each.hierarchy > 0
        assert (each.mounted, each.tags) == ((str(version_1[each.name].parent),), {})
    assert (version_1["net_cls"] / "net_cls.classid").read_text() == "0\n"
    if has_fault():
        assert "let nobody write net_cls.classid or net_prio.ifpriomap" in found.advice[0]
        assert "cgroup_no_v1=net_cls,net_prio" in found.advice[0]
    assert ran(pods) == 1


def test_the_first_tag_takes_programs_below_the_root_out_of_effect(
    version_1: dict[str, Path], pods: list[Path]
) -> None:
    """Where a socket has one word; it is nothing to a socket that was made before."""
    with (
        counting() as counted,
        counting() as everywhere,
        Inside(pods[1]) as inside,
        attach_cgroup(counted.programs["connect4"], pods[0], CONNECT4),
        attach_cgroup(everywhere.programs["connect4"], mount_point(), CONNECT4),
    ):
        assert inside.connect(dead_port()) == REFUSED
        assert (calls(counted), calls(everywhere)) == (1, 1)
        (version_1["net_cls"] / "net_cls.classid").write_text(TAG)
        assert inside.connect(dead_port()) == REFUSED
        # At the root it always runs: that is where such sockets are taken to be.
        assert (calls(counted), calls(everywhere)) == (1 if has_fault() else 2, 2)
    assert ran(pods, 3) == (0 if has_fault() else 3)


def test_the_doctor_names_tags_and_who_is_affected(
    version_1: dict[str, Path], pods: list[Path]
) -> None:
    """And says what to do."""
    device = socket.if_indextoname(1)
    (version_1["net_prio"] / "net_prio.ifpriomap").write_text(f"{device} {PRIORITY}")
    with counting() as counted, attach_cgroup(counted.programs["connect4"], pods[1], CONNECT4):
        found = diagnosed(pods[0])
    tags = {each.name: each.tags for each in found.tagging}
    assert tags == {
        "net_cls": {str(version_1["net_cls"]): TAG},
        "net_prio": {str(version_1["net_prio"]): f"{device} {PRIORITY}"},
    }
    if not has_fault():
        assert (found.state, found.affected, found.advice) == ("well", (), ())
        return
    assert (found.state, found.seen.endswith("it did not run")) == ("bypassed", True)
    assert {each.cgroup: each.hooks for each in found.affected}[str(pods[1])] == {"connect4": 1}
    assert "until the machine is restarted" in found.advice[0]


def test_programs_at_the_machines_root_for_what_is_below_take_effect(pods: list[Path]) -> None:
    """Which is where they are attached on a kernel with the fault."""
    with CgroupRoot(pods[0]) as root, counting(root.within) as counted:
        if has_fault():
            assert root.path.stat().st_ino == ROOT_ID
            assert root.within == (1, cgroup_id(pods[0]))
            assert "attached to the machine's root, and only for what is in" in root.why
        else:
            assert (root.path, root.within) == (pods[0], None)
        assert root.prove().proven
        with (
            attach_cgroup(counted.programs["connect4"], root.path, CONNECT4),
            Inside(pods[1]) as inside,
            Inside(pods[2]) as beside,
        ):
            assert inside.connect(dead_port()) == REFUSED
            assert calls(counted) == 1
            assert beside.connect(dead_port()) == REFUSED
            assert calls(counted) == 1


def test_nodes_that_are_containers_are_managed_as_well(pods: list[Path]) -> None:
    """They open the machine's root by its number, and leave other nodes alone."""
    with node(pods[0] / NODES[0]) as one, node(pods[0] / NODES[1]) as other:
        for each in (one, other):
            found = each.ask("attach")
            assert found["proven"]
            assert (found["within"] is None) is not has_fault()
        assert_apart([one, other], pods[2])


def test_a_node_that_cant_open_the_machines_root_says_so(pods: list[Path]) -> None:
    """Its programs are at its own root, and not proven; nor would they be."""
    with node(pods[0] / NODES[0]) as made:
        found = made.ask("confined")
    if not has_fault():
        assert found["proven"]
        return
    assert not found["proven"]
    assert "needs CAP_DAC_READ_SEARCH" in found["why"]
    assert "net_cls or net_prio has tagged a socket" in found["proof"]
    assert "cgroup_no_v1=net_cls,net_prio" in found["proof"]
