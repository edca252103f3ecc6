# SPDX-License-Identifier: Apache-2.0
"""The last changes of one kind, by which a server shows that its history is the one that is known.

Versions are numbers that grow with each change of a cluster, of whatever kind. A version alone
proves nothing: a database that was put back counts on, and comes to the same numbers with others'
changes. A change with its object's UID happened in one history only.
"""

from __future__ import annotations

from heapq import nlargest
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Collection

    from towpath.model.sources.kubernetes.objects import Meta

RECENT = 16
"""So many changes are remembered."""
_FIRST = 2
"""The version of a database's first change."""

Name: TypeAlias = tuple[str, str]
"""Namespace and name."""


class Mark(NamedTuple):
    """A change: which object, and at which version."""

    namespace: str
    name: str
    uid: str
    number: int
    gone: bool = False

    @property
    def key(self) -> Name:
        """The object's name."""
        return self[:2]

    def is_of(self, meta: Meta) -> bool:
        """Whether what is told is this change."""
        told = (meta.namespace, meta.name, meta.uid, number(meta.resource_version))
        return told == self[:4]


def number(version: str) -> int:
    """Return a version as a number; 0: it is none that can be compared."""
    return int(version) if version.isdecimal() else 0


class History:
    """What was told last."""

    def __init__(self) -> None:
        self._recent: dict[Name, Mark] = {}
        """The latest last."""
        self.pinned: dict[Name, Mark | None] = {}
        """Objects that are remembered whenever they changed. None: there is none, as far as is
        known."""

    @property
    def last(self) -> Mark | None:
        """The last change; None: nothing is known that a server could show."""
        return next(reversed(self._recent.values()), None)

    def recent(self) -> tuple[Mark, ...]:
        """The last changes, the latest first."""
        return tuple(reversed(self._recent.values()))

    def pin(self, mark: Mark) -> None:
        """Remember what becomes of an object, of which this is known."""
        self.pinned.setdefault(mark.key, mark)

    def note(self, meta: Meta, *, gone: bool) -> None:
        """An object has changed."""
        made = _mark(meta, gone=gone)
        if made.number < _FIRST:
            self._recent.clear()
            return
        self._recent.pop(made.key, None)
        self._recent[made.key] = made
        if len(self._recent) > RECENT:
            del self._recent[next(iter(self._recent))]
        if made.key in self.pinned:
            self.pinned[made.key] = made

    def replace(self, found: Collection[Meta]) -> None:
        """These are all objects: what has gone before isn't known."""
        self._recent = {}
        self.pinned = dict.fromkeys(self.pinned)
        if self.pinned:
            for meta in found:
                if (meta.namespace, meta.name) in self.pinned:
                    self.pinned[meta.namespace, meta.name] = _mark(meta, gone=False)
        for meta in reversed(nlargest(RECENT, found, lambda meta: number(meta.resource_version))):
            self.note(meta, gone=False)


def _mark(meta: Meta, *, gone: bool) -> Mark:
    return Mark(meta.namespace, meta.name, meta.uid, number(meta.resource_version), gone)
