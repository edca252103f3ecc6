# SPDX-License-Identifier: Apache-2.0
"""BPF_PROG_QUERY: which programs are at a hook of a cgroup or of a device's tc, in which order."""

from __future__ import annotations

import ctypes
import errno as errnos
from typing import NamedTuple

from towpath.kernel import _libc
from towpath.kernel.bpf._structs import QueryAttr
from towpath.kernel.bpf.attach_types import AttachType, hook_name
from towpath.kernel.errors import CAP_BPF, CAP_NET_ADMIN, KernelError, permission_hint

_BPF_PROG_QUERY = 16
_EFFECTIVE = 1 << 0  # BPF_F_QUERY_EFFECTIVE
_MOST = 64  # that a hook takes; what is in effect may be more
_TELLS_LINKS = frozenset((AttachType.TCX_INGRESS, AttachType.TCX_EGRESS))


class Found(NamedTuple):
    """What a hook has, in the order in which it runs."""

    flags: int
    """BPF_F_ALLOW_* of what is attached; 0 of what is in effect."""
    programs: tuple[int, ...]
    """Their ids."""
    links: tuple[int, ...] | None
    """The ids of their links, 0 for one attached without; None: the kernel doesn't tell."""


def query(target: int, attach_type: int, *, effective: bool = False) -> Found:
    """Ask for the programs at a hook.

    ``target`` is a cgroup's file descriptor or a device's index. ``effective``: those that run in
    that cgroup, which may be attached to ones that it is in. KernelError: EINVAL if this kernel
    doesn't have the hook.
    """
    # The second try is for what came meanwhile, too: whoever goes on attaching is waited for.
    most = _MOST
    while True:
        programs, links = (ctypes.c_uint32 * most)(), (ctypes.c_uint32 * most)()
        attr = QueryAttr(
            target=target,
            attach_type=attach_type,
            query_flags=_EFFECTIVE if effective else 0,
            prog_ids=ctypes.addressof(programs),
            count=most,
        )
        if attach_type in _TELLS_LINKS:
            attr.link_ids = ctypes.addressof(links)
        try:
            _libc.bpf(_BPF_PROG_QUERY, attr)
        except OSError as error:
            if error.errno == errnos.ENOSPC:
                most = 2 * max(most, attr.count)
                continue
            raise _error(attach_type, error.errno or 0) from error
        told = tuple(links[: attr.count]) if attr.link_ids else None
        return Found(attr.attach_flags, tuple(programs[: attr.count]), told)


def _error(attach_type: int, number: int) -> KernelError:
    hint = ""
    if number == errnos.EPERM:
        hint = permission_hint(CAP_BPF, CAP_NET_ADMIN)
    elif number == errnos.EINVAL:
        hint = "this kernel does not have that hook"
    return KernelError(f"ask for the programs at {hook_name(attach_type)}", number, hint)
