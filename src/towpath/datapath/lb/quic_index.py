# SPDX-License-Identifier: Apache-2.0
"""The index of the ids that backends have: open addressing with linear probing, written in place.

The program reads it while it is written. A slot is published by its last store, the handle; until
then and after removal that is 0. A slot that was used once is never again "never used", so no probe
sequence is cut short. Its id is wiped when it is removed, and another one is put there only when no
packet can still be reading the old one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from towpath.core.lb.hash import step
from towpath.datapath.errors import CapacityError
from towpath.datapath.lb.probing import FreeSlots

if TYPE_CHECKING:
    from towpath.datapath.lb.grace import Reclaimer

_NOBODYS = 0xFFFFFFFF
"""What no service has for an index: of slots that are free again."""


class IdIndex:
    """``quic_servers`` of ``bpf/lb/maps.h`` through a mapping of it.

    ``slots`` is an array of ``struct quic_server`` whose length is a power of two. Keys are records
    of that type whose handle doesn't count. ``capacity``: how many there may be, of all services.
    """

    def __init__(
        self, slots: np.ndarray[Any, Any], probes: int, reclaimer: Reclaimer, capacity: int
    ) -> None:
        self.key_dtype = slots.dtype
        self._ids = slots["id"]
        self._services = slots["service"]
        self._handles = slots["handle"]
        self._capacity = capacity
        self._free = FreeSlots(self._handles, probes, reclaimer)
        self._places = {
            (int(self._services[at]), int(self._ids[at])): int(at)
            for at in np.flatnonzero(self._handles)
        }
        begun = (self._handles == 0) & (self._services != 0)
        self._services[begun], self._ids[begun] = _NOBODYS, 0

    def lookup(self, key: Any) -> int | None:
        """Return the handle of whoever has an id, None if nobody has it."""
        at = self._places.get(_pair(key))
        return None if at is None else int(self._handles[at])

    def update(self, key: Any, handle: int) -> None:
        """Publish an id, or give it to another backend, in one store.

        Raises CapacityError if there are as many as may be, or if every slot that the program would
        look at is taken.
        """
        pair = _pair(key)
        at = self._places.get(pair)
        if at is None:
            at = self._free.find(_first(pair))
            used = len(self._places)
            if at is None or used == self._capacity:
                raise CapacityError("server ids", used + 1, used, "server_ids")
            # In this order it never looks like one of that service with another id.
            self._ids[at], self._services[at] = pair[1], pair[0]
            self._places[pair] = at
        self._handles[at] = handle

    def delete(self, key: Any, *, missing_ok: bool = False) -> None:
        """Have nobody have an id. KeyError if nobody has it, unless that is fine."""
        pair = _pair(key)
        if missing_ok and pair not in self._places:
            return
        at = self._places.pop(pair)
        self._handles[at] = 0
        self._services[at], self._ids[at] = _NOBODYS, 0
        self._free.retire(at)

    def items(self) -> list[tuple[Any, int]]:
        """Return each id with the handle of whoever has it."""
        found = []
        for (service, number), at in self._places.items():
            key = np.zeros((), self.key_dtype)
            key["service"], key["id"] = service, number
            found.append((key, int(self._handles[at])))
        return found


def _first(pair: tuple[int, int]) -> int:
    """Return where the program begins to look."""
    return step(step(0, pair[1]), pair[0]) >> 32


def _pair(key: Any) -> tuple[int, int]:
    return int(key["service"]), int(key["id"])
