# SPDX-License-Identifier: Apache-2.0
"""Attached programs.

A link is an attachment that lasts as long as something holds it: a file descriptor or a pin. The
kernel has had them for XDP, cgroups and tracepoints since before the oldest one supported here, for
tc (TCX) since 6.6; before that `clsact.TcFilter` does the same with a classic filter. `cgroups` has
what is a cgroup's alone.
"""

from __future__ import annotations

import ctypes
import errno as errnos
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, Self

from towpath.kernel import _libc
from towpath.kernel.bpf import bpffs, probe
from towpath.kernel.bpf._structs import LinkCreateOpts, LinkInfo, TcxLinkAttr, XdpQueryOpts
from towpath.kernel.bpf.attach_types import AttachType, LinkType, hook_name
from towpath.kernel.bpf.libbpf import get_info, lib
from towpath.kernel.bpf.map_types import MapType
from towpath.kernel.bpf.maps import Map
from towpath.kernel.bpf.programs import Program, ProgramType
from towpath.kernel.bpf.query import query
from towpath.kernel.bpf.rcu import wait_for_readers
from towpath.kernel.errors import (
    CAP_BPF,
    CAP_NET_ADMIN,
    CAP_PERFMON,
    KernelError,
    permission_hint,
)
from towpath.kernel.fallback import fall_back
from towpath.kernel.net import clsact
from towpath.kernel.net.interfaces import device_name

if TYPE_CHECKING:
    from types import TracebackType

Mode = Literal["native", "generic", "auto"]

_BPF_LINK_CREATE = 28
_BPF_F_BEFORE, _BPF_F_AFTER, _BPF_F_ID = 1 << 3, 1 << 4, 1 << 5
_XDP_FLAGS = {"generic": 1 << 1, "native": 1 << 2}
_XDP_ATTACHED = {1: "native", 2: "generic", 3: "offload", 4: "several"}

NOT_THE_DRIVER = frozenset((errnos.EBUSY, errnos.EEXIST, errnos.ENODEV, errnos.EPERM))
"""Errors of `attach_xdp` that generic mode would meet as well: they aren't the driver's."""

_GONE = frozenset((errnos.ENOLINK, errnos.ENODEV))
_OF_DEVICES = frozenset((LinkType.XDP, LinkType.TCX))
_MODES: dict[int, str] = {
    LinkType.TCX: "tcx",
    LinkType.CGROUP: "cgroup",
    LinkType.RAW_TRACEPOINT: "tracepoint",
}
# What the kernel wants to be loaded for the hook that it is attached to.
_OF_ONE_HOOK = frozenset(
    (ProgramType.CGROUP_SOCK, ProgramType.CGROUP_SOCK_ADDR, ProgramType.CGROUP_SOCKOPT)
)
_TRIES = 20
_TRACEPOINT_NAME = 128  # bytes; the longest of the kernel's own has 50


class Attachment(Protocol):
    """What `Link`, `clsact.TcFilter` and `dispatched.Dispatched` have in common."""

    ifindex: int

    @property
    def mode(self) -> str:
        """How it runs there: native, generic, tcx, clsact, cgroup, tracepoint."""

    @property
    def program_id(self) -> int:
        """The id of the program that is attached now."""

    @property
    def attached(self) -> bool:
        """Whether it still is: others may detach it, and a device that goes takes it along."""

    def update(self, program: Program) -> None:
        """Replace the program; no packet goes by in between."""

    def pin(self, path: Path | str) -> None:
        """Name it in a BPF file system, from which `from_pin` gets it back."""

    def detach(self) -> None:
        """End the attachment, pinned or not."""

    def close(self) -> None:
        """Let go of it: what is pinned stays attached."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class Link:
    """One attached program, through a file descriptor.

    ``mode`` is "native" or "generic" for XDP, "tcx" at tc, "cgroup" or "tracepoint"; ``ifindex`` is
    the device's and ``cgroup_id`` the cgroup's, 0 of other links and of what had gone when this was
    opened; ``attach_type`` is the hook (BPF_*); ``why_generic`` says why auto mode didn't get
    native. When the last file descriptor is closed the attachment ends, unless it is pinned. A
    context manager, which detaches.
    """

    def __init__(self, fd: int, *, mode: str = "", why_generic: str = "") -> None:
        self.fd = fd
        info = self._info()
        self.id: int = info.id
        self.type: int = info.type
        self.ifindex: int = info.target.device.ifindex if info.type in _OF_DEVICES else 0
        self.cgroup_id: int = info.target.cgroup.cgroup_id if info.type == LinkType.CGROUP else 0
        self.attach_type = attach_type_of(info)
        self.why_generic = why_generic
        self.mode = mode or self._mode()

    def _mode(self) -> str:
        return xdp_mode(self.ifindex) if self.type == LinkType.XDP else _MODES.get(self.type, "")

    def _info(self) -> LinkInfo:
        what = f"ask for the link behind file descriptor {self.fd}"
        return get_info(self.fd, LinkInfo(), what)

    @classmethod
    def from_pin(cls, path: Path | str) -> Self:
        """The link pinned at ``path``. KernelError: no link is pinned there."""
        return cls(bpffs.open_pin(path, "link"))

    @property
    def program_id(self) -> int:
        """The id of the program that is attached now."""
        return int(self._info().prog_id)

    @property
    def attached(self) -> bool:
        """Whether what it is attached to is still there: the device, the cgroup.

        The device may be in another network namespace by now.
        """
        info = self._info()
        if info.type in _OF_DEVICES:
            return bool(info.target.device.ifindex)
        return bool(info.type != LinkType.CGROUP or info.target.cgroup.cgroup_id)

    def update(self, program: Program) -> None:
        """Replace the program; nothing goes by in between. KernelError."""
        what = f"replace the program of link {self.id}"
        compiled = program.attach_type
        # The kernel compares the programs' types and not what they are for (seen on 6.18).
        if program.type in _OF_ONE_HOOK and compiled not in (None, self.attach_type):
            hint = f"program {program.name} is for {hook_name(compiled or 0)}"
            hint += f", the link is at {hook_name(self.attach_type)}"
            raise KernelError(what, errnos.EINVAL, hint)
        result = lib.bpf_link_update(self.fd, program.fd, None)
        if result < 0:
            gone = "cgroup" if self.type == LinkType.CGROUP else "device"
            raise KernelError(what, -result, f"its {gone} is gone" if -result in _GONE else "")

    def pin(self, path: Path | str) -> None:
        """Name the link in a BPF file system, which keeps it attached. KernelError."""
        bpffs.pin(self.fd, path, f"link {self.id}")

    def detach(self) -> None:
        """End the attachment, pinned or not, and close. Twice is once."""
        if self.fd >= 0:
            lib.bpf_link_detach(self.fd)
            self.close()

    def close(self) -> None:
        """Close the file descriptor. Twice is once."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.detach()


def attach_type_of(info: LinkInfo) -> int:
    """The hook of a link (BPF_*), -1 of a kind that isn't used here."""
    if info.type == LinkType.XDP:
        return AttachType.XDP
    if info.type == LinkType.TCX:
        return int(info.target.device.attach_type)
    if info.type == LinkType.CGROUP:
        return int(info.target.cgroup.attach_type)
    return AttachType.TRACE_RAW_TP if info.type == LinkType.RAW_TRACEPOINT else -1


def from_pin(path: Path | str) -> Attachment:
    """Whatever `Attachment.pin` named ``path``. KernelError."""
    if bpffs.kind_of_pin(path) == "map":
        with Map.from_pin(path) as pinned:
            is_slot = pinned.type == MapType.PROG_ARRAY
        if is_slot:
            # It is built on what is here.
            from towpath.kernel.bpf.dispatched import Dispatched  # noqa: PLC0415

            return Dispatched.from_pin(path)
        return clsact.TcFilter.from_pin(path)
    link = Link.from_pin(path)
    if link.type == LinkType.RAW_TRACEPOINT:
        return TracepointLink(link.fd, pin=Path(path))
    return link


# ---- XDP -----------------------------------------------------------------------------------------


def attach_xdp(program: Program, ifindex: int, mode: Mode = "auto") -> Link:
    """Attach to a device's receive path.

    "native" runs in the driver, "generic" in the stack after it; "auto" is native where the driver
    can and generic otherwise (`Link.mode`, `Link.why_generic`). KernelError: no such device,
    another program is attached, or the driver refuses.
    """
    name = device_name(ifindex)
    first = "native" if mode == "auto" else mode
    fd = _create_xdp(program, ifindex, first)
    if fd >= 0:
        return Link(fd, mode=first)
    if mode == "auto" and -fd not in NOT_THE_DRIVER:
        refused = xdp_error(program, name, ifindex, first, -fd)
        fd = _create_xdp(program, ifindex, "generic")
        if fd >= 0:
            fall_back(f"native XDP on {name}", f"generic mode: {refused}")
            return Link(fd, mode="generic", why_generic=str(refused))
        first = "generic"
    raise xdp_error(program, name, ifindex, first, -fd)


def _create_xdp(program: Program, ifindex: int, mode: str) -> int:
    opts = LinkCreateOpts(flags=_XDP_FLAGS[mode])
    fd: int = lib.bpf_link_create(program.fd, ifindex, AttachType.XDP, ctypes.byref(opts))
    return fd


def xdp_error(program: Program, name: str, ifindex: int, mode: str, number: int) -> KernelError:
    """Why a program couldn't be put on a device."""
    hint = ""
    if number in (errnos.EBUSY, errnos.EEXIST):
        hint = f"program {xdp_program_id(ifindex)} is attached in {xdp_mode(ifindex)} mode"
    elif number == errnos.EPERM:
        hint = permission_hint(CAP_BPF, CAP_NET_ADMIN)
    elif mode == "native" and number not in NOT_THE_DRIVER:
        hint = "its driver refuses; its MTU may be too large, or it may have no native XDP"
    return KernelError(f"attach XDP program {program.name} to {name} in {mode} mode", number, hint)


def xdp_program_id(ifindex: int) -> int:
    """The id of the XDP program on a device, 0 for none."""
    query = _query(ifindex)
    return int(query.prog_id or query.drv_prog_id or query.skb_prog_id)


def xdp_programs(ifindex: int) -> dict[str, int]:
    """The ids of the XDP programs on a device, by the mode in which each runs."""
    query = _query(ifindex)
    by_mode = {"offload": query.hw_prog_id, "native": query.drv_prog_id}
    by_mode["generic"] = query.skb_prog_id
    return {mode: int(number) for mode, number in by_mode.items() if number}


def xdp_mode(ifindex: int) -> str:
    """How the XDP program on a device runs: "native", "generic", "" when there is none."""
    return _XDP_ATTACHED.get(_query(ifindex).attach_mode, "")


def _query(ifindex: int) -> XdpQueryOpts:
    """Nothing for a device that isn't there. KernelError: it can't be asked."""
    query = XdpQueryOpts()
    result = lib.bpf_xdp_query(ifindex, 0, ctypes.byref(query))
    if result < 0 and result != -errnos.ENODEV:
        raise KernelError(f"ask for the XDP program of device {ifindex}", -result)
    return query


# ---- tc ------------------------------------------------------------------------------------------


def attach_tc_ingress(
    program: Program, ifindex: int, handle: int = clsact.HANDLE, after: tuple[str, ...] = ()
) -> Attachment:
    """Attach to a device's tc ingress, after generic XDP and before the IP stack.

    ``after``: names of programs behind which it runs if they are there; else it is first.

    A link where the kernel has TCX, otherwise a classic filter with the same methods. A filter
    outlives whoever made it: one in our place on a device without an XDP program has nobody to
    serve, and is replaced. KernelError.
    """
    # Only the load balancer's has an XDP program beside it.
    unowned = handle != clsact.HANDLE or not xdp_program_id(ifindex)
    return _attach_tc(program, ifindex, "ingress", handle, after, replace=unowned)


def attach_tc_egress(
    program: Program, ifindex: int, handle: int = clsact.HANDLE, after: tuple[str, ...] = ()
) -> Attachment:
    """Attach to a device's tc egress, for what the IP stack sends.

    As at its ingress. A filter in our place is what a process left that did not end by itself, and
    is replaced. KernelError.
    """
    return _attach_tc(program, ifindex, "egress", handle, after, replace=True)


def filter_priority(after: tuple[str, ...]) -> int:
    """That of a filter whose program runs behind others: theirs is lower, whoever comes first."""
    return clsact.PRIORITY + len(after)


def _attach_tc(
    program: Program,
    ifindex: int,
    side: clsact.Side,
    handle: int,
    after: tuple[str, ...],
    *,
    replace: bool,
) -> Attachment:
    name = device_name(ifindex)
    if not probe.tcx():
        fall_back("TCX (Linux 6.6)", "programs at tc are filters, which outlive the agent")
        priority = filter_priority(after)
        return clsact.attach(
            program, ifindex, side, replace=replace, handle=handle, priority=priority
        )
    place = AttachType.TCX_INGRESS if side == "ingress" else AttachType.TCX_EGRESS
    fd = _create_tcx(program, ifindex, place, _last(ifindex, place, after) if after else 0)
    if fd < 0:
        hint = permission_hint(CAP_BPF, CAP_NET_ADMIN) if fd == -errnos.EPERM else ""
        raise KernelError(f"attach program {program.name} to tc {side} of {name}", -fd, hint)
    return Link(fd, mode="tcx")


def _create_tcx(program: Program, ifindex: int, place: AttachType, behind: int) -> int:
    """Attach behind a program, by its id. 0: in front of all, where none hides packets from it."""
    attr = TcxLinkAttr(
        prog_fd=program.fd,
        target_ifindex=ifindex,
        attach_type=place,
        flags=_BPF_F_AFTER | _BPF_F_ID if behind else _BPF_F_BEFORE,
        relative_id=behind,
    )
    try:
        return _libc.bpf(_BPF_LINK_CREATE, attr)
    except OSError as error:
        if behind and error.errno == errnos.ENOENT:  # that one has just gone
            return _create_tcx(program, ifindex, place, 0)
        return -(error.errno or errnos.EIO)


def _last(ifindex: int, place: AttachType, names: tuple[str, ...]) -> int:
    """The id of the last program at a hook that is called as one of these; 0: there is none."""
    last = 0
    for number in query(ifindex, place).programs:
        with suppress(KernelError), Program.from_id(number) as there:  # it may have gone
            last = number if there.name in names else last
    return last


# ---- Tracepoints ---------------------------------------------------------------------------------


class TracepointLink(Link):
    """A program at a tracepoint of the kernel.

    The kernel can't replace the program of such a link, nor end it while something holds it. So
    `update` attaches the new one beside the old one, which goes a moment later: nothing is missed,
    and what happens in between both of them see.
    """

    def __init__(self, fd: int, *, pin: Path | None = None) -> None:
        super().__init__(fd)
        self.tracepoint = tracepoint_of(fd)
        self._pin = pin

    def update(self, program: Program) -> None:
        """Attach another program, and let the one before go. KernelError."""
        if program.id == self.program_id:
            return
        making = self._pin and self._pin.with_name(f"{self._pin.name}-new")
        if making is not None:
            making.unlink(missing_ok=True)  # of a process that was killed half-way
        fd = _open_tracepoint(program, self.tracepoint)
        try:
            if making is not None and self._pin is not None:
                bpffs.pin(fd, making, f"link to tracepoint {self.tracepoint}")
                making.replace(self._pin)
        except BaseException:
            os.close(fd)
            raise
        os.close(self.fd)
        self.fd, self.id = fd, get_info(fd, LinkInfo(), "ask for a link").id

    def pin(self, path: Path | str) -> None:
        """Name the link in a BPF file system, which keeps it attached. KernelError."""
        super().pin(path)
        self._pin = Path(path)

    def detach(self) -> None:
        """End the attachment, removing its pin, and close. Twice is once."""
        if self._pin is not None:
            self._pin.unlink(missing_ok=True)
            self._pin = None
        self.close()


def attach_tracepoint(program: Program, name: str) -> TracepointLink:
    """Attach to a tracepoint of the kernel, such as "xdp_redirect_err".

    Programs are ``SEC("raw_tp")``, or ``SEC("tp_btf/xdp_redirect_err")``, which see the kernel's
    types. KernelError: there is no such tracepoint, or the program is for another.
    """
    return TracepointLink(_open_tracepoint(program, name))


def _open_tracepoint(program: Program, name: str) -> int:
    what = f"attach program {program.name} to tracepoint {name}"
    target = None if program.type == ProgramType.TRACING else name.encode()
    fd: int = lib.bpf_raw_tracepoint_open(target, program.fd)
    tries = 0
    while fd == -errnos.EEXIST and tries < _TRIES:
        # A link of this program that has just lost its pin is about to end.
        wait_for_readers()
        fd, tries = lib.bpf_raw_tracepoint_open(target, program.fd), tries + 1
    if fd < 0:
        raise KernelError(what, -fd, _tracepoint_hint(-fd))
    if (there := tracepoint_of(fd)) != name:
        os.close(fd)
        raise KernelError(what, errnos.EINVAL, f"it is for {there or 'no tracepoint'}")
    return fd


def _tracepoint_hint(number: int) -> str:
    if number == errnos.EPERM:
        return permission_hint(CAP_BPF, CAP_PERFMON)
    known = {
        errnos.ENOENT: "this kernel has no such tracepoint",
        errnos.EEXIST: "the program is there already",
    }
    return known.get(number, "")


def tracepoint_of(fd: int) -> str:
    """The name of the tracepoint that a link is at, "" if it is at none. KernelError."""
    what = f"ask for the link behind file descriptor {fd}"
    if get_info(fd, LinkInfo(), what).type != LinkType.RAW_TRACEPOINT:
        return ""
    buffer = ctypes.create_string_buffer(_TRACEPOINT_NAME)
    info = LinkInfo()
    info.target.tracepoint.name = ctypes.addressof(buffer)
    info.target.tracepoint.name_len = len(buffer)
    get_info(fd, info, what)
    return buffer.value.decode()
