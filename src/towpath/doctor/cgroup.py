# SPDX-License-Identifier: Apache-2.0
"""What programs of cgroups need of a kernel, and of the machine that they are on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from towpath.datapath.cgroup.fault import has_fault
from towpath.datapath.cgroup.root import CgroupRoot
from towpath.doctor.capability import Answer, either, no, unprobed, yes
from towpath.doctor.probes import Probe
from towpath.doctor.rules import Rule, Way
from towpath.kernel.errors import KernelError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from towpath.model.cgroup import Section

_NEEDED_BY = "programs of cgroups"


def rules(section: Section | None) -> Iterator[Rule]:
    """What a section needs; None: what any needs."""
    yield Rule(
        "sockets that know their cgroup",
        (Way("socket_cgroups"),),
        _NEEDED_BY,
        "a tag of net_cls or net_prio takes programs below the machine's root out of effect",
    )
    if section is not None:
        where = f":{section.path}" if section.path else ""
        lost = "programs don't run for the node's processes"
        yield Rule(
            "programs run for processes in cgroups",
            (Way(f"cgroup_proof{where}"),),
            _NEEDED_BY,
            lost,
        )


def _sockets() -> Answer:
    fault = has_fault()
    if fault is None:
        return unprobed("this kernel has no BTF, or it can't be asked")
    return either(
        not fault, "whatever their tag", "struct sock_cgroup_data has one word for cgroup and tag"
    )


def _proof(path: str = "") -> Answer:
    try:
        with CgroupRoot(Path(path) if path else None) as root:
            proof = root.prove()
            where = f"{root.name}: {root.why}"
    except KernelError as error:
        return no(str(error))
    return yes(where) if proof.proven else no(proof.why)


PROOF = Probe(_proof)
PROBES = {
    "socket_cgroups": Probe(_sockets),
    "cgroup_proof": PROOF,
}
