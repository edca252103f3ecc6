# SPDX-License-Identifier: Apache-2.0
"""Pages of ports: which service each port of a prefix and protocol is for.

A set of pages is written while nothing refers to it, named by one word, and never
changed after that: whoever wants other ports builds another set and gives this
one up, and its pages rest until no packet can be reading them.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np

from towpath.datapath.errors import CapacityError
from towpath.model.kinds import Ports

if TYPE_CHECKING:
    from collections.abc import Mapping

    from towpath.datapath.lb.grace import Reclaimer

    Array = np.ndarray[Any, Any]

_PAGE = 256
_PORTS = _PAGE * _PAGE


class PortPages:
    """``port_pages`` of ``bpf/lb/maps.h`` through a mapping of it. Page 0 is never used.

    ``whole`` is PORT_WHOLE: with it an entry of a first page is a service.
    """

    def __init__(self, pages: np.ndarray[Any, Any], whole: int, reclaimer: Reclaimer) -> None:
        self._entries = pages["entry"]
        self._whole = whole
        self._reclaimer = reclaimer
        self._free = deque(range(1, len(pages)))
        self._retired = 0

    @property
    def capacity(self) -> int:
        """Pages that there is room for."""
        return len(self._entries) - 1

    @property
    def used(self) -> int:
        """Pages of sets that have been built and not been given up."""
        return self.capacity - len(self._free) - self._retired

    def needed(self, services: Mapping[int, Ports]) -> int:
        """Return how many pages such a set takes."""
        return 1 + len(_mixed(_rows(services)))

    def size(self, first: int) -> int:
        """Return how many pages a set has."""
        return 1 + len(self._pages(first))

    def build(self, services: Mapping[int, Ports]) -> int:
        """Write which service each port is for; what two have is the later one's.

        Returns the first page, which names the set. CapacityError: too few pages are free.
        """
        rows = _rows(services)
        mixed = _mixed(rows)
        first, *others = self._allocate(1 + len(mixed))
        top = np.where(rows[:, 0] > 0, rows[:, 0] | self._whole, 0).astype(np.uint32)
        top[mixed] = others
        self._entries[others] = rows[mixed]
        self._entries[first] = top
        return first

    def read(self, first: int) -> dict[int, Ports]:
        """Return the ports of each service that a set of pages has."""
        pages = self._pages(first)
        top = self._entries[first]
        rows = np.broadcast_to((top & ~np.uint32(self._whole))[:, None], (_PAGE, _PAGE)).copy()
        for at, page in pages.items():
            rows[at] = self._entries[page]
        table = rows.reshape(-1)
        starts = np.flatnonzero(np.diff(table, prepend=np.uint32(0xFFFFFFFF)))
        ends = [*(starts[1:] - 1).tolist(), _PORTS - 1]
        found: dict[int, list[tuple[int, int]]] = {}
        for start, end in zip(starts.tolist(), ends, strict=True):
            if table[start]:
                found.setdefault(int(table[start]), []).append((start, end))
        return {service: Ports.of(ranges) for service, ranges in found.items()}

    def reserve(self, first: int) -> None:
        """Take a set that is in use already."""
        for page in (first, *self._pages(first).values()):
            self._free.remove(page)

    def retire(self, first: int) -> None:
        """Free a set that no key leads to any more, once no packet reads it."""
        pages = (first, *self._pages(first).values())
        self._retired += len(pages)
        self._reclaimer.retire(lambda: self._reclaimed(pages))

    def _reclaimed(self, pages: tuple[int, ...]) -> None:
        self._retired -= len(pages)
        self._free.extend(pages)

    def _pages(self, first: int) -> dict[int, int]:
        """The pages behind a first one, by their place on it."""
        top = self._entries[first]
        at = np.flatnonzero((top != 0) & (top & self._whole == 0))
        return dict(zip(at.tolist(), top[at].tolist(), strict=True))

    def _allocate(self, count: int) -> list[int]:
        if len(self._free) < count:
            self._reclaimer.reclaim()
        if len(self._free) < count:
            raise CapacityError("pages of ports", self.used + count, self.capacity, "port_pages")
        return [self._free.popleft() for _ in range(count)]


def _rows(services: Mapping[int, Ports]) -> Array:
    """Return the service of each port, a row to a page."""
    table = np.zeros(_PORTS, np.uint32)
    for service, ports in services.items():
        for first, last in ports.ranges:
            table[first : last + 1] = service
    return table.reshape(_PAGE, _PAGE)


def _mixed(rows: Array) -> Array:
    """Return which rows are not all for the same service."""
    return np.flatnonzero((rows != rows[:, :1]).any(axis=1))
