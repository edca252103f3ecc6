# SPDX-License-Identifier: Apache-2.0
"""Iterators: programs that the kernel runs once for each of many things, and what they say."""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING, Any

from towpath.kernel.bpf._structs import IterLinkCreateOpts, IterLinkInfo
from towpath.kernel.bpf.attach_types import AttachType
from towpath.kernel.bpf.libbpf import lib
from towpath.kernel.errors import CAP_BPF, CAP_PERFMON, KernelError, permission_hint

if TYPE_CHECKING:
    from towpath.kernel.bpf.maps import Map
    from towpath.kernel.bpf.programs import Program

_AT_ONCE = 1 << 16


def read_elements(program: Program, over: Map) -> bytes:
    """Run an iterator over all elements of a map; what it has written (5.9).

    An element that comes or goes meanwhile may be among them, or not, and others may be left out
    for it. KernelError: the map or the program is of another kind.
    """
    info = IterLinkInfo(map_fd=over.fd)
    opts = IterLinkCreateOpts(iter_info=ctypes.addressof(info), iter_info_len=ctypes.sizeof(info))
    return _run(program, ctypes.byref(opts), f"iterate over map {over.name}")


def read_sockets(program: Program) -> bytes:
    """Run an iterator over the sockets of the calling thread's network namespace (5.9).

    KernelError: the program is of another kind.
    """
    return _run(program, None, "iterate over sockets")


def _run(program: Program, opts: Any, what: str) -> bytes:
    what = f"{what} by program {program.name}"
    link = lib.bpf_link_create(program.fd, 0, AttachType.TRACE_ITER, opts)
    if link < 0:
        raise KernelError(what, -link, permission_hint(CAP_BPF, CAP_PERFMON))
    try:
        return _read(link, what)
    finally:
        os.close(link)


def _read(link: int, what: str) -> bytes:
    fd = lib.bpf_iter_create(link)
    if fd < 0:
        raise KernelError(what, -fd)
    found = bytearray()
    try:
        while some := os.read(fd, _AT_ONCE):
            found += some
    except OSError as error:
        raise KernelError(what, error.errno or 0) from error
    finally:
        os.close(fd)
    return bytes(found)
