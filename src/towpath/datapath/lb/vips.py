# SPDX-License-Identifier: Apache-2.0
"""The index of VIPs: open addressing with linear probing, written in place.

The program reads it while it is written. A slot is published by its last store,
the service; until then and after removal that word is 0. A slot that was used
once is never again "never used", so no probe sequence is cut short. Its key is
wiped when it is removed, and another one is put there only when no packet can
still be reading the old one: no packet matches one key and reads the service of
another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from towpath.core.lb.hash import hash_vip
from towpath.datapath.address import FAMILY_V6
from towpath.datapath.errors import CapacityError
from towpath.datapath.lb.probing import FreeSlots

if TYPE_CHECKING:
    from collections.abc import Iterator

    from towpath.datapath.lb.grace import Reclaimer

_KEY_BYTES = 20
_FAMILY = 19
"""Where in a key its family is. 0 in a slot that was never used."""


class VipIndex:
    """``vips`` of ``bpf/lb/maps.h`` through a mapping of it.

    ``slots`` is an array of ``struct vip_slot`` whose length is a power of two; ``prefix_flag`` is
    VIP_PREFIX, which the family of a prefix has.
    """

    def __init__(
        self,
        slots: np.ndarray[Any, Any],
        probes: int,
        reclaimer: Reclaimer,
        prefix_flag: int,
    ) -> None:
        self._prefix_flag = prefix_flag
        self._keys = slots.view(np.uint8).reshape(len(slots), -1)[:, :_KEY_BYTES]
        self._services = slots["service"]
        self._probes = probes
        self._free = FreeSlots(self._services, probes, reclaimer)
        self._places: dict[bytes, int] = {
            self._keys[at].tobytes(): int(at) for at in np.flatnonzero(self._services)
        }

    def __iter__(self) -> Iterator[tuple[bytes, int]]:
        """Yield each key (20 bytes) and its service."""
        return ((key, int(self._services[at])) for key, at in self._places.items())

    def get(self, key: bytes) -> int:
        """Return what a key leads to, 0 if it isn't there."""
        at = self._places.get(key)
        return 0 if at is None else int(self._services[at])

    def set(self, key: bytes, service: int) -> None:
        """Publish a key, or move it to another service in one store.

        Raises CapacityError if every slot that the program would look at is taken.
        """
        at = self._places.get(key)
        if at is None:
            at = self._free.find(self._first(key))
            if at is None:
                raise CapacityError("VIP index", self._probes + 1, self._probes, "services")
            self._keys[at] = np.frombuffer(key, np.uint8)
            self._places[key] = at
        self._services[at] = service

    def remove(self, key: bytes) -> None:
        """Take a key out: the next packet to it passes to the kernel."""
        at = self._places.pop(key)
        self._services[at] = 0
        self._keys[at, :_FAMILY] = 0
        self._free.retire(at)

    def _first(self, key: bytes) -> int:
        return hash_vip(key, is_v6=key[_FAMILY] & ~self._prefix_flag == FAMILY_V6) >> 32
