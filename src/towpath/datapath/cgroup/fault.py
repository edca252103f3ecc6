# SPDX-License-Identifier: Apache-2.0
"""Kernels whose sockets forget their cgroup.

Before 5.15 (8520e224f547, in some earlier kernels as well) a socket had one word for its cgroup of
version 2 and for its tag of version 1. The first tag of net_cls or net_prio switches the former off
until the machine is restarted: to every socket that is made from then on, its cgroup is the root.
"""

from __future__ import annotations

from functools import cache

from towpath.kernel.bpf.object import BpfObject
from towpath.kernel.cgroup_v1 import TAGGING, controllers
from towpath.kernel.errors import KernelError

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


def has_fault() -> bool | None:
    """Whether a tag could make sockets forget their cgroup. None: it can't be told."""
    tagging = any(each.name in TAGGING for each in controllers())
    return shares_word() if tagging else False
