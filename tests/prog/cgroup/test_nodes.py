# SPDX-License-Identifier: Apache-2.0
"""Nodes that are containers: each one's programs run for its pods, and for no other node's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.prog.cgroup.harness_nodes import NODES, Node, assert_apart, node

from towpath.datapath.cgroup.fault import has_fault
from towpath.kernel.cgroup import cgroup_id

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.thorough
def test_the_root_that_a_node_sees_is_its_own(nodes: list[Node]) -> None:
    """It isn't the machine's, and is told not to be; programs are proven to run."""
    for each in nodes:
        found = each.ask("attach")
        assert (found["name"], found["proven"]) == ("/sys/fs/cgroup", True)
        assert found["id"] == cgroup_id(each.path)
        assert found["why"].startswith(
            "the root of the cgroup namespace, which isn't the machine's"
        )
        assert found["same"] is not has_fault()


def test_programs_run_for_the_pods_of_their_node_only(nodes: list[Node], cgroup: Path) -> None:
    """With default settings, two nodes on one machine."""
    for each in nodes:
        assert each.ask("attach")["proven"]
    assert_apart(nodes, cgroup)


@pytest.mark.thorough
def test_nodes_in_the_machines_cgroup_namespace_are_apart(cgroup: Path) -> None:
    """Where systemd is process 1 they are told apart all the same."""
    paths = [cgroup / name for name in NODES]
    with (
        node(paths[0], namespace=False, systemd=True) as one,
        node(paths[1], namespace=False, systemd=True) as other,
    ):
        for each in (one, other):
            found = each.ask("attach")
            assert (found["name"], found["id"]) == (str(each.path), cgroup_id(each.path))
            assert found["why"].startswith("process 1 has ")
            assert found["proven"]
        assert_apart([one, other], cgroup)


def test_systemd_in_a_node_with_a_namespace(cgroup: Path) -> None:
    """Its process 1 is in a cgroup below the node's root, which is what counts."""
    with node(cgroup / NODES[0], systemd=True) as made:
        found = made.ask("attach")
        assert (found["name"], found["id"]) == ("/sys/fs/cgroup", cgroup_id(made.path))
        assert found["proven"]


@pytest.mark.thorough
@pytest.mark.parametrize("mounted", ["node", "own"])
def test_an_agent_in_a_pod_finds_the_nodes_root(cgroup: Path, mounted: str) -> None:
    """By process 1: where the node's root is mounted, or else by a private mount of it."""
    with node(cgroup / NODES[0], systemd=True) as made:
        found = made.ask(f"pod /sys/fs/cgroup/kubepods/agent {mounted}")
        assert found["id"] == cgroup_id(made.path)
        assert found["name"] == ("/sys/fs/cgroup" if mounted == "node" else "a private mount")
        assert found["proven"]
