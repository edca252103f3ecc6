# SPDX-License-Identifier: Apache-2.0
"""Where a program can be attached: one class for each kind of hook, with the same methods.

::

    hook = Cgroup(mount_point() / "kubepods.slice", AttachType.CGROUP_INET4_CONNECT)
    link = hook.attach(program)
    print(hook.programs())
"""

from __future__ import annotations

import errno as errnos
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from towpath.kernel.bpf import dispatcher, links
from towpath.kernel.bpf.attach_types import AttachType, hook_name
from towpath.kernel.bpf.attached import Inventory
from towpath.kernel.bpf.cgroups import attach_cgroup
from towpath.kernel.bpf.dispatched import COMPONENT, DEFAULT_PRIORITY, Dispatched
from towpath.kernel.cgroup import cgroup_id
from towpath.kernel.errors import KernelError
from towpath.kernel.net import clsact
from towpath.kernel.net.interfaces import device_name

if TYPE_CHECKING:
    from pathlib import Path

    from towpath.kernel.bpf.attached import AttachedProgram
    from towpath.kernel.bpf.links import Attachment
    from towpath.kernel.bpf.programs import Program


class Hook(Protocol):
    """One hook of one device, cgroup or kernel. Its text says which."""

    def attach(self, program: Program) -> Attachment:
        """Attach a program. KernelError."""

    def has(self, attachment: Attachment) -> bool:
        """Whether this is where something is attached.

        KernelError: it can't be asked; or it isn't, and with it gone this would still be taken.
        """

    def programs(self) -> list[AttachedProgram]:
        """Who is there, in the order of running. KernelError."""


@dataclass(frozen=True, slots=True)
class Xdp:
    """A device's receive path."""

    ifindex: int
    mode: links.Mode = "auto"

    def attach(self, program: Program) -> Attachment:
        """As `links.attach_xdp`."""
        return links.attach_xdp(program, self.ifindex, self.mode)

    def has(self, attachment: Attachment) -> bool:
        """In any mode. KernelError: it is in a dispatcher there, together with others."""
        if attachment.ifindex != self.ifindex:
            return False
        if isinstance(attachment, Dispatched) and (others := attachment.others()):
            what = f"attach by a link to {device_name(self.ifindex)}"
            hint = f"its XDP hook is shared with {', '.join(others)}: take them off first"
            raise KernelError(what, errnos.EBUSY, hint)
        return _at(attachment, AttachType.XDP)

    def programs(self) -> list[AttachedProgram]:
        """In any mode."""
        return Inventory().xdp(self.ifindex)

    def __str__(self) -> str:
        return f"XDP of device {self.ifindex}"


@dataclass(frozen=True, slots=True)
class Dispatcher:
    """A device's receive path, shared with others by a dispatcher (libxdp)."""

    ifindex: int
    mode: dispatcher.Mode
    priority: int = DEFAULT_PRIORITY
    component: str = COMPONENT
    fragments: bool = False
    """Whether the program takes frames in fragments."""

    def attach(self, program: Program) -> Dispatched:
        """As `Dispatched.attach`."""
        return Dispatched.attach(
            program,
            self.ifindex,
            self.mode,
            self.priority,
            component=self.component,
            fragments=self.fragments,
        )

    def has(self, attachment: Attachment) -> bool:
        """In any mode, and of any priority."""
        return isinstance(attachment, Dispatched) and attachment.ifindex == self.ifindex

    def programs(self) -> list[AttachedProgram]:
        """The dispatcher, and what it calls."""
        return Inventory().xdp(self.ifindex)

    def __str__(self) -> str:
        return f"the dispatcher of device {self.ifindex}"


@dataclass(frozen=True, slots=True)
class Tc:
    """One side of a device's tc, by a link or by a filter."""

    ifindex: int
    side: clsact.Side = "ingress"
    handle: int = clsact.HANDLE
    """Of the filter, where there are no links: one for each program of ours on the device."""
    after: tuple[str, ...] = ()
    """Names of programs that run before it, where they are. It is first, otherwise."""

    def attach(self, program: Program) -> Attachment:
        """As `links.attach_tc_ingress` and `links.attach_tc_egress`."""
        egress = self.side == "egress"
        attach = links.attach_tc_egress if egress else links.attach_tc_ingress
        return attach(program, self.ifindex, self.handle, self.after)

    def has(self, attachment: Attachment) -> bool:
        """By a link or by a filter."""
        if attachment.ifindex != self.ifindex:
            return False
        if isinstance(attachment, clsact.TcFilter):
            place = attachment.side, attachment.handle, attachment.priority
            return place == (self.side, self.handle, links.filter_priority(self.after))
        egress = self.side == "egress"
        return _at(attachment, AttachType.TCX_EGRESS if egress else AttachType.TCX_INGRESS)

    def programs(self) -> list[AttachedProgram]:
        """By links, and then by filters."""
        return Inventory().tc(self.ifindex, self.side)

    def __str__(self) -> str:
        return f"tc {self.side} of device {self.ifindex}"


@dataclass(frozen=True, slots=True)
class Cgroup:
    """A hook of a cgroup."""

    path: Path
    attach_type: int

    def attach(self, program: Program) -> Attachment:
        """As `cgroups.attach_cgroup`."""
        return attach_cgroup(program, self.path, self.attach_type)

    def has(self, attachment: Attachment) -> bool:
        """A cgroup that was removed and made again, under the same name, is another."""
        if not _at(attachment, self.attach_type):
            return False
        return isinstance(attachment, links.Link) and attachment.cgroup_id == cgroup_id(self.path)

    def programs(self) -> list[AttachedProgram]:
        """Those of the cgroups that it is in as well: they run there."""
        return Inventory().cgroup(self.path, self.attach_type)

    def __str__(self) -> str:
        return f"{hook_name(self.attach_type)} of cgroup {self.path}"


@dataclass(frozen=True, slots=True)
class Tracepoint:
    """A tracepoint of the kernel."""

    name: str

    def attach(self, program: Program) -> Attachment:
        """As `links.attach_tracepoint`."""
        return links.attach_tracepoint(program, self.name)

    def has(self, attachment: Attachment) -> bool:
        """By its name."""
        return isinstance(attachment, links.TracepointLink) and attachment.tracepoint == self.name

    def programs(self) -> list[AttachedProgram]:
        """Those that have a link."""
        return Inventory().tracepoint(self.name)

    def __str__(self) -> str:
        return f"tracepoint {self.name}"


def _at(attachment: Attachment, attach_type: int) -> bool:
    return isinstance(attachment, links.Link) and attachment.attach_type == attach_type
