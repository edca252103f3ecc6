# SPDX-License-Identifier: Apache-2.0
"""What services are at and where their backends are, in numbers that a change keeps in step."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

from towpath.datapath.lb.outer_source import MOST_ROUTES, Vips, route_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from towpath.datapath.address import Address
    from towpath.model.kinds import Prefix
    from towpath.model.service import Service

T = TypeVar("T")


class Served:
    """Of some services. Each is to be put in by `change`, and taken out as it was put in."""

    def __init__(self) -> None:
        self._vips: Counter[Address | Prefix] = Counter()
        self._versions: Counter[int] = Counter()
        self._routes: dict[tuple[int, int], Address] = {}
        """One backend of those that are taken to be behind one route."""
        self._users: Counter[tuple[int, int]] = Counter()
        self.vips = Vips()

    @classmethod
    def of(cls, services: Iterable[Service]) -> Served:
        """Of these services."""
        made = cls()
        for service in services:
            made.change(None, service)
        return made

    def change(self, before: Service | None, after: Service | None) -> None:
        """Take the one for the other. None: there is none."""
        if after is not None:
            self._put(after)
        if before is not None:
            self._remove(before)

    def _put(self, service: Service) -> None:
        self._vips[service.vip] += 1
        if self._vips[service.vip] == 1:
            self.vips.add(service.vip)
        for backend in service.backends:
            route = route_of(backend.address)
            self._users[route] += 1
            self._versions[route[0]] += 1
            if self._users[route] == 1:
                self._routes[route] = backend.address

    def _remove(self, service: Service) -> None:
        if _leave(self._vips, service.vip):
            self.vips.remove(service.vip)
        for backend in service.backends:
            route = route_of(backend.address)
            _leave(self._versions, route[0])
            if _leave(self._users, route):
                del self._routes[route]

    @property
    def versions(self) -> frozenset[int]:
        """The IP versions of backends."""
        return frozenset(self._versions)

    def towards(self) -> list[Address]:
        """Return a few backends, or that were ones, each behind another route."""
        return list(islice(self._routes.values(), MOST_ROUTES))


def _leave(counts: Counter[T], what: T) -> bool:
    """Count one fewer; whether it was the last."""
    counts[what] -= 1
    if counts[what]:
        return False
    del counts[what]
    return True
