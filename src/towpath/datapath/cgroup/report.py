# SPDX-License-Identifier: Apache-2.0
"""What there is to say of where programs of cgroups run."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from towpath.documents import CgroupAncestor, CgroupProgram
from towpath.documents import CgroupRoot as Document
from towpath.kernel.bpf.attached import Inventory
from towpath.kernel.errors import KernelError

if TYPE_CHECKING:
    from pathlib import Path

    from towpath.datapath.cgroup.follower import Follower
    from towpath.datapath.cgroup.root import CgroupRoot
    from towpath.kernel.bpf.attached import AttachedProgram


def report(followed: Follower) -> Document:
    """All of it."""
    proof = followed.proof
    tried = (
        datetime.fromtimestamp(proof.at, UTC).isoformat(timespec="seconds") if proof.at else None
    )
    try:
        return followed.asked(lambda root: _report(root, proof.proven, proof.why, tried))
    except KernelError as error:
        # There is none, or what runs there may not be asked for.
        return Document(
            cgroup=None,
            id=None,
            why=str(error),
            within=None,
            fault=None,
            proven=False,
            proof=proof.why,
            tried=tried,
            programs=(),
        )


def _report(root: CgroupRoot, proven: bool, proof: str, tried: str | None) -> Document:  # noqa: FBT001 -- a field
    return Document(
        cgroup=root.name,
        id=root.id,
        why=root.why,
        within=root.within and CgroupAncestor(*root.within),
        fault=root.fault,
        proven=proven,
        proof=proof,
        tried=tried,
        programs=programs(root.node),
    )


def programs(path: Path) -> tuple[CgroupProgram, ...]:
    """All that run in a cgroup, hook by hook in the order of running. KernelError."""
    return tuple(map(_program, Inventory().cgroup_hooks(path)))


def _program(each: AttachedProgram) -> CgroupProgram:
    return CgroupProgram(
        each.hook, each.place, each.how, each.program_id, each.name, each.link_id, each.pins
    )
