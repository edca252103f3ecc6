# SPDX-License-Identifier: Apache-2.0
"""What services are at and where their backends are, in numbers that a change keeps in step."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

from towpath.datapath.lb.outer_source import MOST_ROUTES, Vips, route_of
from towpath.model.numbered import numbers_of

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
        self._routes: dict[int, Address] = {}
        """One backend of those that are taken to be behind one route."""
        self._users: Counter[int] = Counter()
        self._six = 0
        """Backends of IPv6."""
        self._number = 0
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
        old, new = _by_number(before), _by_number(after)
        self._put([address for number, address in new.items() if number not in old])
        self._remove([address for number, address in old.items() if number not in new])
        if before is None or after is None or before.vip != after.vip:
            self._move(before.vip if before else None, after.vip if after else None)

    def _move(self, before: Address | Prefix | None, after: Address | Prefix | None) -> None:
        """Count a service's VIP."""
        if after is not None:
            self._vips[after] += 1
            if self._vips[after] == 1:
                self.vips.add(after)
        if before is not None and _leave(self._vips, before):
            self.vips.remove(before)

    def _put(self, addresses: list[Address]) -> None:
        routes = list(map(_number, addresses))
        self._users.update(routes)
        self._count(routes, 1)
        for route, address in zip(routes, addresses, strict=True):
            if route not in self._routes:
                self._routes[route] = address

    def _remove(self, addresses: list[Address]) -> None:
        routes = list(map(_number, addresses))
        self._count(routes, -1)
        for route in routes:
            if _leave(self._users, route):
                del self._routes[route]

    def _count(self, routes: list[int], by: int) -> None:
        self._number += by * len(routes)
        self._six += by * sum(route < 0 for route in routes)

    @property
    def versions(self) -> frozenset[int]:
        """The IP versions of backends."""
        there = {4: self._number - self._six, 6: self._six}
        return frozenset(version for version, number in there.items() if number)

    def towards(self) -> list[Address]:
        """Return a few backends, or that were ones, each behind another route."""
        return list(islice(self._routes.values(), MOST_ROUTES))


def _by_number(service: Service | None) -> dict[int, Address]:
    if service is None:
        return {}
    addresses = [each.address for each in service.backends]
    return dict(zip(numbers_of(service.backends), addresses, strict=True))


def _number(backend: Address) -> int:
    """Return `route_of` as one number, of which the hash is there at once."""
    version, route = route_of(backend)
    return route if version == 4 else -1 - route  # noqa: PLR2004 - the IP version


def _leave(counts: Counter[T], what: T) -> bool:
    """Count one fewer; whether it was the last."""
    counts[what] -= 1
    if counts[what]:
        return False
    del counts[what]
    return True
