# SPDX-License-Identifier: Apache-2.0
"""Programs at the hooks of cgroups: what a process below one does with its sockets.

A link to a cgroup lets others be attached beside it, and below it, whatever these allow
(BPF_F_ALLOW_MULTI); programs run in the order in which they were attached, those of a cgroup before
those of the ones that it is in. Those that were attached with BPF_F_PREORDER (6.15) run before all
others, those of a cgroup behind those of the ones that it is in. What was attached without a link
and without BPF_F_ALLOW_MULTI is alone in its cgroup, and no link can come beside it. Below it there
can be one if it was attached with BPF_F_ALLOW_OVERRIDE, in whose place the link's program then
runs.
"""

from __future__ import annotations

import ctypes
import errno as errnos
import logging
from typing import TYPE_CHECKING, NamedTuple

from towpath.kernel.bpf._structs import LinkCreateOpts
from towpath.kernel.bpf.attach_types import CGROUP_HOOKS, hook_name
from towpath.kernel.bpf.libbpf import lib
from towpath.kernel.bpf.links import Link
from towpath.kernel.bpf.programs import described
from towpath.kernel.bpf.query import query
from towpath.kernel.cgroup import lineage, opened
from towpath.kernel.errors import CAP_BPF, CAP_NET_ADMIN, KernelError, permission_hint

if TYPE_CHECKING:
    from pathlib import Path

    from towpath.kernel.bpf.programs import Program

log = logging.getLogger(__name__)

ALLOW_OVERRIDE = 1 << 0  # BPF_F_ALLOW_OVERRIDE
ALLOW_MULTI = 1 << 1  # BPF_F_ALLOW_MULTI
_PREORDER = 1 << 6  # BPF_F_PREORDER
_MOST = 64  # BPF_CGROUP_MAX_PROGS


def attach_cgroup(
    program: Program, path: Path | str, attach_type: int, *, preorder: bool = False
) -> Link:
    """Attach to a hook of a cgroup, behind what is there already (5.7).

    ``preorder``: before what is attached to cgroups below, and to others without it (6.15).

    ``path`` is a cgroup of version 2 (`cgroup.mount_point` finds the root of all), ``attach_type``
    one of `CGROUP_HOOKS`. When the cgroup is removed, and the last socket of it is closed, the link
    stays and is attached to nothing (`Link.attached`).

    ValueError: no such hook. KernelError: ``path`` is no cgroup, the program is for another hook,
    or what is attached lets no other be beside it.
    """
    if attach_type not in CGROUP_HOOKS:
        there = ", ".join(CGROUP_HOOKS.values())
        raise ValueError(f"{hook_name(attach_type)} is no hook of cgroups; allowed: {there}")
    with opened(path) as fd:
        above = _alone(path, attach_type)
        opts = LinkCreateOpts(flags=_PREORDER if preorder else 0)
        result = lib.bpf_link_create(program.fd, fd, attach_type, ctypes.byref(opts))
    if result < 0:
        raise _error(program, path, attach_type, -result, preorder=preorder)
    if above is not None:
        log.warning(
            "%s of %s: %s does not run in %s any more, since it was attached with"
            " BPF_F_ALLOW_OVERRIDE",
            hook_name(attach_type),
            above.path,
            above,
            path,
        )
    return Link(result)


class _Alone(NamedTuple):
    """A program that lets no other be beside it."""

    path: Path
    program: int
    flags: int

    def __str__(self) -> str:
        return described(self.program)


def _alone(path: Path | str, attach_type: int) -> _Alone | None:
    """What decides whether there can be another program in a cgroup; None: nothing does."""
    for each in lineage(path):
        with opened(each) as fd:
            try:
                found = query(fd, attach_type)
            except KernelError:
                return None  # not allowed to ask, or no such hook
        if found.programs:
            alone = not found.flags & ALLOW_MULTI
            return _Alone(each, found.programs[0], found.flags) if alone else None
    return None


def _error(
    program: Program, path: Path | str, attach_type: int, number: int, *, preorder: bool
) -> KernelError:
    hook = hook_name(attach_type)
    hint = ""
    if number == errnos.EPERM:
        alone = _alone(path, attach_type)
        hint = permission_hint(CAP_BPF, CAP_NET_ADMIN)
        if alone is not None:
            hint = f"{alone} is attached to {alone.path} without a link and without"
            hint += " BPF_F_ALLOW_MULTI, so that no other can be"
    elif number == errnos.EINVAL:
        compiled = program.attach_type
        hint = f"the program is not for {hook}"
        hint += "" if compiled is None else f" but for {hook_name(compiled)}"
        if preorder and compiled in {None, attach_type}:
            hint = "this kernel may not have BPF_F_PREORDER (6.15)"
    elif number == errnos.E2BIG:
        hint = f"{_MOST} programs are there already"
    return KernelError(f"attach program {program.name} to {hook} of cgroup {path}", number, hint)
