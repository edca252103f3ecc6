# SPDX-License-Identifier: Apache-2.0
"""The directives of one block, by name: what is known there, and what values they have."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, TypeVar

from towpath.core.imports.keepalived.values import WrongValueError, seconds, switch, whole
from towpath.model.kinds import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from towpath.core.imports.imported import Collected
    from towpath.core.imports.keepalived.blocks import Directive

T = TypeVar("T")

_SYNONYMS = {
    "lb_algo": "lvs_sched",
    "lb_kind": "lvs_method",
    "nb_get_retry": "retry",
}


class Settings:
    """Of a directive that is given twice the last one counts, if only one can."""

    def __init__(
        self,
        directive: Directive,
        known: Collection[str],
        into: Collected,
        blocks: Collection[str] = (),
    ) -> None:
        self.directive = directive
        self.into = into
        self._all: list[Directive] = []
        for each in directive.block or ():
            if each.name not in known and each.name not in blocks:
                into.refuse(each.place, unknown(each.name, directive.name, (*known, *blocks)))
            elif (each.block is not None) != (each.name in blocks):
                has = "a block, in braces" if each.name in blocks else "no block"
                into.refuse(each.place, f"{each.name} has {has}")
            else:
                self._all.append(each)

    def all(self, *names: str) -> Iterator[Directive]:
        """Directives of these names, in their order."""
        return (each for each in self._all if _SYNONYMS.get(each.name, each.name) in names)

    def one(self, name: str) -> Directive | None:
        """The last one of a name."""
        return next(iter([*self.all(name)][::-1]), None)

    def has(self, name: str) -> bool:
        """Whether it is there."""
        return self.one(name) is not None

    def get(self, name: str, read: Callable[[Directive], T], default: T) -> T:
        """What a directive says; a wrong one is refused."""
        directive = self.one(name)
        if directive is None:
            return default
        try:
            return read(directive)
        except WrongValueError as error:
            self.into.refuse(directive.place, str(error))
            return default

    def seconds(self, name: str, default: float | None = None) -> float | None:
        """A time."""
        return self.get(name, seconds, default)

    def whole(self, name: str, default: int | None = None, *, least: int = 0) -> int | None:
        """A whole number."""
        return self.get(name, lambda directive: whole(directive, least), default)

    def switch(self, name: str, *, default: bool = False) -> bool:
        """Whether something is on."""
        return self.get(name, switch, default)


def unknown(name: str, where: str, known: Collection[str]) -> str:
    """Say that a directive isn't known in a block, and which are."""
    near = difflib.get_close_matches(name, known, 1, 0.7)
    meant = f"did you mean {near[0]}? " if near else ""
    place = f"in {where}" if where else "here"
    return f"{shown(name)} is not known {place}; {meant}known: {', '.join(sorted(known))}"
