# SPDX-License-Identifier: Apache-2.0
"""What is attached, whoever has attached it: at XDP, at tc, at cgroups and at tracepoints.

Links tell what they are at, hooks tell their programs, and neither tells the other. So an
`Inventory` walks all links and pins of the machine once, and answers for any number of hooks.
"""

from __future__ import annotations

import ctypes
import errno as errnos
import os
import time
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from typing import TYPE_CHECKING, NamedTuple

from towpath.kernel.bpf import bpffs, links
from towpath.kernel.bpf._structs import LinkInfo, ProgInfo
from towpath.kernel.bpf.attach_types import CGROUP_HOOKS, AttachType, LinkType, hook_name
from towpath.kernel.bpf.cgroups import ALLOW_MULTI, ALLOW_OVERRIDE
from towpath.kernel.bpf.libbpf import get_info, lib
from towpath.kernel.bpf.programs import Program
from towpath.kernel.bpf.query import query
from towpath.kernel.cgroup import cgroup_id, lineage, opened
from towpath.kernel.errors import CAP_SYS_ADMIN, KernelError, permission_hint
from towpath.kernel.net import clsact
from towpath.kernel.net.interfaces import device_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

_SIDES = {"ingress": AttachType.TCX_INGRESS, "egress": AttachType.TCX_EGRESS}
_EXTENSION = 0  # the attach type of a link whose program replaces a function of another


@dataclass(frozen=True, slots=True)
class AttachedProgram:
    """A program at a hook."""

    hook: str
    """xdp, tc ingress, tc egress, tracepoint; of cgroups as in `CGROUP_HOOKS`: connect4."""
    place: str
    """The device, the tracepoint; the cgroup that it is attached to: the one that was asked for or
    one that it is in, empty if that lies above what is mounted here."""
    how: str
    """XDP: native, generic, offload. tc: tcx, clsact. Tracepoints: raw_tp. Cgroups: multi, others
    may be beside it; preorder, the same, and it runs before those of cgroups below
    (BPF_F_PREORDER, 6.15); override, one below takes its place; exclusive, neither. extension: it
    has taken the place of a function of the program before (freplace; libxdp's dispatcher has
    them)."""
    program_id: int
    """0 of classic BPF."""
    name: str
    """Empty where this process may not ask."""
    tag: str
    """The kernel's hash of its instructions, hexadecimal; empty as above."""
    loaded: str
    """When it was loaded, such as 2026-11-29T08:00:00Z; empty as above."""
    link_id: int | None
    """0: attached without a link. None: not known."""
    pins: tuple[str, ...]
    """Where its link, and it itself, are pinned below /sys/fs/bpf."""

    def __str__(self) -> str:
        known = [f"id {self.program_id}"] if self.program_id else []
        known += [f"link {self.link_id}"] if self.link_id else []
        known += [f"pinned at {pin}" for pin in self.pins[:1]]
        return f"{self.name or 'program'} ({', '.join(known)})" if known else self.name


class _Link(NamedTuple):
    """What one link says."""

    id: int
    program_id: int
    info: LinkInfo
    tracepoint: str


class _Facts(NamedTuple):
    """What is known of a program."""

    name: str = ""
    tag: str = ""
    loaded: str = ""


class Inventory:
    """What is attached. Each answer is in the order of running.

    Hooks are asked each time, the machine's links and pins once. Without CAP_SYS_ADMIN neither
    names nor links are known. KernelError: CAP_NET_ADMIN is missing, or what was asked for is not
    there.
    """

    def __init__(self) -> None:
        self._facts: dict[int, _Facts] = {}
        self._booted = time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    # ---- Hooks -----------------------------------------------------------------------------------

    def device(self, ifindex: int) -> list[AttachedProgram]:
        """At a device: XDP, then tc's ingress, then its egress."""
        return [*self.xdp(ifindex), *self.tc(ifindex, "ingress"), *self.tc(ifindex, "egress")]

    def xdp(self, ifindex: int) -> list[AttachedProgram]:
        """At a device's XDP hook: one, and perhaps another in the device itself."""
        name = device_name(ifindex)
        rows: list[AttachedProgram] = []
        for how, number in links.xdp_programs(ifindex).items():
            rows += self._rows("xdp", name, how, number, self._of_xdp(ifindex, number))
        return rows

    def tc(self, ifindex: int, side: clsact.Side) -> list[AttachedProgram]:
        """On one side of a device's tc: TCX programs, then BPF filters."""
        name, hook = device_name(ifindex), _SIDES[side]
        rows: list[AttachedProgram] = []
        for number, link in _tcx(ifindex, hook):
            rows += self._rows(hook_name(hook), name, "tcx", number, link)
        for each in clsact.filters(ifindex, side):
            rows += self._rows(hook_name(hook), name, "clsact", each.program_id, 0)
        return rows

    def cgroup(self, path: Path | str, attach_type: int) -> list[AttachedProgram]:
        """At a hook of a cgroup: all that runs there, those of the ones that it is in as well."""
        with opened(path) as fd:
            effective = query(fd, attach_type, effective=True).programs
        sources = self._sources(path, attach_type) if effective else {}
        found: list[tuple[int, str, str, int | None]] = []
        for number in effective:
            left = sources.get(number)
            found.append((number, *(left.pop(0) if left else ("", "", None))))
        rows: list[AttachedProgram] = []
        for at, (number, place, how, link) in enumerate(found):
            # The kernel tells the order, and not what has made it so.
            before = how == "multi" and any(
                below.startswith(f"{place}/") for _, below, *_ in found[at + 1 :]
            )
            shown = "preorder" if before else how
            rows += self._rows(hook_name(attach_type), place, shown, number, link)
        return rows

    def _sources(
        self, path: Path | str, attach_type: int
    ) -> dict[int, list[tuple[str, str, int | None]]]:
        """Where programs come from, by id, the nearest cgroup first: its path, how, the link."""
        sources: dict[int, list[tuple[str, str, int | None]]] = {}
        for each in lineage(path):
            with opened(each) as fd:
                there = query(fd, attach_type)
            for number in dict.fromkeys(there.programs):
                times = there.programs.count(number)
                for link in self._of_cgroup(each, attach_type, number, times):
                    place = (str(each), _how(there.flags), link)
                    sources.setdefault(number, []).append(place)
        return sources

    def cgroup_hooks(self, path: Path | str) -> list[AttachedProgram]:
        """At all hooks of a cgroup that this kernel has."""
        rows: list[AttachedProgram] = []
        for hook in CGROUP_HOOKS:
            try:
                rows += self.cgroup(path, hook)
            except KernelError as error:
                if error.errno != errnos.EINVAL:
                    raise
        return rows

    def tracepoint(self, name: str) -> list[AttachedProgram]:
        """At a tracepoint of the kernel: those that have a link, which perf's have not."""
        if self._links is None:
            hint = permission_hint(CAP_SYS_ADMIN)
            raise KernelError(f"ask for the programs at tracepoint {name}", errnos.EPERM, hint)
        rows: list[AttachedProgram] = []
        for each in self._links:
            if each.tracepoint == name:
                rows += self._rows("tracepoint", name, "raw_tp", each.program_id, each.id)
        return rows

    def extensions(self, program_id: int) -> int | None:
        """How many programs have taken the places of functions of another (Linux 5.13).

        None: this process may not ask.
        """
        return None if self._links is None else len(self._extensions(program_id))

    # ---- Programs --------------------------------------------------------------------------------

    def _rows(
        self, hook: str, place: str, how: str, number: int, link: int | None
    ) -> Iterator[AttachedProgram]:
        """Yield a program, and those that have taken the places of functions of it."""
        known = self._known(number) if number else _Facts("classic BPF")
        pins = (*self._pins["link"].get(link or 0, ()), *self._pins["prog"].get(number, ()))
        yield AttachedProgram(hook, place, how, number, *known, link, pins)
        for each in self._extensions(number):
            yield from self._rows(hook, place, "extension", each.program_id, each.id)

    def _known(self, number: int) -> _Facts:
        if number not in self._facts:
            try:
                with Program.from_id(number) as program:
                    loaded = time.gmtime((self._booted + program.loaded_ns) // 10**9)
                    moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", loaded)
                    self._facts[number] = _Facts(program.name, program.tag, moment)
            except KernelError:  # not allowed, or gone by now
                self._facts[number] = _Facts()
        return self._facts[number]

    def _extensions(self, number: int) -> list[_Link]:
        """The links of programs that replace functions of another, in the order of these."""
        found = [
            (each.info.target.tracing, each)
            for each in self._links or ()
            if each.info.type == LinkType.TRACING
        ]
        wanted = [
            (int(target.target_btf_id), each)
            for target, each in found
            if (target.attach_type, target.target_obj_id) == (_EXTENSION, number or None)
        ]
        return [each for _, each in sorted(wanted, key=itemgetter(0))]

    # ---- Links and pins --------------------------------------------------------------------------

    @cached_property
    def _links(self) -> list[_Link] | None:
        """All links of the machine; None: this process may not ask."""
        found, following = [], ctypes.c_uint32()
        while (result := lib.bpf_link_get_next_id(following.value, ctypes.byref(following))) == 0:
            fd = lib.bpf_link_get_fd_by_id(following.value)
            if fd == -errnos.EPERM:
                return None
            if fd >= 0:  # it isn't gone by now
                found.append(_link(fd))
        return None if result == -errnos.EPERM else found

    @cached_property
    def _pins(self) -> dict[str, dict[int, list[str]]]:
        """Paths below /sys/fs/bpf, by kind and id."""
        found: dict[str, dict[int, list[str]]] = {"link": {}, "prog": {}}
        for path, kind, fd in bpffs.pins():
            if kind in found:
                info = LinkInfo() if kind == "link" else ProgInfo()
                number = get_info(fd, info, f"ask what {path} is").id
                found[kind].setdefault(number, []).append(str(path))
        return found

    def _of_xdp(self, ifindex: int, number: int) -> int | None:
        """The link of a device's program, 0: it has none.

        Links don't tell their device's network namespace: where the same program is on devices of
        that index in several, this one's link isn't known.
        """
        if self._links is None:
            return None
        found = [
            each.id
            for each in self._links
            if (each.info.type, each.program_id) == (LinkType.XDP, number)
            and each.info.target.device.ifindex == ifindex
        ]
        return None if len(found) > 1 else next(iter(found), 0)

    def _of_cgroup(
        self, path: Path, attach_type: int, number: int, times: int
    ) -> Iterable[int | None]:
        """The link of each of the ``times`` that a program is attached to a cgroup."""
        if self._links is None:
            return [None] * times
        here = cgroup_id(path)
        found = [
            each.id
            for each in self._links
            if (each.info.type, each.program_id) == (LinkType.CGROUP, number)
            and each.info.target.cgroup.cgroup_id == here
            and links.attach_type_of(each.info) == attach_type
        ]
        return found if len(found) == times else [None if found else 0] * times


def _link(fd: int) -> _Link:
    """What a link says; closes it."""
    try:
        info = get_info(fd, LinkInfo(), f"ask for the link behind file descriptor {fd}")
        return _Link(info.id, info.prog_id, info, links.tracepoint_of(fd))
    finally:
        os.close(fd)


def _tcx(ifindex: int, hook: int) -> list[tuple[int, int]]:
    """Programs and links at one side of a device; none before Linux 6.6."""
    try:
        there = query(ifindex, hook)
    except KernelError as error:
        if error.errno != errnos.EINVAL:
            raise
        return []
    return list(zip(there.programs, there.links or (), strict=True))


def _how(flags: int) -> str:
    if flags & ALLOW_MULTI:
        return "multi"
    return "override" if flags & ALLOW_OVERRIDE else "exclusive"
