# SPDX-License-Identifier: Apache-2.0
"""What this process may do, and which probes that leaves."""

from __future__ import annotations

from functools import cache

from towpath.doctor.capability import Answer, no, unprobed, yes
from towpath.kernel.bpf import libbpf, probe
from towpath.kernel.bpf.programs import ProgramType
from towpath.kernel.errors import (
    CAP_BPF,
    CAP_NET_ADMIN,
    CAP_PERFMON,
    CAP_SYS_ADMIN,
    KernelError,
    effective_capabilities,
)

# CAP_PERFMON: without it the verifier refuses comparisons of packet pointers.
_NEEDED = {
    "CAP_BPF": CAP_BPF,
    "CAP_PERFMON": CAP_PERFMON,
    "CAP_NET_ADMIN": CAP_NET_ADMIN,
}


def library() -> Answer:
    """The system's libbpf."""
    try:
        return yes(f"{libbpf.SONAME}, version {libbpf.version()}")
    except KernelError as error:
        return no(str(error))


def held(number: int) -> bool:
    """Whether this thread has a capability; CAP_SYS_ADMIN stands in for the two of BPF."""
    capabilities = effective_capabilities()
    wanted = {number, CAP_SYS_ADMIN} if number in (CAP_BPF, CAP_PERFMON) else {number}
    return any(capabilities >> each & 1 for each in wanted)


def may_load() -> Answer:
    """Loading and attaching programs; found out by loading one."""
    lacking = [name for name, number in _NEEDED.items() if not held(number)]
    if lacking:
        return no(f"this process lacks {', '.join(lacking)}")
    if not library().works:
        return unprobed("not probed without libbpf")
    try:
        with probe.tiny(ProgramType.XDP):
            return yes(", ".join(_NEEDED))
    except KernelError as error:
        # Such as by a seccomp filter, a security module, a user namespace.
        return no(f"{error}, in spite of {', '.join(_NEEDED)}")


def everything() -> Answer:
    """As `may_load`, and reading what other processes have pinned."""
    answer = may_load()
    if not answer.works:
        return answer
    if not held(CAP_SYS_ADMIN):
        return no("no CAP_SYS_ADMIN")
    return yes(f"{answer.found}, CAP_SYS_ADMIN")


@cache
def obstacle(*, namespace: bool = False) -> str:
    """Why programs can't be loaded, or not in a network namespace of their own; "" if they can."""
    answer = may_load()
    if not answer.works:
        return answer.found
    if namespace and not held(CAP_SYS_ADMIN):
        return "a network namespace to try it in needs CAP_SYS_ADMIN"
    return ""
