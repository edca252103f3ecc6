# SPDX-License-Identifier: Apache-2.0
"""Stand-ins for the kernel's tables that count instead of store.

:class:`~towpath.datapath.lb.tables.Tables` over them executes a plan's steps without
touching the kernel: see :mod:`towpath.datapath.lb.admission`.
"""

from __future__ import annotations

from collections import Counter
from itertools import count
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from towpath.datapath.errors import CapacityError
from towpath.datapath.lb.sources import present

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from towpath.core.lb.options import Options
    from towpath.datapath.lb.port_pages import PortPages
    from towpath.datapath.lb.sources import Entries
    from towpath.model.kinds import Ports, Prefix
    from towpath.model.service import Backend

    Prefixes = tuple[Prefix, ...]

T = TypeVar("T")

_UNNAMED = 1 << 29
"""Indexes from here on, which no service has, stand for those that are not known yet."""


class Tally:
    """How many of a thing there would be, and at most were on the way.

    ``setting``: which of the limits is for it, where that has another name.
    """

    def __init__(self, what: str, now: int, limit: int, setting: str = "") -> None:
        self._what = what
        self._setting = setting or what
        self._now = self._most = now
        self._limit = limit

    def add(self, more: int) -> None:
        """Count more, or fewer."""
        self._now += more
        self._most = max(self._most, self._now)

    def shortage(self) -> CapacityError | None:
        """What would be short, None if nothing is."""
        if self._most <= self._limit:
            return None
        return CapacityError(self._what, self._most, self._limit, self._setting)


class DryRunRows:
    """Stands in for the array of services."""

    def __init__(self, tally: Tally) -> None:
        self.tally = tally
        self._names = count(_UNNAMED)

    def take(self) -> int:
        """Count a service."""
        self.tally.add(1)
        return next(self._names)

    def give_back(self, index: int) -> None:
        """Count one fewer."""
        del index
        self.tally.add(-1)

    def set_table(self, index: int, base: int, size: int) -> None:
        """Store nothing."""


class DryRunBackends:
    """Stands in for the array of backends. Handles are no one's."""

    def __init__(self, tally: Tally) -> None:
        self.tally = tally

    def add(self, service: int, backends: Sequence[Backend]) -> list[int]:
        """Count backends."""
        del service
        self.tally.add(len(backends))
        return [0] * len(backends)

    def note(self, handle: int, backend: Backend) -> None:
        """Store nothing."""

    def renew(self, handle: int) -> int:
        """Store nothing."""
        return handle

    def remove(self, handle: int) -> None:
        """Count one fewer."""
        del handle
        self.tally.add(-1)


class DryRunSlots:
    """Stands in for the Maglev array."""

    def fill(self, base: int, make: Callable[[], Any]) -> int:
        """Make nothing, which would take longest of all."""
        del base, make
        return 0


class DryRunOptions:
    """Stands in for the options of services, and counts the source prefixes that they need.

    ``users``: how many services have each set of prefixes; ``allowed``: the list that a service
    has, by its index; ``rows``: those that have routes.
    """

    def __init__(
        self,
        tally: Tally,
        users: Mapping[Entries, int],
        allowed: Callable[[int], Prefixes | None],
        rows: Callable[[int], Mapping[Prefix, int]],
    ) -> None:
        self.tally = tally
        self._users = Counter(users)
        self._allowed = allowed
        self._rows = rows
        self._routed: dict[int, Mapping[Prefix, int]] = {}
        self._changed: dict[int, Prefixes | None] = {}

    def write(self, index: int, options: Options) -> None:
        """Count a service's list, and then the one that it had no more."""
        before = self._list(index)
        self._changed[index] = options.allow_from
        if options.allow_from is not None:
            entries = present(options.allow_from)
            self._users[entries] += 1
            if self._users[entries] == 1:
                self.tally.add(len(entries))
        self._leave(before)

    def route(self, index: int, rows: Mapping[Prefix, int]) -> None:
        """Count prefixes that have routes, and then those that had some no more."""
        before = self._routed[index] if index in self._routed else self._rows(index)
        if rows != before:
            self._routed[index] = rows
            self.tally.add(len(rows))
            self.tally.add(-len(before))

    def retire(self, index: int) -> None:
        """Count a service's list no more."""
        self._leave(self._list(index))
        self._changed[index] = None
        self.route(index, {})

    def _list(self, index: int) -> Prefixes | None:
        return self._changed[index] if index in self._changed else self._allowed(index)

    def _leave(self, prefixes: Prefixes | None) -> None:
        if prefixes is not None:
            entries = present(prefixes)
            self._users[entries] -= 1
            if not self._users[entries]:
                self.tally.add(-len(entries))


class Keyed(Protocol):
    """What has numbers at keys: an index, or what stands in for one."""

    key_dtype: Any

    def lookup(self, key: Any) -> Any:
        """Return what is at a key, None if nothing is."""

    def update(self, key: Any, value: Any) -> None:
        """Store something at a key."""

    def delete(self, key: Any, *, missing_ok: bool) -> None:
        """Have nothing at a key."""

    def items(self) -> Iterable[tuple[Any, Any]]:
        """Return all that is there."""


class DryRunKeyed:
    """What it would hold, and how much."""

    def __init__(self, table: Keyed, tally: Tally) -> None:
        self.key_dtype = table.key_dtype
        self._table = table
        self._tally = tally
        self._changed: dict[bytes, Any] = {}

    def lookup(self, key: Any) -> Any:
        """Return what would be at a key."""
        packed = key.tobytes()
        return self._changed[packed] if packed in self._changed else self._table.lookup(key)

    def update(self, key: Any, value: Any) -> None:
        """Note something at a key."""
        self._tally.add(self.lookup(key) is None)
        self._changed[key.tobytes()] = value

    def delete(self, key: Any, *, missing_ok: bool) -> None:
        """Note that nothing would be at a key."""
        del missing_ok
        self._tally.add(-(self.lookup(key) is not None))
        self._changed[key.tobytes()] = None

    def items(self) -> Iterable[tuple[Any, Any]]:
        """Nobody asks what all would be."""
        raise NotImplementedError


class DryRunIndex:
    """What an index of VIPs would hold."""

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


class DryRunCounts(Generic[T]):
    """What counts would be. Those that stay as they are cost nothing."""

    def __init__(self, counts: Mapping[T, int] | DryRunCounts[T]) -> None:
        self._counts = counts
        self._changed: dict[T, int] = {}

    def __contains__(self, what: T) -> bool:
        """Whether there would be some."""
        return self[what] > 0

    def __getitem__(self, what: T) -> int:
        """Return how many there would be."""
        return self.get(what, 0)

    def get(self, what: T, otherwise: int) -> int:
        """Return how many there would be, if there were ever some."""
        if what in self._changed:
            return self._changed[what]
        return self._counts.get(what, otherwise)

    def __setitem__(self, what: T, count: int) -> None:
        """Note how many."""
        self._changed[what] = count

    def __delitem__(self, what: T) -> None:
        """Note that there would be none."""
        self._changed[what] = 0


class DryRunPages:
    """How many pages of ports would be in use. Sets that are built are called -1, -2, and so on."""

    def __init__(self, pages: PortPages | DryRunPages) -> None:
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
        needed = self.needed(services)
        if self.used + needed > self.capacity:
            raise CapacityError("pages of ports", self.used + needed, self.capacity, "port_pages")
        self.used += needed
        name = -1 - len(self._built)
        self._built[name] = needed
        return name

    def retire(self, first: int) -> None:
        """Count a set's pages no more."""
        self.used -= self.size(first)

    def read(self, first: int) -> dict[int, Ports]:
        """Return the ports of each service that a set in use has."""
        return self._pages.read(first)

    def reserve(self, first: int) -> None:
        """Count a set that is in use."""
        self.used += self.size(first)
