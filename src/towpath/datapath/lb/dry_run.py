# SPDX-License-Identifier: Apache-2.0
"""Stand-ins for the index of VIPs and for pages of ports, which are only counted.

:class:`~towpath.datapath.lb.lookup.Endpoints` over them goes through a change without
touching the kernel, and finds whether there is room for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from towpath.datapath.errors import CapacityError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from towpath.datapath.lb.port_pages import PortPages
    from towpath.model.kinds import Ports


class PaperIndex:
    """What an index would hold."""

    def __init__(self, get: Callable[[bytes], int]) -> None:
        self._get = get
        self._changed: dict[bytes, int] = {}

    def __iter__(self) -> Iterator[tuple[bytes, int]]:
        """Yield what was changed."""
        return iter(self._changed.items())

    def get(self, key: bytes) -> int:
        """Return what a key would lead to, 0 if it would not be there."""
        return self._changed[key] if key in self._changed else self._get(key)

    def set(self, key: bytes, service: int) -> None:
        """Note a key."""
        self._changed[key] = service

    def remove(self, key: bytes) -> None:
        """Note that a key would be gone."""
        self._changed[key] = 0


class PaperPages:
    """How many pages would be in use. Sets that are built are called -1, -2, and so on."""

    def __init__(self, pages: PortPages | PaperPages) -> None:
        self._pages = pages
        self.capacity: int = pages.capacity
        self.used: int = pages.used
        self._built: dict[int, int] = {}

    def needed(self, services: Mapping[int, Ports]) -> int:
        """Return how many pages such a set takes."""
        return self._pages.needed(services)

    def size(self, first: int) -> int:
        """Return how many pages a set has."""
        return self._built[first] if first in self._built else self._pages.size(first)

    def build(self, services: Mapping[int, Ports]) -> int:
        """Count the pages of a set. CapacityError: there would be too few."""
        count = self.needed(services)
        if self.used + count > self.capacity:
            raise CapacityError("pages of ports", self.used + count, self.capacity, "port_pages")
        self.used += count
        name = -1 - len(self._built)
        self._built[name] = count
        return name

    def give_up(self, first: int) -> None:
        """Count a set's pages no more."""
        self.used -= self.size(first)

    def read(self, first: int) -> dict[int, Ports]:
        """Return the ports of each service that a set in use has."""
        return self._pages.read(first)

    def reserve(self, first: int) -> None:
        """Count a set that is in use."""
        self.used += self.size(first)
