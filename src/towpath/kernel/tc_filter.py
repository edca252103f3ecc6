# SPDX-License-Identifier: Apache-2.0
"""A program at tc's ingress by way of a classic filter, for kernels without TCX (before 6.6).

A filter stays when the process that made it ends, so there is nothing to pin: pinning names the
program, by whose id `TcFilter.from_pin` finds the filter again. It has one place on a device, the
first, and is attached in direct-action mode, so that what the program returns is the verdict.
"""

from __future__ import annotations

import ctypes
import errno as errnos
import os
import socket
from typing import TYPE_CHECKING, Self

from towpath.kernel import bpffs
from towpath.kernel._structs import ProgInfo, TcHook, TcOpts
from towpath.kernel.errors import CAP_NET_ADMIN, KernelError, permission_hint
from towpath.kernel.libbpf import captured, get_info, lib

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from towpath.kernel.programs import Program

_INGRESS = 1  # BPF_TC_INGRESS
_REPLACE = 1  # BPF_TC_F_REPLACE
_PLACE = {"priority": 1, "handle": 0x7470}


class TcFilter:
    """A classic BPF filter, with the methods of `links.Link`.

    ``close`` leaves it attached, as nothing else holds it. A context manager, which detaches.
    """

    mode = "clsact"

    def __init__(self, ifindex: int, program_fd: int) -> None:
        self.ifindex = ifindex
        self._fd = program_fd

    @classmethod
    def from_pin(cls, path: Path | str) -> Self:
        """The filter whose program is pinned at ``path``. KernelError: no device has it."""
        fd = bpffs.open_pin(path, "prog")
        number = get_info(fd, ProgInfo(), f"ask for {path}").id
        for ifindex, _name in socket.if_nameindex():
            if attached_id(ifindex) == number:
                return cls(ifindex, fd)
        os.close(fd)
        raise KernelError(f"open pinned filter {path}", hint="no device has a filter with it")

    @property
    def program_id(self) -> int:
        """The id of the program that is attached now, 0 for none."""
        return attached_id(self.ifindex)

    def update(self, program: Program) -> None:
        """Replace the program; no packet goes by in between. A pin keeps naming the old one."""
        _attach(self.ifindex, program, _REPLACE)
        os.close(self._fd)
        self._fd = os.dup(program.fd)

    def pin(self, path: Path | str) -> None:
        """Name the program in a BPF file system. KernelError."""
        bpffs.pin(self._fd, path, f"the filter on device {self.ifindex}")

    def detach(self) -> None:
        """Remove the filter, unless it is gone with its device. Twice is once."""
        if self._fd >= 0:
            with captured():
                result = lib.bpf_tc_detach(_hook(self.ifindex), TcOpts(**_PLACE))
            if result < 0 and -result not in (errnos.ENOENT, errnos.ENODEV, errnos.EINVAL):
                raise _error("remove the filter from", self.ifindex, -result)
            self.close()

    def close(self) -> None:
        """Let go of the filter, which stays. Twice is once."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.detach()


def attach(program: Program, ifindex: int) -> TcFilter:
    """Attach to a device's tc ingress, making its clsact qdisc if need be. KernelError."""
    with captured():
        result = lib.bpf_tc_hook_create(_hook(ifindex))
    if result < 0 and result != -errnos.EEXIST:
        raise _error("make a clsact qdisc on", ifindex, -result)
    _attach(ifindex, program, 0)
    return TcFilter(ifindex, os.dup(program.fd))


def attached_id(ifindex: int) -> int:
    """The id of the program in our place on a device, 0 for none."""
    opts = TcOpts(**_PLACE)
    with captured():
        result = lib.bpf_tc_query(_hook(ifindex), ctypes.byref(opts))
    return int(opts.prog_id) if result == 0 else 0


def _attach(ifindex: int, program: Program, flags: int) -> None:
    opts = TcOpts(prog_fd=program.fd, flags=flags, **_PLACE)
    with captured():
        result = lib.bpf_tc_attach(_hook(ifindex), ctypes.byref(opts))
    if result < 0:
        raise _error(f"attach program {program.name} to tc ingress of", ifindex, -result)


def _hook(ifindex: int) -> TcHook:
    return TcHook(ifindex=ifindex, attach_point=_INGRESS)


def _error(what: str, ifindex: int, number: int) -> KernelError:
    hint = ""
    if number == errnos.EPERM:
        hint = permission_hint(CAP_NET_ADMIN)
    elif number == errnos.EEXIST:
        hint = f"program {attached_id(ifindex)} is attached there"
    return KernelError(f"{what} device {ifindex}", number, hint)
