# SPDX-License-Identifier: Apache-2.0
"""What an agent says of where programs of cgroups run, and who else is there."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from tests.lab.harness_agent import PINS, Agent
from tests.prog.cgroup.harness_nodes import CONNECT4, counting
from tests.prog.kernel.harness_cgroups import (
    MULTI,
    NONE,
    SECONDS,
    attached_legacy,
    new_cgroup,
    remove,
)

from towpath.api.client import Client
from towpath.datapath.cgroup.fault import has_fault
from towpath.kernel.bpf.cgroups import attach_cgroup
from towpath.kernel.cgroup import cgroup_id, mount_point
from towpath.lab.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """Make a cgroup for the test."""
    with new_cgroup() as path:
        yield path


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    """Give an agent that does nothing else, not started."""
    made = Agent(tmp_path, {"cgroup": {}})
    for key in ("devices", "services"):
        del made.config[key]
    made.write()
    yield made
    if made.process is not None and made.process.poll() is None:
        made.kill()


def found(agent: Agent) -> dict[str, Any]:
    """What its API says."""
    with Client(agent.socket) as client:
        answer: dict[str, Any] = client.get("cgroup")
        return answer


def test_the_nodes_root_is_proven(agent: Agent) -> None:
    """In status, API, command and metrics, and health has nothing to say."""
    agent.start()
    told = found(agent)
    root = str(mount_point())
    assert (told["cgroup"], told["id"], told["why"]) == (root, 1, "the machine's root")
    assert (told["proven"], told["within"], told["fault"]) == (True, None, has_fault())
    assert told["tried"].startswith("20")
    with Client(agent.socket) as client:
        status = client.status()
        metrics = client.metrics()
    assert status.capabilities["cgroup"] == f"{root} (the machine's root): proven"
    assert status.trouble is None
    assert "towpath_cgroup_proven 1.0" in metrics
    shown = agent.command("cgroup", "show").stdout
    assert f"cgroup: {root} (the machine's root)" in shown
    assert f"proven: a process in {root} connected" in shown


def test_another_is_configured_and_others_are_there(agent: Agent, cgroup: Path) -> None:
    """Which are listed in the order of running, with flags; nobody's is taken away."""
    agent.write(cgroup={"path": str(cgroup)})
    with (
        counting() as above,
        counting() as legacy,
        counting() as linked,
        new_cgroup(cgroup) as below,
        attach_cgroup(above.programs["connect4"], cgroup.parent, CONNECT4) as link,
        attached_legacy(legacy.programs["connect4"], cgroup, CONNECT4, MULTI),
        attach_cgroup(linked.programs["connect4"], below, CONNECT4) as lowest,
    ):
        agent.start()
        told = found(agent)
        assert (told["cgroup"], told["id"], told["proven"]) == (
            str(cgroup),
            cgroup_id(cgroup),
            True,
        )
        rows = [
            (each["hook"], each["cgroup"], each["how"], each["program_id"], each["link_id"])
            for each in told["programs"]
            if each["hook"] == "connect4"
        ]
        mine = [
            ("connect4", str(cgroup), "multi", legacy.programs["connect4"].id, 0),
            ("connect4", str(cgroup.parent), "multi", above.programs["connect4"].id, link.id),
        ]
        assert [each for each in rows if each in mine] == mine
        shown = agent.command("cgroup", "programs", str(below), "-o", "json").stdout
        first = next(each for each in json.loads(shown) if each["hook"] == "connect4")
        assert (first["cgroup"], first["link_id"]) == (str(below), lowest.id)
        assert all(each.attached for each in (link, lowest))


def test_what_is_in_the_way_is_told_and_goes(agent: Agent, cgroup: Path) -> None:
    """In health and status, with what to do; the agent serves all the same."""
    agent.write(cgroup={"path": str(cgroup)})
    with counting() as counted:
        place = cgroup.parent if has_fault() else cgroup
        with attached_legacy(counted.programs["connect4"], place, CONNECT4, NONE):
            agent.start()
            with Client(agent.socket) as client:
                trouble = client.status().trouble or ""
            assert "programs of cgroups aren't proven to run: " in trouble
            assert "without BPF_F_ALLOW_MULTI" in trouble
            assert "not proven: " in agent.command("cgroup", "show").stdout
        with Client(agent.socket) as client:
            wait_until(
                lambda: client.status().trouble is None, seconds=SECONDS, what="it to be proven"
            )


def test_a_cgroup_that_goes_and_comes_again(agent: Agent, cgroup: Path) -> None:
    """An agent starts without it, too."""
    path = cgroup / "app"
    agent.write(cgroup={"path": str(path)})
    agent.start()
    with Client(agent.socket) as client:
        assert "No such file" in (client.status().trouble or "")
        told = found(agent)
        assert (told["cgroup"], told["id"], told["programs"], told["proven"]) == (
            None,
            None,
            [],
            False,
        )
        path.mkdir()
        wait_until(lambda: client.status().trouble is None, seconds=SECONDS, what="it to be found")
        assert found(agent)["id"] == cgroup_id(path)
        remove(path)
        wait_until(
            lambda: "was removed" in (client.status().trouble or ""),
            seconds=SECONDS,
            what="it to be missed",
        )


def test_the_section_is_checked(agent: Agent) -> None:
    """A path has to be one, and can't change while the agent runs."""
    agent.write(cgroup={"path": "kubepods"})
    assert "cgroup.path: 'kubepods' is not an absolute path" in agent.start_in_vain()
    agent.write(cgroup={})
    agent.start()
    agent.write(cgroup={"path": "/sys/fs/cgroup"})
    with Client(agent.socket) as client:
        wait_until(
            lambda: client.status().file.refused is not None, seconds=SECONDS, what="a refusal"
        )
    assert not (PINS / "cgroup").exists()
