# SPDX-License-Identifier: Apache-2.0
"""Places of programs: attached, pinned, adopted, replaced and given up, whatever the hook.

A place has a name, under which it is pinned where there is a directory of pins: it then
outlives the process, and the next one puts its program there without a packet, or a system
call, between the two. Where a program is attached is the caller's to say: any
:class:`towpath.kernel.bpf.hooks.Hook`.
"""

from __future__ import annotations

import errno
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from towpath.kernel.bpf import links
from towpath.kernel.bpf.attach_types import LinkType
from towpath.kernel.bpf.bpffs import remove_pins
from towpath.kernel.bpf.programs import ProgramType
from towpath.kernel.errors import KernelError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from towpath.kernel.bpf.attached import AttachedProgram
    from towpath.kernel.bpf.hooks import Hook
    from towpath.kernel.bpf.programs import Program

log = logging.getLogger(__name__)

_GONE = frozenset((errno.ENOLINK, errno.ENODEV))
_NOT_ALLOWED = frozenset((errno.EPERM, errno.EACCES))


@dataclass
class Place:
    """A program's place."""

    name: str
    hook: Hook
    link: links.Attachment
    program: Program
    """The one that is there."""
    pin: Path | None
    adopted: bool
    """It was there before this process."""

    @property
    def lost(self) -> bool:
        """Whether what it was attached to, a device or a cgroup, has gone: nothing runs there."""
        return not self.link.attached

    def others(self) -> list[AttachedProgram]:
        """Who else is at the hook, in the order of running. KernelError."""
        return [each for each in self.hook.programs() if not self._is_ours(each)]

    def _is_ours(self, each: AttachedProgram) -> bool:
        if isinstance(self.link, links.Link) and each.link_id:
            return each.link_id == self.link.id
        return each.program_id == self.program.id


class Places:
    """The places of one owner. ``pins``: the directory that keeps them, None for none.

    Not thread-safe.
    """

    def __init__(self, pins: Path | None = None) -> None:
        self._pins = pins
        self._places: list[Place] = []

    def __iter__(self) -> Iterator[Place]:
        """Yield the places in the order in which they were taken."""
        return iter(self._places)

    def take(self, name: str, program: Program, hook: Hook) -> Place:
        """Put a program into the pinned place of that name, or else attach and pin it.

        What is pinned there, and is at another hook or has lost its own, is ended. A place
        that this process has taken before is taken again. KernelError: it can't be attached,
        or can't be put there: then what is there goes on.
        """
        place = self._adopted(name, program, hook)
        if place is None:
            place = Place(name, hook, hook.attach(program), program, None, adopted=False)
            self._places.append(place)
            if self._pins is not None:
                # First where it belongs: pin_again() does what fails here.
                place.pin = self._pins / name
                self._pins.mkdir(parents=True, exist_ok=True, mode=0o700)
                place.link.pin(place.pin)
        return place

    def _adopted(self, name: str, program: Program, hook: Hook) -> Place | None:
        """Put a program into the link that there is. None: there is none that still works."""
        place = self.get(name) or self._found(name, program, hook)
        if place is None:
            return None
        try:
            if place.lost or not hook.has(place.link):
                log.info("%s: what is pinned, or was taken, is not at %s (any more)", name, hook)
                self._end([place])
                return None
            place.link.update(program)
        except KernelError as error:
            # Gone just now; or it has a program that was loaded for other callers, by which an XDP
            # link's program must be like the one before (382778edc826).
            is_xdp = isinstance(place.link, links.Link) and place.link.type == LinkType.XDP
            other = is_xdp and program.type == ProgramType.XDP and error.errno == errno.EINVAL
            if error.errno in _GONE or other:
                log.info("%s: %s", name, error)
                self._end([place])
                return None
            if place not in self._places:
                place.link.close()
            raise
        place.program, place.hook = program, hook
        if place not in self._places:
            self._places.append(place)
        return place

    def get(self, name: str) -> Place | None:
        """The place of that name that this process has."""
        return next((each for each in self._places if each.name == name), None)

    def _found(self, name: str, program: Program, hook: Hook) -> Place | None:
        """The place of that name that is pinned, if its link can be opened."""
        if self._pins is None or not (self._pins / name).exists():
            return None
        path = self._pins / name
        try:
            return Place(name, hook, links.from_pin(path), program, path, adopted=True)
        except KernelError as error:
            if error.errno in _NOT_ALLOWED:
                raise
            log.info("link %s is of no use any more: %s", path, error)
            path.unlink()
            return None

    def take_over(self, path: Path, name: str) -> None:
        """Make what is pinned elsewhere, by an earlier version, the pinned place of that name.

        Nothing there is fine. It stays attached as it is; `take` puts a program there. Where the
        name is pinned already the older one is ended, unless it is the same. KernelError: ``path``
        is on another BPF file system, or this owner has no pins.
        """
        if not path.exists():
            return
        if self._pins is None:
            raise KernelError(f"take over {path}", hint="there is no directory of pins to keep it")
        target = self._pins / name
        if target.exists():
            # A link ends with its last name.
            path.unlink()
            return
        self._pins.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            path.rename(target)
        except OSError as error:
            raise KernelError(f"take over {path} as {target}", error.errno or 0) from error

    def replace(self, places: Iterable[Place], program: Program) -> None:
        """Put another program into places that are taken.

        A place whose device or cgroup is gone is left out. KernelError: one can't have it; then
        all have what they had.
        """
        done: list[tuple[Place, Program]] = []
        for place in places:
            try:
                place.link.update(program)
            except KernelError as error:
                if error.errno in _GONE:
                    log.info("%s", error)
                    continue
                for each, before in done:
                    each.link.update(before)
                    each.program = before
                raise
            done.append((place, place.program))
            place.program = program

    def pin_again(self) -> list[str]:
        """Pin those again whose pins somebody has removed; their names. KernelError."""
        missing = [place for place in self._places if place.pin and not place.pin.exists()]
        for place in missing:
            path = cast("Path", place.pin)
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            place.link.pin(path)
        return [place.name for place in missing]

    def pinned(self) -> tuple[str, ...]:
        """The names of all places that are pinned, taken by this process or not."""
        if self._pins is None or not self._pins.is_dir():
            return ()
        return tuple(sorted(path.name for path in self._pins.iterdir()))

    def lost(self) -> list[Place]:
        """The places whose device or cgroup has gone: nothing runs there any more."""
        return [place for place in self._places if place.lost]

    def drop(self, name: str) -> None:
        """End the attachment of that name, this process's or what an earlier one has left."""
        if place := self.get(name):
            self._end([place])
        if self._pins is None:
            return
        path = self._pins / name
        if not path.exists():
            return
        try:
            links.from_pin(path).detach()
        except KernelError as error:
            log.info("link %s has nothing to detach from: %s", path, error)
        path.unlink(missing_ok=True)

    def detach(self) -> None:
        """End all attachments, pinned or not, the last one first."""
        self._end([*self._places])
        if self._pins is not None:
            remove_pins(self._pins)

    def detach_pinned(self) -> None:
        """End all attachments that are pinned, whoever took them."""
        for name in self.pinned():
            self.drop(name)
        self.detach()

    def give_up(self) -> None:
        """Leave what was there before this object, and no more."""
        self._end([place for place in self._places if not place.adopted])
        self.close()

    def close(self) -> None:
        """Let go: what is pinned stays attached."""
        for place in self._places:
            place.link.close()
        self._places.clear()

    def _end(self, places: list[Place]) -> None:
        for place in reversed(places):
            try:
                place.link.detach()
            except KernelError as error:
                log.warning("%s", error)
            if place.pin is not None:
                place.pin.unlink(missing_ok=True)
            if place in self._places:
                self._places.remove(place)
