# SPDX-License-Identifier: Apache-2.0
"""A program at tc's ingress by way of a classic filter, for kernels without TCX (before 6.6).

A filter has one place on a device, the first, and is attached in direct-action mode, so that what
the program returns is the verdict. It stays when the process that made it ends: there is nothing
to pin, so what a pin names is a map with the device's index in it.
"""

from __future__ import annotations

import ctypes
import errno as errnos
from typing import TYPE_CHECKING, Self

from towpath.kernel._structs import TcHook, TcOpts
from towpath.kernel.errors import CAP_NET_ADMIN, KernelError, permission_hint
from towpath.kernel.libbpf import captured, check, lib
from towpath.kernel.map_types import MapType
from towpath.kernel.maps import Map

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from towpath.kernel.programs import Program

_INGRESS = 1  # BPF_TC_INGRESS
_REPLACE = 1  # BPF_TC_F_REPLACE
_GONE = (errnos.ENOENT, errnos.ENODEV, errnos.EINVAL)  # filter, device, qdisc
_PLACE = {"priority": 1, "handle": 0x7470}


class TcFilter:
    """A classic BPF filter, with the methods of `links.Link`.

    ``close`` leaves it attached, as nothing else holds it. A context manager, which detaches.
    """

    mode = "clsact"

    def __init__(self, ifindex: int) -> None:
        self.ifindex = ifindex

    @classmethod
    def from_pin(cls, path: Path | str) -> Self:
        """The filter that was pinned at ``path``. KernelError: it is no longer on its device."""
        with Map.from_pin(path) as remembered:
            ifindex = int(remembered.lookup(0))
        if not attached_id(ifindex):
            raise KernelError(f"open pinned filter {path}", hint=f"device {ifindex} has none")
        return cls(ifindex)

    @property
    def program_id(self) -> int:
        """The id of the program that is attached now, 0 for none."""
        return attached_id(self.ifindex)

    def update(self, program: Program) -> None:
        """Replace the program; no packet goes by in between. KernelError."""
        _attach(self.ifindex, program, _REPLACE)

    def pin(self, path: Path | str) -> None:
        """Name it in a BPF file system. KernelError."""
        what = f"pin the filter on device {self.ifindex}"
        fd = check(lib.bpf_map_create(MapType.ARRAY, b"towpath_filter", 4, 4, 1, None), what)
        with Map(fd) as remembered:
            remembered.update(0, self.ifindex)
            remembered.pin(path)

    def detach(self) -> None:
        """Remove the filter, unless it is gone already. Twice is once."""
        with captured():
            result = lib.bpf_tc_detach(_hook(self.ifindex), TcOpts(**_PLACE))
        if result < 0 and -result not in _GONE:
            raise _error("remove the filter from", self.ifindex, -result)

    def close(self) -> None:
        """Let go of the filter, which stays."""

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
    return TcFilter(ifindex)


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
