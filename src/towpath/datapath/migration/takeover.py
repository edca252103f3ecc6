# SPDX-License-Identifier: Apache-2.0
"""What a new process does with what it finds pinned: a state for each case, and two moments.

| pinned | state | before devices have the program | once they all have it |
| --- | --- | --- | --- |
| nothing | FRESH | | |
| maps that fit | ADOPTED | take the services over | |
| maps of another layout | MOVING | fill new maps, pin them beside | copy what came, leave the old |
| both, of a dead process | FOLLOWING | take the services over | copy flows, leave the old |

A death at any line leaves one of these cases, which :mod:`towpath.datapath.maps.pins` tells
apart. Until the last column is done the old maps are in use and whole.
"""

from __future__ import annotations

import logging
from enum import Enum, auto
from typing import TYPE_CHECKING

from towpath.datapath.lb.contents import Contents
from towpath.datapath.migration.migration import Migration, Moved

if TYPE_CHECKING:
    from collections.abc import Callable

    from towpath.datapath.maps.pinned import PinnedMaps
    from towpath.datapath.program.program import LoadedProgram

log = logging.getLogger(__name__)


class State(Enum):
    """What was found."""

    FRESH = auto()
    ADOPTED = auto()
    MOVING = auto()
    FOLLOWING = auto()


# By whether the maps are adopted, and whether there are others to leave.
_FOUND = {
    (False, False): State.FRESH,
    (True, False): State.ADOPTED,
    (False, True): State.MOVING,
    (True, True): State.FOLLOWING,
}


class Takeover:
    """From what is pinned to ``contents``, which are in the maps that ``program`` uses."""

    def __init__(self, program: LoadedProgram, contents: Contents) -> None:
        self._program = program
        self._maps = program.tables
        self._contents = contents
        self._migration: Migration | None = None
        self.state = _FOUND[self._maps.adopted, self._maps.leaving is not None]

    def before_attaching(self) -> None:
        """Have everything in the maps before a packet reads them. CapacityError: it doesn't fit."""
        steps: dict[State, Callable[[], None]] = {
            State.FRESH: lambda: None,
            State.ADOPTED: self._contents.adopt,
            State.MOVING: self._move_in,
            State.FOLLOWING: self._contents.adopt,
        }
        steps[self.state]()

    def after_attaching(self) -> None:
        """After the last device uses these maps: take what came meanwhile along."""
        steps: dict[State, Callable[[], None]] = {
            State.FRESH: lambda: None,
            State.ADOPTED: lambda: None,
            State.MOVING: self._catch_up,
            State.FOLLOWING: self._follow,
        }
        steps[self.state]()
        self._maps.leave()

    def give_up(self) -> None:
        """Leave what was there before, if no device has what was to take its place."""
        if self.state is State.MOVING:
            self._maps.give_up({each.id for each in self._program.object.programs.values()})

    def _move_in(self) -> None:
        leaving = self._left()
        before = _contents_of(leaving)
        self._contents.apply(before.observed())
        moved = Moved.between(before.installed, self._contents.installed)
        self._migration = Migration(leaving, self._program, moved)
        flows = self._migration.before()
        services = len(self._contents.installed)
        log.info("copied %d services and %d flows to new tables", services, flows)
        self._maps.pin_beside()

    def _catch_up(self) -> None:
        if self._migration is not None:
            log.info("copied %d flows that came meanwhile", self._migration.after())

    def _follow(self) -> None:
        leaving = self._left()
        moved = Moved.between(_contents_of(leaving).installed, self._contents.installed)
        flows = Migration(leaving, self._program, moved).follow()
        log.info("copied %d flows from tables that were being left", flows)

    def _left(self) -> PinnedMaps:
        leaving = self._maps.leaving
        if leaving is None:
            raise RuntimeError(f"no maps to leave in state {self.state.name}")
        return leaving


def _contents_of(leaving: PinnedMaps) -> Contents:
    """What is in maps that another program was made for. Changes nothing in the kernel."""
    found = Contents(leaving)
    found.adopt()
    return found
