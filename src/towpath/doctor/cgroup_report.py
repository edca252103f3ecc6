# SPDX-License-Identifier: Apache-2.0
"""Whether programs of cgroups take effect on a machine, and who is in their way.

Nothing is changed, but that a process connects in a cgroup made for it, and that a program is
attached meanwhile, which counts that. No tag is written: on a kernel with the fault the first one
makes sockets forget their cgroup, until the machine is restarted.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from towpath.datapath.cgroup.fault import has_fault
from towpath.datapath.cgroup.probe import PREFIX, connect_below, new_cgroup
from towpath.datapath.cgroup.report import programs
from towpath.datapath.cgroup.root import CgroupRoot
from towpath.datapath.cgroup.witness import OwnWitness
from towpath.kernel.bpf.attach_types import CGROUP_HOOKS, AttachType
from towpath.kernel.bpf.query import query
from towpath.kernel.cgroup import mounts, opened
from towpath.kernel.cgroup_mounts import ROOT_ID
from towpath.kernel.cgroup_v1 import TAGGING, controllers, tags
from towpath.kernel.errors import KernelError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from towpath.documents import CgroupProgram

# These two go by the process and not by a socket.
_BY_PROCESS = frozenset((AttachType.CGROUP_DEVICE, AttachType.CGROUP_SYSCTL))
_BY_SOCKET = {hook: name for hook, name in CGROUP_HOOKS.items() if hook not in _BY_PROCESS}
_NO_V1 = "start the kernel with cgroup_no_v1=net_cls,net_prio, or take a newer one (5.15)"

_FILES = {"net_cls": "net_cls.classid", "net_prio": "net_prio.ifpriomap"}

State = Literal["well", "at risk", "bypassed", "unknown"]


@dataclass(frozen=True, slots=True)
class TaggingController:
    """net_cls or net_prio: a controller of version 1 that tags sockets."""

    name: str
    hierarchy: int
    """Its number; 0: it isn't used."""
    cgroups: int
    mounted: tuple[str, ...]
    """Where this process sees it."""
    tags: dict[str, str]
    """Cgroups that have a tag, and which."""


@dataclass(frozen=True, slots=True)
class Affected:
    """A cgroup below the machine's root with programs that go by a socket's cgroup."""

    cgroup: str
    hooks: dict[str, int]
    """How many there are at each."""


@dataclass(frozen=True, slots=True)
class CgroupDiagnosis:
    """What was found. Its fields are those of the JSON output."""

    mounted: tuple[str, ...]
    """Where version 2 is to be seen."""
    tagging: tuple[TaggingController, ...]
    fault: bool | None
    """Whether struct sock_cgroup_data has one word for cgroup and tag, and there can be tags."""
    state: State
    """well: programs run wherever they are attached. at risk: the first tag ends that for those
    below the machine's root. bypassed: they don't run for sockets that are made now. unknown: it
    couldn't be tried."""
    seen: str
    """What was tried, and what came of it."""
    affected: tuple[Affected, ...]
    """Whose programs that is or would be about."""
    root: str | None
    """Where Towpath attaches its own, and for what; None: nowhere."""
    why: str
    proven: bool
    proof: str
    programs: tuple[CgroupProgram, ...]
    """All that run in that cgroup, in the order of running."""
    advice: tuple[str, ...]
    """What to do; nothing if all is well."""


def diagnose(configured: Path | None = None) -> CgroupDiagnosis:
    """Find out. ``configured``: the cgroup that Towpath's own programs are for. OSError."""
    fault, tagging = has_fault(), tuple(_tagging())
    mounted = tuple(point for _, point in mounts())
    try:
        with CgroupRoot(configured) as root:
            state, seen = _effect_below(root.node, fault)
            below = Path(mounted[0]) if mounted else root.node
            affected = tuple(_with_programs(below)) if fault or state == "bypassed" else ()
            proof = root.prove()
            found = CgroupDiagnosis(
                mounted=mounted,
                tagging=tagging,
                fault=fault,
                state=state,
                seen=seen,
                affected=affected,
                root=root.name,
                why=root.why,
                proven=proof.proven,
                proof=proof.why,
                programs=_listed(root.node),
                advice=(),
            )
    except KernelError as error:
        told = str(error)
        found = CgroupDiagnosis(
            mounted,
            tagging,
            fault,
            state="unknown",
            seen=told,
            affected=(),
            root=None,
            why=told,
            proven=False,
            proof=told,
            programs=(),
            advice=(),
        )
    return replace(found, advice=tuple(_advice(found)))


def _tagging() -> Iterator[TaggingController]:
    tagged = tags()
    for each in controllers():
        if each.name in TAGGING:
            own = {tag.cgroup: tag.value for tag in tagged if tag.controller == each.name}
            yield TaggingController(each.name, each.hierarchy, each.cgroups, each.mounted, own)


def _effect_below(path: Path, fault: bool | None) -> tuple[State, str]:  # noqa: FBT001 -- a field
    """Whether a program that is attached to a cgroup below the root runs; and what was seen."""
    witness = OwnWitness()
    try:
        with new_cgroup(path) as below, witness.at(below) as told:
            connect_below(below, witness.destination)
            ran = told.calls() > 0
    except KernelError as error:
        return "unknown", str(error)
    seen = "a program was attached to a new cgroup, in which a process connected: it"
    if not ran:
        return "bypassed", f"{seen} did not run"
    states: dict[bool | None, State] = {False: "well", True: "at risk", None: "unknown"}
    return states[fault], f"{seen} ran"


def _with_programs(root: Path) -> Iterator[Affected]:
    """Cgroups with programs that go by a socket's cgroup. The machine's root is no such."""
    for directory, below, _ in os.walk(root):
        below[:] = sorted(each for each in below if not each.startswith(PREFIX))
        try:
            with opened(directory) as fd:
                at_root = os.fstat(fd).st_ino == ROOT_ID
                hooks = {} if at_root else dict(_hooks(fd))
        except KernelError:  # gone by now
            continue
        if hooks:
            yield Affected(directory, hooks)


def _hooks(fd: int) -> Iterator[tuple[str, int]]:
    for hook, name in _BY_SOCKET.items():
        try:
            there = query(fd, hook).programs
        except KernelError:  # this kernel doesn't have the hook
            continue
        if there:
            yield name, len(there)


def _listed(path: Path) -> tuple[CgroupProgram, ...]:
    try:
        return programs(path)
    except KernelError:  # may not be asked for, which the proof has said by now
        return ()


def _advice(found: CgroupDiagnosis) -> Iterator[str]:
    if found.state == "bypassed":
        yield (
            "sockets that are made from now on are taken for the root's, and programs below it"
            f" don't run for them, until the machine is restarted: {_NO_V1}"
        )
    elif found.state == "at risk":
        files = " or ".join(_FILES[each.name] for each in found.tagging)
        yield f"let nobody write {files}: {_NO_V1}"
    if not found.proven:
        yield f"programs of Towpath's don't take effect: {found.proof}"
    if found.fault is None:
        yield "a kernel with BTF (/sys/kernel/btf/vmlinux) and CAP_BPF would tell more"
