# SPDX-License-Identifier: Apache-2.0
"""What came of another load balancer's configuration, and what of it could not be carried over.

A service is either here and does the same, but for what a note beside it says, or it is left out
with the reason. Nothing is here that does something else without a word.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from towpath.model import service_problems
from towpath.model.keys import KeyIndex
from towpath.model.kinds import FieldError, Name, Prefix
from towpath.model.parse import check_services
from towpath.model.problems import ConfigError, Problem, bounded
from towpath.model.rules import recommended_size
from towpath.printable import printable

if TYPE_CHECKING:
    from towpath.model.service import Service

LENGTHS = 8
"""So many lengths of prefixes a family's VIPs may have."""


class NoteKind(enum.StrEnum):
    """What a note is of."""

    DIFFERS = "differs"
    """Something of a service that is here isn't carried over, or works otherwise."""
    NEEDS = "needs"
    """Something that services which are here need elsewhere in the configuration."""
    LEFT_OUT = "left-out"
    """A service that isn't here."""
    ELSEWHERE = "elsewhere"
    """Something that is no service: what does it instead."""


class Place(NamedTuple):
    """Where something is written; of a running table nothing is known."""

    file: str | None = None
    line: int | None = None

    def __str__(self) -> str:
        return ":".join(str(part) for part in self if part is not None)


NOWHERE = Place()


class Remark(NamedTuple):
    """Something of a service that differs: what it is, why, and where it is written."""

    what: str
    why: str
    place: Place = NOWHERE


@dataclass(frozen=True, slots=True)
class Note:
    """What isn't as it was, and why."""

    kind: NoteKind
    what: str
    """As the configuration has it, such as ``scheduler wlc`` or ``vrrp_instance VI_1``."""
    why: str
    file: str | None = None
    line: int | None = None
    service: str | None = None
    """Which service it is about; None: no single one."""

    @property
    def place(self) -> str:
        """``FILE:LINE``, or as much of it as there is."""
        return str(Place(self.file, self.line))


@dataclass(frozen=True, slots=True)
class Imported:
    """The services, in their order, and the notes."""

    services: tuple[Service, ...]
    notes: tuple[Note, ...]


Include = Callable[[str, str], Sequence[tuple[str, str]]]
"""Name and text of each file that a pattern names, as the file that includes them says it."""


class Collected:
    """Takes in services, notes and problems, in the order of the text."""

    def __init__(self) -> None:
        self._services: list[Service] = []
        self._notes: list[Note] = []
        self._told: set[str] = set()
        self._names: dict[str, int] = {}
        self._keys = KeyIndex[str]()
        self._problems: dict[Problem, None] = {}

    def refuse(self, place: Place, message: str) -> None:
        """Note what is wrong: nothing will come of all this, but all that is wrong is told."""
        self._problems[Problem(printable(message), "", place.file, place.line)] = None

    def note(
        self, kind: NoteKind, what: str, why: str, place: Place, service: str | None = None
    ) -> None:
        """Take a note."""
        said = (printable(what), printable(why))
        self._notes.append(Note(kind, *said, place.file, place.line, service))

    def once(self, kind: NoteKind, what: str, why: str, place: Place) -> None:
        """Take a note that many services would have, the first time."""
        if what not in self._told:
            self._told.add(what)
            self.note(kind, what, why, place)

    def leave_out(self, what: str, why: str, place: Place) -> None:
        """Note that a service isn't here."""
        self.note(NoteKind.LEFT_OUT, what, why, place)

    def add(self, service: Service, place: Place, remarks: Sequence[Remark]) -> bool:
        """Take a service with its remarks, or note why it can't be one. Returns whether it is."""
        remarks = list(remarks)
        service = replace(service, name=self._free(service.name))
        if (best := recommended_size(_sharing(service))) > service.table_size:
            service = replace(service, table_size=best)
        problems = service_problems(service)
        if problems and all(each.field.partition(".")[0] == "health" for each in problems):
            remarks += [Remark(f"check: {each.field}", each.message, place) for each in problems]
            service = replace(service, health=None)
            problems = ()
        if problems:
            self.leave_out(str(service.key), "; ".join(map(str, problems)), place)
            return False
        if clash := self._keys.clash(service.key):
            why = f"{clash.key} is service {clash.owner}'s already"
            self.leave_out(str(service.key), why, place)
            return False
        self._keys.add(service.key, service.name)
        self._names[service.name] = 1
        self._services.append(service)
        for what, why, where in remarks:
            self.note(NoteKind.DIFFERS, what, why, where, service.name)
        return True

    def result(self) -> Imported:
        """Return what there is. ConfigError: something was wrong."""
        if self._problems:
            found = sorted(self._problems, key=lambda each: (each.file or "", each.line or 0))
            raise ConfigError(bounded(found))
        self._check_lengths()
        check_services(self._services)
        return Imported(tuple(self._services), tuple(self._notes))

    def _free(self, name: str) -> str:
        """The name, or one like it, that no other service has."""
        most = Name().most - len("-65536")
        name = re.sub(r"[^A-Za-z0-9._:-]", "_", name)[:most]
        try:
            Name().parse(name)
        except FieldError:
            name = f"service-{name}"[:most]
        found = name
        while found in self._names:
            self._names[name] += 1
            found = f"{name}-{self._names[name]}"
        return found

    def _check_lengths(self) -> None:
        for version in (4, 6):
            vips = [each.vip for each in self._services if isinstance(each.vip, Prefix)]
            lengths = {vip.prefixlen for vip in vips if vip.version == version}
            if len(lengths) > LENGTHS:
                what = f"IPv{version} prefixes of {len(lengths)} lengths"
                why = f"an agent takes {LENGTHS} for each family; join some of the ranges"
                self.note(NoteKind.NEEDS, what, why, NOWHERE)


def _sharing(service: Service) -> int:
    return sum(1 for each in service.backends if each.weight)
