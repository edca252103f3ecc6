# SPDX-License-Identifier: Apache-2.0
"""A program on one side of tc by way of a classic filter, for kernels without TCX (before 6.6).

A filter has one place on a device, the first, and is attached in direct-action mode, so that what
the program returns is the verdict. It stays when the process that made it ends: there is nothing
to pin, so what a pin names is a map with the device's index in it, whether the clsact qdisc,
which filters need, was made for it, and which filter it is if there may be others.
"""

from __future__ import annotations

import ctypes
import errno as errnos
import struct
import sys
from typing import TYPE_CHECKING, Literal, NamedTuple, Self

from towpath.kernel.bpf._structs import TcHook, TcOpts
from towpath.kernel.bpf.libbpf import captured, check, lib
from towpath.kernel.bpf.map_types import MapType
from towpath.kernel.bpf.maps import Map
from towpath.kernel.errors import CAP_NET_ADMIN, KernelError, permission_hint
from towpath.kernel.net.messages import DUMP, ROUTE, Netlink, attributes

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from towpath.kernel.bpf.programs import Program

Side = Literal["ingress", "egress"]
_INGRESS, _EGRESS = 1, 2  # BPF_TC_INGRESS, BPF_TC_EGRESS
_SIDES: dict[Side, int] = {"ingress": _INGRESS, "egress": _EGRESS}
_PARENTS = (0xFFFFFFF2, 0xFFFFFFF3)  # a clsact qdisc's two sides, as classes
_QDISC = 0xFFFF0000  # the handle of a clsact or an ingress qdisc
_RTM_GETQDISC, _RTM_GETTFILTER = 38, 46
_TCA_KIND, _TCA_OPTIONS = 1, 2
_TCA_BPF_FLAGS, _TCA_BPF_ID, _ACT_DIRECT = 8, 11, 1
_TCMSG = struct.Struct("=BxxxiIII")
_REPLACE = 1  # BPF_TC_F_REPLACE
_PINNED = 2
"""Elements of a pin that says nothing of side and handle."""
_PLACED = 4
"""Elements of one that says nothing of the priority."""
_GONE = (errnos.ENOENT, errnos.ENODEV, errnos.EINVAL)  # filter, device, qdisc
PRIORITY, HANDLE = 1, 0x7470
"""Of a filter, unless something else is asked for: programs with several have a handle each."""


class TcFilter:
    """A classic BPF filter, with the methods of `links.Link`.

    ``close`` leaves it attached, as nothing else holds it. ``made_qdisc``: the qdisc was made for
    this filter, and goes with it unless others have come to use it. A context manager, which
    detaches.
    """

    mode = "clsact"

    def __init__(
        self,
        ifindex: int,
        side: Side = "ingress",
        *,
        made_qdisc: bool = False,
        handle: int = HANDLE,
        priority: int = PRIORITY,
    ) -> None:
        self.ifindex = ifindex
        self.side: Side = side
        self.made_qdisc = made_qdisc
        self.handle = handle
        self.priority = priority

    @classmethod
    def from_pin(cls, path: Path | str) -> Self:
        """The filter pinned at ``path``. KernelError: it is no longer on its device."""
        with Map.from_pin(path) as remembered:
            ifindex, made_qdisc = int(remembered.lookup(0)), bool(remembered.lookup(1))
            more = remembered.max_entries > _PINNED
            side: Side = "egress" if more and remembered.lookup(2) == _EGRESS else "ingress"
            handle = int(remembered.lookup(3)) if more else HANDLE
            priority = int(remembered.lookup(4)) if remembered.max_entries > _PLACED else PRIORITY
        if not attached_id(ifindex, side, handle, priority):
            raise KernelError(f"open pinned filter {path}", hint=f"device {ifindex} has none")
        return cls(ifindex, side, made_qdisc=made_qdisc, handle=handle, priority=priority)

    @property
    def program_id(self) -> int:
        """The id of the program that is attached now, 0 for none."""
        return attached_id(self.ifindex, self.side, self.handle, self.priority)

    @property
    def attached(self) -> bool:
        """Whether it is still there: whoever removes the device or the qdisc takes it along."""
        return self.program_id != 0

    def update(self, program: Program) -> None:
        """Replace the program; no packet goes by in between. KernelError."""
        _attach(self, program, _REPLACE)

    def pin(self, path: Path | str) -> None:
        """Name it in a BPF file system, from which `from_pin` gets it back. KernelError."""
        what = f"pin the filter on device {self.ifindex}"
        noted = [self.ifindex, int(self.made_qdisc)]
        if (self.side, self.handle) != ("ingress", HANDLE):  # else as earlier versions read it
            noted += [_SIDES[self.side], self.handle]
        if self.priority != PRIORITY:
            noted.append(self.priority)
        size = len(noted)
        fd = check(lib.bpf_map_create(MapType.ARRAY, b"towpath_filter", 4, 4, size, None), what)
        with Map(fd) as remembered:
            for number, each in enumerate(noted):
                remembered.update(number, each)
            remembered.pin(path)

    def detach(self) -> None:
        """Remove the filter, unless it is gone already. Twice is once."""
        with captured():
            opts = TcOpts(priority=self.priority, handle=self.handle)
            result = lib.bpf_tc_detach(_hook(self.ifindex, _SIDES[self.side]), opts)
        if result < 0 and -result not in _GONE:
            raise _error("remove the filter from", self.ifindex, -result)
        self.remove_qdisc()

    def remove_qdisc(self) -> None:
        """Remove the qdisc, if it was made for this filter and has none now."""
        if self.made_qdisc and not _in_use(self.ifindex):
            with captured():
                lib.bpf_tc_hook_destroy(_hook(self.ifindex, _INGRESS | _EGRESS))
        self.made_qdisc = False

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


def attach(
    program: Program,
    ifindex: int,
    side: Side = "ingress",
    *,
    replace: bool = False,
    handle: int = HANDLE,
    priority: int = PRIORITY,
) -> TcFilter:
    """Attach to one side of a device's tc, making its clsact qdisc if need be. KernelError.

    ``replace``: nobody owns a filter that is in our place, so that it and its qdisc are taken over.
    """
    with captured():
        result = lib.bpf_tc_hook_create(_hook(ifindex))
    if result < 0 and result != -errnos.EEXIST:
        raise _error("make a clsact qdisc on", ifindex, -result)
    orphaned = replace and attached_id(ifindex, side, handle, priority) != 0
    made_qdisc = result == 0 or orphaned
    filter_ = TcFilter(ifindex, side, made_qdisc=made_qdisc, handle=handle, priority=priority)
    try:
        _attach(filter_, program, _REPLACE if orphaned else 0)
    except KernelError:
        filter_.remove_qdisc()
        raise
    return filter_


def attached_id(
    ifindex: int, side: Side = "ingress", handle: int = HANDLE, priority: int = PRIORITY
) -> int:
    """The id of the program in our place on a device, 0 for none. KernelError: nobody tells."""
    opts = TcOpts(priority=priority, handle=handle)
    with captured():
        result = lib.bpf_tc_query(_hook(ifindex, _SIDES[side]), ctypes.byref(opts))
    if result < 0 and -result not in _GONE:
        raise KernelError(f"ask for the filter on device {ifindex}", -result)
    return int(opts.prog_id) if result == 0 else 0


def _attach(at: TcFilter, program: Program, flags: int) -> None:
    opts = TcOpts(prog_fd=program.fd, flags=flags, priority=at.priority, handle=at.handle)
    with captured():
        result = lib.bpf_tc_attach(_hook(at.ifindex, _SIDES[at.side]), ctypes.byref(opts))
    if result < 0:
        raise _error(f"attach program {program.name} to tc {at.side} of", at.ifindex, -result)


class Filter(NamedTuple):
    """A BPF filter on one side of a device's tc, whoever's."""

    priority: int
    """Lower ones run first; of one priority the one that was added last."""
    handle: int
    program_id: int
    """0 of classic BPF."""
    direct: bool
    """What it returns is the verdict (direct-action)."""


def filters(ifindex: int, side: Side) -> list[Filter]:
    """The BPF filters on one side of a device, in the order in which they run. KernelError."""
    try:
        with Netlink(ROUTE) as netlink:
            kind = _qdisc(netlink, ifindex)
            if kind is None or (kind == "ingress" and side == "egress"):
                return []
            message = _TCMSG.pack(0, ifindex, 0, _PARENTS[_SIDES[side] - 1], 0)
            answers = netlink.ask(_RTM_GETTFILTER, message, DUMP)
    except OSError as error:
        raise _error(f"ask for the filters at tc {side} of", ifindex, error.errno or 0) from error
    return [found for body in answers if (found := _filter(body)) is not None]


def _qdisc(netlink: Netlink, ifindex: int) -> str | None:
    """What a device has for filters: "clsact", or "ingress", which has that side only."""
    for body in netlink.ask(_RTM_GETQDISC, _TCMSG.pack(0, ifindex, 0, 0, 0), DUMP):
        _, index, handle, _, _ = _TCMSG.unpack_from(body)
        if (index, handle) == (ifindex, _QDISC):
            return attributes(body[_TCMSG.size :])[_TCA_KIND].rstrip(b"\0").decode()
    return None


def _filter(body: bytes) -> Filter | None:
    """A filter of a dump; None: it is of another kind, or stands for all of its priority."""
    _, _, handle, _, info = _TCMSG.unpack_from(body)
    found = attributes(body[_TCMSG.size :])
    if found.get(_TCA_KIND) != b"bpf\0" or not handle:
        return None
    options = attributes(found.get(_TCA_OPTIONS, b""))
    number, flags = (
        int.from_bytes(options.get(each, b""), sys.byteorder)
        for each in (_TCA_BPF_ID, _TCA_BPF_FLAGS)
    )
    return Filter(info >> 16, handle, number, bool(flags & _ACT_DIRECT))


def _in_use(ifindex: int) -> bool:
    """Whether a device's clsact qdisc has filters, on either side."""
    with Netlink(ROUTE) as netlink:
        return any(
            netlink.ask(_RTM_GETTFILTER, _TCMSG.pack(0, ifindex, 0, parent, 0), DUMP)
            for parent in _PARENTS
        )


def _hook(ifindex: int, attach_point: int = _INGRESS) -> TcHook:
    return TcHook(ifindex=ifindex, attach_point=attach_point)


def _error(what: str, ifindex: int, number: int) -> KernelError:
    hint = ""
    if number == errnos.EPERM:
        hint = permission_hint(CAP_NET_ADMIN)
    elif number == errnos.EEXIST:
        hint = f"program {attached_id(ifindex)} is attached there"
    return KernelError(f"{what} device {ifindex}", number, hint)
