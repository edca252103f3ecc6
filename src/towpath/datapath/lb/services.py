# SPDX-License-Identifier: Apache-2.0
"""Services in the kernel: their rows, and what is known of each."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from towpath.core.lb.routes import canonical
from towpath.datapath.errors import CapacityError
from towpath.datapath.lb.free import FreeIndexes
from towpath.datapath.lb.noted import Noted
from towpath.model.service import SourceRoute

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Sequence

    from towpath.core.lb.options import Options
    from towpath.datapath.address import Address
    from towpath.datapath.lb.grace import Reclaimer
    from towpath.model.kinds import Prefix
    from towpath.model.service import Backend, ServiceKey

    Array = np.ndarray[Any, Any]

_SIZE_SHIFT = 32
_AT_ONCE = 64


class ServiceRows:
    """``services`` of ``bpf/lb/maps.h`` through a mapping of it. Row 0 is never used.

    ``forget`` zeroes what the CPUs keep about indexes.
    """

    def __init__(
        self,
        rows: Array,
        reclaimer: Reclaimer,
        forget: Callable[[Sequence[int]], None] = lambda _: None,
    ) -> None:
        self._rows = rows
        self._reclaimer = reclaimer
        self._forget = forget
        self._free = FreeIndexes(np.arange(1, len(rows)))
        self._clean: list[int] = []
        """Free ones of which nothing is kept, the next one last."""

    @property
    def limit(self) -> int:
        """Services that there is room for."""
        return len(self._rows) - 1

    def take(self) -> int:
        """Return an index whose row has no table and no counts. CapacityError: there is none."""
        if not self._clean:
            self._clean_some()
        index = self._clean.pop()
        self._rows["table"][index] = 0
        return index

    def _clean_some(self) -> None:
        """Have free ones of which nothing is kept: of many at once that takes as long as of one."""
        if not self._free:
            self._reclaimer.reclaim()
        if not self._free:
            raise CapacityError("services", self.limit + 1, self.limit, "services")
        some = self._free.take(min(_AT_ONCE, len(self._free)))
        self._forget(some)
        self._clean = some[::-1]

    def give_back(self, index: int) -> None:
        """Free an index that no packet finds any more."""
        self._reclaimer.retire(lambda: self._free.give_back(index))

    def reserve(self, indexes: Container[int]) -> None:
        """Take those that are in use."""
        self._clean = []
        self._free = FreeIndexes([i for i in range(1, len(self._rows)) if i not in indexes])

    def table(self, index: int) -> tuple[int, int]:
        """Return base and number of slots of a service's table."""
        (found,) = self.tables((index,))
        return found

    def tables(self, indexes: Sequence[int]) -> list[tuple[int, int]]:
        """Return base and number of slots of services' tables."""
        words = self._rows["table"][list(indexes)].tolist()
        return [(word & (1 << _SIZE_SHIFT) - 1, word >> _SIZE_SHIFT) for word in words]

    def set_table(self, index: int, base: int, size: int) -> None:
        """Swap a service's table in one store."""
        self._rows["table"][index] = base | size << _SIZE_SHIFT


@dataclass(slots=True)
class Row:
    """A route of a service in the kernel: a row of services that has nothing but a table."""

    sources: tuple[Prefix, ...]
    backends: frozenset[Address]
    index: int
    base: int = 0
    size: int = 0
    """Slots of its table; 0 while none of its backends takes flows."""
    sum: int = 0
    """Of what is in it, as it was made."""

    @property
    def route(self) -> SourceRoute:
        """What it amounts to."""
        (made,) = canonical([SourceRoute(self.sources, tuple(self.backends))])
        return made


@dataclass(frozen=True, slots=True)
class Place:
    """Where a service in the kernel is counted, as of one moment."""

    key: ServiceKey
    index: int
    handles: tuple[tuple[Address, int], ...]
    """Of its backends."""
    translated: bool
    """Its flows are among those that are translated."""
    routes: tuple[tuple[tuple[Prefix, ...], int], ...] = ()
    """The sources of each of its routes, and the index that its flows are counted at."""


@dataclass(slots=True)
class Installed:
    """One service as it is in the kernel."""

    key: ServiceKey
    index: int
    options: Options
    base: int = 0
    size: int = 0
    """Slots of the table in use; 0 while there is no backend that takes flows."""
    sum: int = 0
    """Of what is in it, as it was made; 0 where there is none."""
    noted: Noted = field(default_factory=Noted)
    """Its backends."""
    also: frozenset[ServiceKey] = frozenset()
    """Other keys that packets find it by: left by a process that died while it moved it."""
    routes: tuple[Row, ...] = ()

    @property
    def table_size(self) -> int:
        """Slots that its table is to have."""
        return self.options.table_size

    @property
    def place(self) -> Place:
        """Where it is counted now."""
        translated = self.options.forwarding == "snat"
        routes = tuple((each.sources, each.index) for each in self.routes)
        return Place(self.key, self.index, tuple(self.noted.items()), translated, routes)

    @property
    def handles(self) -> dict[Address, int]:
        """Its backends' handles by their addresses, as of now."""
        return dict(self.noted.items())

    def backends(self) -> tuple[Backend, ...]:
        """Return the backends that have a record."""
        return self.noted.backends

    def route_from(self) -> tuple[SourceRoute, ...]:
        """Return its routes as they would be wished for."""
        return canonical(each.route for each in self.routes)

    def copy(self) -> Installed:
        """Return a service that can be changed apart."""
        return replace(
            self,
            noted=self.noted.copy(),
            routes=tuple([replace(each) for each in self.routes]),
        )
