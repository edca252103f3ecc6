# SPDX-License-Identifier: Apache-2.0
"""Which cgroup is a node's, by what a process there sees."""

from __future__ import annotations

import pytest

from towpath.core.cgroup import Mount, View, choose

MACHINE, OTHER, POD = 0xEFFFFFFB, 4026532500, 4026532600  # cgroup namespaces
SYS, UNIFIED = "/sys/fs/cgroup", "/sys/fs/cgroup/unified"
ROOT = Mount("/", SYS, 1)
NODE = Mount("/", SYS, 4711)


def seen(
    *mounts: Mount,
    own: int = MACHINE,
    inits: int | None = MACHINE,
    init: str | None = "/init.scope",
) -> View:
    """What a process sees; by default on a machine with systemd."""
    return View(mounts, own, inits, init)


@pytest.mark.parametrize("init", ["/init.scope", "/", "/somewhere", None])
def test_a_machines_root_is_its_nodes(init: str | None) -> None:
    """Whatever its process 1 is, and wherever that is."""
    chosen = choose(seen(ROOT, init=init))
    assert (chosen.mount, chosen.private, chosen.below) == (ROOT, "", "")
    assert chosen.why == "the machine's root"


def test_where_everybody_looks_comes_first() -> None:
    """Of mounts of the same."""
    own, mixed = Mount("/", "/own", 1), Mount("/", UNIFIED, 1)
    for mounts in ((own, mixed, ROOT), (ROOT, mixed, own)):
        assert choose(seen(*mounts)).mount == ROOT
    assert choose(seen(own, mixed)).mount == mixed


def test_a_part_that_is_mounted_elsewhere_is_not_the_machine() -> None:
    """Somebody has it for a purpose of his own."""
    part = Mount("/user.slice", SYS, 99)
    own = Mount("/", "/own", 1)
    assert choose(seen(part, own)).mount == own


@pytest.mark.parametrize("init", ["/init.scope", "/"])
def test_a_node_in_a_cgroup_namespace_has_its_root(init: str) -> None:
    """As KIND has it: the root that is seen is one of the machine's cgroups."""
    chosen = choose(seen(NODE, own=OTHER, inits=OTHER, init=init))
    assert (chosen.mount, chosen.below) == (NODE, "")
    assert "isn't the machine's" in chosen.why


@pytest.mark.parametrize("root", ["/", "/docker/a"])
def test_a_node_in_the_machines_cgroup_namespace_is_below(root: str) -> None:
    """Beside others, which are none of its business; systemd tells where it has its root."""
    mount = Mount(root, SYS, 1 if root == "/" else 4711)
    chosen = choose(seen(mount, init="/docker/a/init.scope"))
    assert chosen.mount == mount
    assert chosen.below == ("docker/a" if root == "/" else "")


def test_a_pod_that_sees_the_nodes_processes_finds_its_root() -> None:
    """By process 1, wherever that is mounted; else it can be mounted privately."""
    own = Mount("/", SYS, 5000)
    host = Mount("/../..", "/host/cgroup", 4711)
    view = seen(own, host, own=POD, inits=OTHER, init="/../../init.scope")
    assert choose(view).mount == host
    chosen = choose(seen(own, own=POD, inits=OTHER, init="/../../init.scope"))
    assert (chosen.mount, chosen.private) == (None, "init")


def test_a_pod_that_sees_no_process_of_the_node_takes_the_highest() -> None:
    """Its process 1 is itself, in the root of its own namespace."""
    own = Mount("/", SYS, 5000)
    host = Mount("/../../..", "/host/cgroup", 1)
    between = Mount("/..", "/between", 4999)
    for mounts in ((own, between, host), (host, between, own)):
        assert choose(seen(*mounts, own=POD, inits=POD, init="/")).mount == host
    chosen = choose(seen(own, between, own=POD, inits=POD, init="/"))
    assert chosen.mount == between
    assert "highest cgroup that is mounted here (/..)" in chosen.why


@pytest.mark.parametrize(("inits", "private"), [(MACHINE, "own"), (None, "own"), (OTHER, "init")])
def test_nowhere_mounted_it_is_mounted_privately(inits: int | None, private: str) -> None:
    """The root of the node's cgroup namespace, if that can be told."""
    chosen = choose(seen(inits=inits, init="/" if inits != OTHER else "/../init.scope"))
    assert (chosen.mount, chosen.private, chosen.below) == (None, private, "")
    assert "privately" in chosen.why
