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
from towpath.kernel.bpf.rcu import wait_for_readers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from towpath.datapath.maps.pinned import PinnedMaps
    from towpath.datapath.program.program import LoadedProgram
    from towpath.model.service import Service

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
    """From what is pinned to ``contents``, which are in the maps that ``program`` uses.

    ``known``: services that may be among those.
    """

    def __init__(
        self, program: LoadedProgram, contents: Contents, known: Sequence[Service] = ()
    ) -> None:
        self._program = program
        self._maps = program.tables
        self._contents = contents
        self._known = known
        self._migration: Migration | None = None
        self.state = _FOUND[self._maps.adopted, self._maps.leaving is not None]

    def before_attaching(self) -> None:
        """Have everything in the maps before a packet reads them. CapacityError: it doesn't fit."""
        steps: dict[State, Callable[[], None]] = {
            State.FRESH: lambda: None,
            State.ADOPTED: lambda: self._contents.adopt(self._known),
            State.MOVING: self._move_in,
            State.FOLLOWING: lambda: self._contents.adopt(self._known),
        }
        steps[self.state]()
        self._note_move(moving=self._maps.leaving is not None)

    def _note_move(self, *, moving: bool) -> None:
        """Tell the program whether what it doesn't find may yet be copied."""
        settings = self._maps.maps["settings"]
        record = settings.lookup(0)
        record["moving"] = moving
        settings.update(0, record)

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
            translated = self._end_move(self._migration)
            flows = self._migration.after()
            log.info("copied %d flows that came meanwhile", translated + flows)

    def _follow(self) -> None:
        leaving = self._left()
        moved = Moved.between(_contents_of(leaving).installed, self._contents.installed)
        migration = Migration(leaving, self._program, moved)
        translated = self._end_move(migration)
        flows = migration.follow()
        log.info("copied %d flows from tables that were being left", translated + flows)

    def _end_move(self, migration: Migration) -> int:
        """Have every translation in the maps; returns how many were copied."""
        # The program of before may be at its last packets yet, which write the old tables.
        wait_for_readers()
        copied = migration.translations()
        self._note_move(moving=False)
        return copied

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
