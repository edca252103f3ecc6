# SPDX-License-Identifier: Apache-2.0
"""The last changes of one kind, by which a server shows that its history is the one that is known.

Versions are numbers that grow with each change of a cluster, of whatever kind. A version alone
proves nothing: a database that was put back counts on, and comes to the same numbers with others'
changes. A change with its object's UID happened in one history only.
"""

from __future__ import annotations

from heapq import nlargest
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection

    from towpath.model.sources.kubernetes.objects import Meta

RECENT = 16
"""So many changes are remembered."""

_FIRST = 2
"""The version of a database's first change."""

Name = tuple[str, str]
"""Namespace and name."""


class Mark(NamedTuple):
    """A change: which object, and at which version."""

    namespace: str
    name: str
    uid: str
    number: int
    gone: bool = False

    def is_of(self, meta: Meta) -> bool:
        """Whether what is told is this change."""
        told = (meta.namespace, meta.name, meta.uid, number(meta.resource_version))
        return told == self[:4]


def number(version: str) -> int:
    """Return a version as a number; 0: it is none that can be compared."""
    return int(version) if version.isdecimal() else 0


class History:
    """What was told last. ``own``: an object that is remembered whenever it changed."""

    def __init__(self, own: str = "") -> None:
        self._own = ("", own)
        self._recent: dict[Name, Mark] = {}
        """The latest last."""
        self.of_own: Mark | None = None

    @property
    def last(self) -> Mark | None:
        """The last change; None: nothing is known that a server could show."""
        return next(reversed(self._recent.values()), None)

    def recent(self) -> tuple[Mark, ...]:
        """The last changes, the latest first."""
        return tuple(reversed(self._recent.values()))

    def note(self, meta: Meta, *, gone: bool) -> None:
        """An object has changed."""
        version = number(meta.resource_version)
        name = (meta.namespace, meta.name)
        if version < _FIRST:
            self._recent.clear()
            return
        made = Mark(meta.namespace, meta.name, meta.uid, version, gone)
        self._recent.pop(name, None)
        self._recent[name] = made
        if len(self._recent) > RECENT:
            del self._recent[next(iter(self._recent))]
        if name == self._own:
            self.of_own = None if gone else made

    def replace(self, found: Collection[Meta]) -> None:
        """These are all objects: what has gone before isn't known."""
        self._recent, self.of_own = {}, None
        for meta in reversed(nlargest(RECENT, found, lambda meta: number(meta.resource_version))):
            self.note(meta, gone=False)
        if self._own[1] and self.of_own is None:
            for meta in found:
                if (meta.namespace, meta.name) == self._own:
                    version = number(meta.resource_version)
                    self.of_own = Mark(meta.namespace, meta.name, meta.uid, version)
