# SPDX-License-Identifier: Apache-2.0
"""Mappings that are never changed, and of which a changed copy costs what changes.

Whoever has one may read it in any thread, for as long as it likes. A dictionary that is copied
for each change costs as much as there is in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, ValuesView
from typing import Any, Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")

_GONE: Any = object()
_LEAST = 64


class Layered(Mapping[K, V]):
    """What there was at some time, which copies share, and what differs since.

    Differences are put together with what there was when there are more of them than the root of
    it, so that each change has a small part in that. What is replaced keeps its place in the order,
    what is new comes last.
    """

    __slots__ = ("_base", "_length", "_over")

    def __init__(
        self,
        found: Mapping[K, V] | None = None,
        *,
        over: dict[K, V] | None = None,
        length: int | None = None,
    ) -> None:
        """Begin with a copy of ``found``. With the others, of a draft: with ``found`` itself."""
        if over is None or length is None:
            over, found = {}, dict(found or {})
            length = len(found)
        assert isinstance(found, dict)  # noqa: S101 - by a draft
        self._base: dict[K, V] = found
        self._over = over
        self._length = length

    def draft(self) -> Draft[K, V]:
        """Return what a changed copy can be made with."""
        return Draft(self, self._base, self._over)

    def changed(self, put: Mapping[K, V], remove: Iterable[K] = ()) -> Layered[K, V]:
        """Return a copy without ``remove``, which need not be there, and with ``put``."""
        draft = self.draft()
        for key in remove:
            draft.pop(key)
        for key, value in put.items():
            draft[key] = value
        return draft.done()

    def flat(self) -> dict[K, V]:
        """Return a dictionary of all, of which nobody else knows."""
        return _together(self._base, self._over)

    def __getitem__(self, key: K) -> V:
        """Return what a key has; KeyError."""
        found: V = self._over[key] if key in self._over else self._base[key]
        if found is _GONE:
            raise KeyError(key)
        return found

    def __contains__(self, key: object) -> bool:
        """Whether a key is there."""
        if key in self._over:
            return self._over[key] is not _GONE
        return key in self._base

    def __len__(self) -> int:
        """Return how many there are."""
        return self._length

    def __iter__(self) -> Iterator[K]:
        """Yield the keys."""
        return iter(self.flat())

    def values(self) -> ValuesView[V]:
        """Return what there is, as of now."""
        return self.flat().values()


class Draft(Generic[K, V]):
    """Changes to a mapping that stays as it is. `done` returns the changed one."""

    __slots__ = ("_base", "_changed", "_length", "_of", "_over")

    def __init__(self, of: Layered[K, V], base: dict[K, V], over: dict[K, V]) -> None:
        self._of, self._base, self._over = of, base, over.copy()
        self._length = len(of)
        self._changed = False

    def get(self, key: K) -> V | None:
        """Return what a key has by now."""
        found = self._over[key] if key in self._over else self._base.get(key)
        return None if found is _GONE else found

    def __contains__(self, key: K) -> bool:
        """Whether a key is there by now."""
        found = self._over[key] if key in self._over else self._base.get(key, _GONE)
        return found is not _GONE

    def __setitem__(self, key: K, value: V) -> None:
        """Add or replace one."""
        if key not in self:
            self._length += 1
        self._over[key] = value
        self._changed = True

    def pop(self, key: K) -> V | None:
        """Remove one, if it is there, and return it."""
        if key not in self:
            return None
        found = self.get(key)
        if key in self._base:
            self._over[key] = _GONE
        else:
            del self._over[key]
        self._length -= 1
        self._changed = True
        return found

    def done(self) -> Layered[K, V]:
        """Return the mapping as it is by now; that of before if nothing has changed."""
        if not self._changed:
            return self._of
        base, over = self._base, self._over.copy()
        if len(over) ** 2 > max(len(base), _LEAST**2):
            base, over = _together(base, over), {}
        return Layered(base, over=over, length=self._length)


def _together(base: dict[K, V], over: dict[K, V]) -> dict[K, V]:
    found = base | over
    for key, value in over.items():
        if value is _GONE:
            del found[key]
    return found
