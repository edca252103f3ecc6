# SPDX-License-Identifier: Apache-2.0
"""One desired state from all sources, such as the configuration file and the API.

Pure. A service belongs to the source that named it. The same name, or the same
VIP, port and protocol, in two is a contradiction that only a person can solve,
so it is refused rather than resolved by some precedence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from towpath.agent.errors import ConflictError, NotFoundError
from towpath.capabilities import API, origin
from towpath.layered import Layered
from towpath.model import Problem, Service
from towpath.model.keys import Clash, KeyIndex
from towpath.model.problems import MAX_PROBLEMS, bounded

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from towpath.model.service import ServiceKey

# Names that an error message lists.
MAX_NAMES = 10


class Owned(NamedTuple):
    """A service and where it comes from."""

    owner: str
    """The source's name."""
    service: Service


@dataclass(frozen=True, slots=True)
class Desired:
    """The services of all sources, by name and by what they are for.

    Made by :meth:`of` and by the methods that return a changed copy; each looks
    only at what it changes, so that one backend more costs the same whether there
    are ten services or thousands.
    """

    _names: Layered[str, Owned]
    _keys: KeyIndex[Owned]
    _checked: Layered[str, Service]
    """Those with health checks."""

    @classmethod
    def of(cls, sources: Mapping[str, Iterable[Service]]) -> Desired:
        """All sources' services. Raises ConflictError with the contradictions to those before."""
        made = cls(Layered(), KeyIndex(), Layered())
        for owner, services in sources.items():
            made = made.changed(owner, put=services)
        return made

    def __iter__(self) -> Iterator[Owned]:
        return iter(self._names.values())

    def services(self, owner: str | None = None) -> tuple[Service, ...]:
        """All services, or those of one owner."""
        if owner is None:
            return tuple([each.service for each in self])
        return tuple([each.service for each in self if each.owner == owner])

    def checked(self) -> tuple[Service, ...]:
        """All services with health checks."""
        return tuple(self._checked.values())

    def get(self, name: str) -> Owned:
        """A service and its owner; raises NotFoundError."""
        found = self._names.get(name)
        if found is None:
            raise NotFoundError(f"there is no service {name!r}; there are: {self._some_names()}")
        return found

    def owned_by_api(self, name: str) -> Service:
        """A service that the API may change; raises NotFoundError or ConflictError."""
        owner, service = self.get(name)
        if owner != API:
            raise ConflictError([Problem(elsewhere(name, owner), "name")])
        return service

    def changed(
        self, owner: str, *, put: Iterable[Service] = (), remove: Collection[str] = ()
    ) -> Desired:
        """A copy in which owner's services have been removed, and others added or replaced.

        Raises ConflictError with the contradictions to what stays.
        """
        names, keys = self._names.draft(), self._keys.copy()
        put = tuple(put)
        for name in (*remove, *(service.name for service in put)):
            if (old := names.get(name)) and old.owner == owner:
                # Replaced in its place; gone unless it is put again.
                keys.remove(old.service.key)
        for name in set(remove) - {service.name for service in put}:
            names.pop(name)
        problems: list[Problem] = []
        for service in put:
            new, clash = Owned(owner, service), keys.clash(service.key)
            problems += _conflicts(new, names.get(service.name), clash)
            if len(problems) > MAX_PROBLEMS:
                break
            names[service.name] = new
            if not clash:
                keys.add(service.key, new)
        if problems:
            raise ConflictError(bounded(problems))
        gone = (*remove, *(each.name for each in put if each.health is None))
        checked = {each.name: each for each in put if each.health is not None}
        return Desired(names.done(), keys, self._checked.changed(checked, gone))

    def replaced(self, owner: str, services: Iterable[Service]) -> Desired:
        """A copy in which these are all the services that owner has."""
        gone = [each.service.name for each in self if each.owner == owner]
        return self.changed(owner, put=services, remove=gone)

    def named(self, names: Iterable[str], owner: str | None = None) -> tuple[Service, ...]:
        """Those of these services that there are, or those of one owner."""
        found = (self._names.get(name) for name in names)
        return tuple(each.service for each in found if each and owner in {None, each.owner})

    def at(self, key: ServiceKey) -> Service | None:
        """The service that is for these packets, or for some of them."""
        found = self._keys.clash(key)
        return found.owner.service if found else None

    @property
    def number(self) -> int:
        """How many services there are."""
        return len(self._names)

    def _some_names(self) -> str:
        names = sorted(self._names)
        shown = [*names[:MAX_NAMES], *(["..."] if len(names) > MAX_NAMES else [])]
        return ", ".join(shown) or "none"


def elsewhere(name: str, owner: str) -> str:
    """Why the API does not change a service of another source."""
    return f"service {name!r} belongs to {origin(owner).label}; change it there"


def _conflicts(
    new: Owned, same_name: Owned | None, clash: Clash[Owned] | None
) -> Iterator[Problem]:
    """Why a service can't be beside the one of its name, or one that is for the same packets."""
    service = new.service
    if same_name and same_name.owner != new.owner:
        if new.owner == API:
            yield Problem(elsewhere(service.name, same_name.owner), "name")
        else:
            there = origin(same_name.owner)
            how = f" ({there.remove.format(name=service.name)})" if there.remove else ""
            yield Problem(
                f"service {service.name!r} was also set through {there.label}; remove it"
                f" there{how} or here",
                "name",
            )
    elif clash:
        yield Problem(
            f"{clash.key} of service {service.name!r} ({new.owner}) is already that of service"
            f" {clash.owner.service.name!r} ({clash.owner.owner}); allowed: one service each",
            "vip",
        )
