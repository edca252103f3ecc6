# SPDX-License-Identifier: Apache-2.0
"""`towpath doctor cgroup`, where nothing is tagged."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from tests.prog.cgroup.harness_nodes import CONNECT4, counting
from tests.prog.kernel.harness_cgroups import NONE, attached_legacy, new_cgroup

from towpath.cli.main import cli
from towpath.datapath.cgroup.fault import has_fault
from towpath.doctor import doctor
from towpath.doctor.cgroup_report import diagnose
from towpath.kernel.bpf.cgroups import attach_cgroup
from towpath.kernel.cgroup import mount_point
from towpath.kernel.cgroup_v1 import controllers
from towpath.model.cgroup import Section
from towpath.model.settings import Config

if TYPE_CHECKING:
    from pathlib import Path


def asked(*arguments: str) -> tuple[int, dict[str, Any]]:
    """What the command says, and its exit code."""
    ran = CliRunner().invoke(cli, ["doctor", "cgroup", *arguments, "-o", "json"])
    answer: dict[str, Any] = json.loads(ran.stdout)
    return ran.exit_code, answer


def test_all_that_concerns_programs_of_cgroups() -> None:
    """Of the machine as it is, of which nothing is changed."""
    root = mount_point()
    fault = has_fault()
    code, found = asked()
    assert code == (1 if fault else 0)
    assert str(root) in found["mounted"]
    assert [each["name"] for each in found["tagging"]] == [
        each.name for each in controllers() if each.name in {"net_cls", "net_prio"}
    ]
    assert all(each["tags"] == {} for each in found["tagging"])
    assert (found["fault"], found["state"]) == (fault, "at risk" if fault else "well")
    assert found["seen"].endswith("a process connected: it ran")
    assert (found["root"], found["why"], found["proven"]) == (str(root), "the machine's root", True)
    assert bool(found["advice"]) is fault
    # Others' come and go beside it.
    assert not list(root.glob(f"towpath-probe-{os.getpid()}-*"))


def test_who_is_attached_is_listed(cgroup: Path) -> None:
    """With what would be affected by a tag."""
    with (
        new_cgroup(cgroup) as below,
        counting() as counted,
        attach_cgroup(counted.programs["connect4"], below, CONNECT4) as link,
    ):
        found = diagnose(below)
        first = next(each for each in found.programs if each.hook == "connect4")
        assert (first.cgroup, first.link_id) == (str(below), link.id)
        named = [each.cgroup for each in found.affected]
        assert (str(below) in named) is has_fault()
        assert str(cgroup) not in named


def test_what_is_in_the_way_is_told(cgroup: Path) -> None:
    """And the exit code says so."""
    with (
        counting() as counted,
        attached_legacy(counted.programs["connect4"], cgroup, CONNECT4, NONE),
    ):
        code, found = asked("--cgroup", str(cgroup))
    assert (code, found["state"]) == (1, "unknown")
    assert "without BPF_F_ALLOW_MULTI" in found["seen"]


def test_what_is_no_cgroup_is_told(tmp_path: Path) -> None:
    """With where those are."""
    code, found = asked("--cgroup", str(tmp_path))
    assert (code, found["state"], found["root"], found["proven"]) == (1, "unknown", None, False)
    assert "it is no cgroup; those are at" in found["why"]


@pytest.mark.thorough
def test_the_table_says_the_same() -> None:
    """For people."""
    ran = CliRunner().invoke(cli, ["doctor", "cgroup"])
    for word in ("version 2", "net_cls", "net_prio", "fault", "attached to", "proven"):
        assert f"\n{word} " in ran.stdout


@pytest.mark.thorough
@pytest.mark.parametrize("path", [None, "no-cgroup"])
def test_the_doctor_of_a_configuration_proves_it(path: str | None, tmp_path: Path) -> None:
    """As the agent would."""
    section = Section(tmp_path if path else None)
    found = {each.name: each for each in doctor(Config(sections={"cgroup": section}))}
    proof = found["programs run for processes in cgroups"]
    assert proof.state == ("missing" if path else "available")
    assert ("it is no cgroup" if path else "the machine's root") in proof.found
    knows = found["sockets that know their cgroup"]
    assert knows.state == ("missing" if has_fault() else "available")
