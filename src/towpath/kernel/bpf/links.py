# SPDX-License-Identifier: Apache-2.0
"""Attached programs.

A link is an attachment that lasts as long as something holds it: a file descriptor or a pin. The
kernel has had them for XDP since before the oldest one supported here, for tc's ingress (TCX) since
6.6; before that `tc_filter.TcFilter` does the same with a classic filter.
"""

from __future__ import annotations

import ctypes
import errno as errnos
import os
from typing import TYPE_CHECKING, Literal, Protocol, Self

from towpath.kernel.bpf import bpffs, probe
from towpath.kernel.bpf._structs import LinkCreateOpts, LinkInfo, XdpQueryOpts
from towpath.kernel.bpf.libbpf import get_info, lib
from towpath.kernel.errors import CAP_BPF, CAP_NET_ADMIN, KernelError, permission_hint
from towpath.kernel.net import clsact
from towpath.kernel.net.interfaces import device_name

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from towpath.kernel.bpf.programs import Program

Mode = Literal["native", "generic", "auto"]

BPF_XDP = 37
BPF_TCX_INGRESS = 46
BPF_TCX_EGRESS = 47
_BPF_F_BEFORE = 1 << 3
_LINK_TYPE_XDP = 6
_XDP_FLAGS = {"generic": 1 << 1, "native": 1 << 2}
_XDP_ATTACHED = {1: "native", 2: "generic", 3: "offload", 4: "several"}

# Errors that generic mode would meet as well: they aren't the driver's.
_NOT_THE_DRIVER = frozenset((errnos.EBUSY, errnos.EEXIST, errnos.ENODEV, errnos.EPERM))


class Attachment(Protocol):
    """What `Link` and `tc_filter.TcFilter` have in common."""

    ifindex: int
    mode: str

    @property
    def program_id(self) -> int:
        """The id of the program that is attached now."""

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

    ``ifindex`` is the device's, ``mode`` "native" or "generic" for XDP and "tcx" at tc's ingress;
    ``why_generic`` says why auto mode didn't get native. When the last file descriptor is closed
    the attachment ends, unless it is pinned. A context manager, which detaches.
    """

    def __init__(self, fd: int, *, mode: str = "", why_generic: str = "") -> None:
        self.fd = fd
        info = get_info(fd, LinkInfo(), f"ask for the link behind file descriptor {fd}")
        self.id: int = info.id
        self.ifindex: int = info.ifindex
        self.why_generic = why_generic
        self.mode = mode or (xdp_mode(self.ifindex) if info.type == _LINK_TYPE_XDP else "tcx")

    @classmethod
    def from_pin(cls, path: Path | str) -> Self:
        """The link pinned at ``path``. KernelError: no link is pinned there."""
        return cls(bpffs.open_pin(path, "link"))

    @property
    def program_id(self) -> int:
        """The id of the program that is attached now."""
        return int(get_info(self.fd, LinkInfo(), "ask for a link").prog_id)

    def update(self, program: Program) -> None:
        """Replace the program; no packet goes by in between. KernelError."""
        result = lib.bpf_link_update(self.fd, program.fd, None)
        if result < 0:
            hint = "its device is gone" if -result in (errnos.ENOLINK, errnos.ENODEV) else ""
            raise KernelError(f"replace the program of link {self.id}", -result, hint)

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


def from_pin(path: Path | str) -> Attachment:
    """Whatever `Attachment.pin` named ``path``: a link, or a classic filter. KernelError."""
    if bpffs.kind_of_pin(path) == "map":
        return clsact.TcFilter.from_pin(path)
    return Link.from_pin(path)


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
    if mode == "auto" and -fd not in _NOT_THE_DRIVER:
        refused = _xdp_error(program, name, ifindex, first, -fd)
        fd = _create_xdp(program, ifindex, "generic")
        if fd >= 0:
            return Link(fd, mode="generic", why_generic=str(refused))
        first = "generic"
    raise _xdp_error(program, name, ifindex, first, -fd)


def _create_xdp(program: Program, ifindex: int, mode: str) -> int:
    opts = LinkCreateOpts(flags=_XDP_FLAGS[mode])
    fd: int = lib.bpf_link_create(program.fd, ifindex, BPF_XDP, ctypes.byref(opts))
    return fd


def _xdp_error(program: Program, name: str, ifindex: int, mode: str, number: int) -> KernelError:
    hint = ""
    if number in (errnos.EBUSY, errnos.EEXIST):
        hint = f"program {xdp_program_id(ifindex)} is attached in {xdp_mode(ifindex)} mode"
    elif number == errnos.EPERM:
        hint = permission_hint(CAP_BPF, CAP_NET_ADMIN)
    elif mode == "native" and number not in _NOT_THE_DRIVER:
        hint = "its driver refuses; its MTU may be too large, or it may have no native XDP"
    return KernelError(f"attach XDP program {program.name} to {name} in {mode} mode", number, hint)


def xdp_program_id(ifindex: int) -> int:
    """The id of the XDP program on a device, 0 for none."""
    query = _query(ifindex)
    return int(query.prog_id or query.drv_prog_id or query.skb_prog_id)


def xdp_mode(ifindex: int) -> str:
    """How the XDP program on a device runs: "native", "generic", "" when there is none."""
    return _XDP_ATTACHED.get(_query(ifindex).attach_mode, "")


def _query(ifindex: int) -> XdpQueryOpts:
    query = XdpQueryOpts()
    lib.bpf_xdp_query(ifindex, 0, ctypes.byref(query))
    return query


# ---- tc ------------------------------------------------------------------------------------------


def attach_tc_ingress(program: Program, ifindex: int) -> Attachment:
    """Attach to a device's tc ingress, after generic XDP and before the IP stack.

    A link where the kernel has TCX, otherwise a classic filter with the same methods. A filter
    outlives whoever made it: one in our place on a device without an XDP program has nobody to
    serve, and is replaced. KernelError.
    """
    return _attach_tc(program, ifindex, "ingress", replace=not xdp_program_id(ifindex))


def attach_tc_egress(program: Program, ifindex: int) -> Attachment:
    """Attach to a device's tc egress, for what the IP stack sends.

    As at its ingress. A filter in our place is what a process left that did not end by itself, and
    is replaced. KernelError.
    """
    return _attach_tc(program, ifindex, "egress", replace=True)


def _attach_tc(program: Program, ifindex: int, side: clsact.Side, *, replace: bool) -> Attachment:
    name = device_name(ifindex)
    if not probe.tcx():
        return clsact.attach(program, ifindex, side, replace=replace)
    # First, so that no other program's verdict hides packets from this one.
    opts = LinkCreateOpts(flags=_BPF_F_BEFORE)
    place = BPF_TCX_INGRESS if side == "ingress" else BPF_TCX_EGRESS
    fd = lib.bpf_link_create(program.fd, ifindex, place, ctypes.byref(opts))
    if fd < 0:
        hint = permission_hint(CAP_BPF, CAP_NET_ADMIN) if fd == -errnos.EPERM else ""
        raise KernelError(f"attach program {program.name} to tc {side} of {name}", -fd, hint)
    return Link(fd, mode="tcx")
