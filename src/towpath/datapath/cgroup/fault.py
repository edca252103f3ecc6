# SPDX-License-Identifier: Apache-2.0
"""Kernels whose sockets forget their cgroup.

Before 5.15 (8520e224f547, in some earlier kernels as well) a socket had one word for its cgroup of
version 2 and for its tag of version 1. The first tag of net_cls or net_prio switches the former off
until the machine is restarted: to every socket that is made from then on, its cgroup is the root.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from towpath.kernel.bpf.object import BpfObject
from towpath.kernel.errors import KernelError

TAGGING = ("net_cls", "net_prio")
"""The controllers of version 1 whose tags are stored in sockets."""
_CONTROLLERS = Path("/proc/cgroups")
_FRAME = bytes(64)


@cache
def shares_word() -> bool | None:
    """Whether this kernel's sockets have one word for cgroup and tag, by its BTF.

    None: it can't be told, for want of BTF or of CAP_BPF.
    """
    try:
        with BpfObject.packaged("cgroup_sockets") as asked:
            asked.load()
            return asked.programs["has_its_own_word"].test_run(_FRAME).retval == 0
    except KernelError:
        return None


def tagging_controllers() -> dict[str, int]:
    """Controllers that this kernel can tag sockets with, and the number of their hierarchy.

    0: none of version 1 has it, so that there are no tags.
    """
    rows = [line.split() for line in _CONTROLLERS.read_text().splitlines() if line[:1] != "#"]
    return {
        name: int(tree) for name, tree, _, enabled in rows if name in TAGGING and enabled == "1"
    }


def has_fault() -> bool | None:
    """Whether a tag could make sockets forget their cgroup. None: it can't be told."""
    return shares_word() if tagging_controllers() else False
