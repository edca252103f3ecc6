# SPDX-License-Identifier: Apache-2.0
"""Nodes that are containers, several on one machine, each with pods: as KIND makes them.

A node has namespaces of its own for cgroups, mounts and processes. What it sees of the cgroups is
mounted at /sys/fs/cgroup, the machine's being out of sight. Its process 1 does what it is told.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tests.prog.kernel.harness_cgroups import Inside, dead_port
from tests.unit.kernel.harness_clang import kept

from towpath.kernel.bpf.attach_types import AttachType
from towpath.kernel.bpf.object import BpfObject
from towpath.kernel.net.netns import unshare

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from towpath.datapath.cgroup.root import Ancestor
    from towpath.kernel.bpf.attached import AttachedProgram

T = TypeVar("T")

NODES = ("node-a", "node-b")
CONNECT4 = AttachType.CGROUP_INET4_CONNECT
_SOURCE = Path(__file__).parent / "fixtures" / "within.bpf.c"


def counting(within: Ancestor | None = None) -> BpfObject:
    """Load a program for connect4 that counts what is within a cgroup, or all."""
    made = BpfObject(kept(_SOURCE))
    if within is not None:
        made.rodata["within_level"], made.rodata["within_id"] = within
    made.load()
    return made


def calls(counted: BpfObject) -> int:
    """How many connections it has counted."""
    return int(counted.maps["calls"].lookup(0))


def counted_at(programs: Iterable[AttachedProgram]) -> list[tuple[str, str]]:
    """Of the programs of a cgroup, where such a one is attached, and how."""
    return [
        (each.place, each.how)
        for each in programs
        if (each.hook, each.name) == ("connect4", "connect4")
    ]


def apart(question: Callable[[], T]) -> T:
    """Ask in a mount namespace of its own."""
    found: list[T | Exception] = []

    def alone() -> None:
        try:
            unshare(mounts=True)
            found.append(question())
        except Exception as error:  # noqa: BLE001 -- raised again below
            found.append(error)

    thread = threading.Thread(target=alone)
    thread.start()
    thread.join()
    (answer,) = found
    if isinstance(answer, Exception):
        raise answer
    return answer


# ---- Nodes ---------------------------------------------------------------------------------------

# What a node's process 1 is: it reads commands, one a line, and answers each with a line of JSON.
_LIFE = """
import json, os, subprocess, sys
from pathlib import Path

from tests.prog.cgroup.harness_nodes import CONNECT4, calls, counting
from tests.prog.kernel.harness_caps import only
from tests.prog.socket.harness import LIMITS, service
from towpath import SocketLoadBalancer
from towpath.datapath.cgroup.root import CgroupRoot
from towpath.kernel.bpf.cgroups import attach_cgroup
from towpath.kernel.errors import CAP_NET_ADMIN, CAP_SYS_ADMIN

def attach():
    "Find the root, and attach a program that counts there."
    global root, counted, link
    root = CgroupRoot()
    counted = counting(root.within)
    link = attach_cgroup(counted.programs["connect4"], root.path, CONNECT4)
    return told(root)

def told(root):
    within, proof = root.within and list(root.within), root.prove()
    return {"name": root.name, "id": root.id, "why": root.why, "within": within,
            "proven": proof.proven, "proof": proof.why, "same": root.path == root.node}

def confined():
    "The same without CAP_DAC_READ_SEARCH, by which all of the hierarchy can be opened."
    with only(CAP_SYS_ADMIN, CAP_NET_ADMIN), CgroupRoot() as root:
        return told(root)

def balance(vip, backend):
    "Balance a service at the sockets of the node, by settings that are the default."
    global sockets
    sockets = SocketLoadBalancer(limits=LIMITS)
    sockets.apply([service(vip, [backend])])
    found = sockets.socket()
    return {"cgroup": found.cgroup, "proven": found.proven}

def balanced():
    return sockets.socket().counters.verdicts["connect"]["balanced"]

def ran():
    return calls(counted)

def pod(path, mounted):
    "What a pod finds that has a cgroup namespace of its own, and sees the node's processes."
    os.makedirs(path, exist_ok=True)
    code = "from tests.prog.cgroup.harness_nodes import find; find()"
    own = "umount /sys/fs/cgroup; mount -t cgroup2 none /sys/fs/cgroup; " * (mounted == "own")
    inside = f"{own}exec {sys.executable} -c '{code}'"
    join = f'echo $$ > {path}/cgroup.procs; exec unshare --cgroup --mount sh -c "{inside}"'
    done = subprocess.run(["sh", "-c", join], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)

for line in sys.stdin:
    name, *arguments = line.split()
    print(json.dumps(globals()[name](*arguments)), flush=True)
"""


def find() -> None:
    """Print which root is found here."""
    from towpath.datapath.cgroup.root import CgroupRoot  # noqa: PLC0415 -- a process of its own

    with CgroupRoot() as root:
        told = {"name": root.name, "id": root.id, "why": root.why, "proven": root.prove().proven}
    sys.stdout.write(json.dumps(told))


class Node:
    """A node that runs."""

    def __init__(self, path: Path, process: subprocess.Popen[str]) -> None:
        self.path = path
        """Its cgroup, as the machine sees it."""
        self.process = process

    def ask(self, command: str) -> Any:
        """Have it do something; what came of it."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(command, file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    @contextmanager
    def pod(self) -> Iterator[Inside]:
        """Run a pod: a process deep in the node's cgroups."""
        path = self.path / "kubelet" / "kubepods" / "pod1"
        path.mkdir(parents=True, exist_ok=True)
        with Inside(path) as inside:
            yield inside


@contextmanager
def node(path: Path, *, namespace: bool = True, systemd: bool = False) -> Iterator[Node]:
    """Run a node in a new cgroup for the block.

    Without ``namespace`` it has the machine's cgroup namespace. With ``systemd`` its process 1 is
    where systemd would be.
    """
    home = path / "init.scope" if systemd else path
    home.mkdir(parents=True)
    kinds = ["--mount", "--pid", "--fork", "--kill-child"]
    within = [
        "sh",
        "-c",
        _ENTER,
        "sh",
        "yes" if namespace else "",
        sys.executable,
        "-u",
        "-c",
        _LIFE,
    ]
    start = f'echo $$ > "{home if not namespace else path}/cgroup.procs"; exec unshare "$@"'
    if namespace:
        kinds.append("--cgroup")
    command = ["sh", "-c", start, "sh", *kinds, *within]
    environment = os.environ | {"PYTHONPATH": f"{Path.cwd()}", "SYSTEMD": "yes" if systemd else ""}
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        yield Node(path, process)
    finally:
        process.kill()
        process.communicate()


def assert_apart(nodes: list[Node], outside: Path) -> None:
    """Each one's program runs for its own pods only, whatever it is attached to."""
    with nodes[0].pod() as pod, nodes[1].pod() as others, Inside(outside) as machine:
        for times in (1, 2):
            before = [each.ask("ran") for each in nodes]
            assert pod.connect(dead_port()) == "ConnectionRefusedError"
            assert [each.ask("ran") for each in nodes] == [before[0] + 1, before[1]], times
            assert others.connect(dead_port()) == "ConnectionRefusedError"
            assert machine.connect(dead_port()) == "ConnectionRefusedError"
            assert [each.ask("ran") for each in nodes] == [before[0] + 1, before[1] + 1]


_ENTER = """
mount --make-rprivate /
mount -t proc proc /proc
if [ "$1" ]; then
    umount -R -l /sys/fs/cgroup
    mount -t cgroup2 none /sys/fs/cgroup
    [ "$SYSTEMD" ] && echo 1 > /sys/fs/cgroup/init.scope/cgroup.procs
fi
shift
exec "$@"
"""
