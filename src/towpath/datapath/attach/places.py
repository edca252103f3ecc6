# SPDX-License-Identifier: Apache-2.0
"""Places of programs: attached, pinned, adopted, replaced and given up, whatever the hook.

A place has a name, under which it is pinned where there is a directory of pins: it then
outlives the process, and the next one puts its program there without a packet, or a system
call, between the two. How a program is attached is the caller's to say: any function that
returns an :class:`towpath.kernel.bpf.links.Attachment`, such as ``attach_xdp`` or
``attach_tc_egress`` with its arguments.
"""

from __future__ import annotations

import errno
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from towpath.kernel.bpf import links
from towpath.kernel.bpf.bpffs import remove_pins
from towpath.kernel.errors import KernelError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from towpath.kernel.bpf.programs import Program

log = logging.getLogger(__name__)

_GONE = frozenset((errno.ENOLINK, errno.ENODEV))


@dataclass
class Place:
    """A program's place."""

    name: str
    link: links.Attachment
    program: Program
    """The one that is there."""
    pin: Path | None
    adopted: bool
    """It was there before this process."""


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

    def take(
        self, name: str, program: Program, attach: Callable[[Program], links.Attachment]
    ) -> Place:
        """Put a program into the pinned place of that name, or else attach and pin it.

        KernelError: it can't be attached.
        """
        place = self._adopted(name, program)
        if place is None:
            place = Place(name, attach(program), program, None, adopted=False)
            self._places.append(place)
            if self._pins is not None:
                self._pins.mkdir(parents=True, exist_ok=True)
                place.link.pin(self._pins / name)
                place.pin = self._pins / name
        return place

    def _adopted(self, name: str, program: Program) -> Place | None:
        """Put a program into a pinned link. None: there is none that still works."""
        if self._pins is None or not (self._pins / name).exists():
            return None
        path = self._pins / name
        try:
            link = links.from_pin(path)
            try:
                link.update(program)
            except BaseException:
                link.close()
                raise
        except KernelError as error:
            # What the link was attached to went away.
            log.info("link %s is of no use any more: %s", path, error)
            path.unlink()
            return None
        place = Place(name, link, program, path, adopted=True)
        self._places.append(place)
        return place

    def replace(self, places: Iterable[Place], program: Program) -> None:
        """Put another program into places that are taken.

        A place whose device is gone is left out. KernelError: one can't have it; then all have
        what they had.
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

    def pinned(self) -> tuple[str, ...]:
        """The names of all places that are pinned, taken by this process or not."""
        if self._pins is None or not self._pins.is_dir():
            return ()
        return tuple(sorted(path.name for path in self._pins.iterdir()))

    def drop(self, name: str) -> None:
        """End a pinned attachment that an earlier process has left."""
        if self._pins is None:
            return
        path = self._pins / name
        try:
            links.from_pin(path).detach()
        except KernelError as error:
            log.info("link %s has nothing to detach from: %s", path, error)
        path.unlink()

    def detach(self) -> None:
        """End all attachments, pinned or not, the last one first."""
        self._end(self._places)
        if self._pins is not None:
            remove_pins(self._pins)

    def give_up(self) -> None:
        """Leave what was there before this object, and no more."""
        self._end([place for place in self._places if not place.adopted])
        self.close()

    def close(self) -> None:
        """Let go: what is pinned stays attached."""
        for place in self._places:
            place.link.close()
        self._places.clear()

    @staticmethod
    def _end(places: list[Place]) -> None:
        for place in reversed(places):
            try:
                place.link.detach()
            except KernelError as error:
                log.warning("%s", error)
            if place.pin is not None:
                place.pin.unlink(missing_ok=True)
