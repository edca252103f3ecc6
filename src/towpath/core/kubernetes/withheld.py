# SPDX-License-Identifier: Apache-2.0
"""What a list lacks, and whether it is believed.

A list tells what is there, and what has gone only by leaving it out. One that leaves out a large
share may come from a server that was put back, or has begun anew. What such a list lacks stays as
it is, until a watch says something of it, a later list has it, or a person accepts. What it has
besides is taken all the same.

So it is with what an object has that can't be read: an agent that has just begun doesn't know what
it was, but for what is in force.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from towpath.model.service import Service

LEAST = 5
"""Fewer services and backends than so many may go at any time."""


class Loss(NamedTuple):
    """What would go."""

    services: int
    of_services: int
    backends: int
    of_backends: int

    def is_large(self, percent: int) -> bool:
        """Whether it is such a share that it isn't believed."""
        pairs = ((self.services, self.of_services), (self.backends, self.of_backends))
        return any(lost >= LEAST and lost * 100 >= percent * total for lost, total in pairs)

    def __str__(self) -> str:
        return (
            f"{self.services} of {self.of_services} services and {self.backends} of"
            f" {self.of_backends} backends"
        )


def lost_backends(before: Service, after: Service | None) -> int:
    """Return how many backends fewer a service has, of those that it has no more.

    As many others in their place are no loss: so are pods of which there are new ones.
    """
    if after is None:
        return len(before.backends)
    there = {each.address for each in after.backends}
    lost = sum(each.address not in there for each in before.backends)
    return max(0, min(lost, len(before.backends) - len(after.backends)))


def joined(before: Service, after: Service) -> Service:
    """Return a service as it is to be, with the backends besides that it would have no more."""
    there = {each.address for each in after.backends}
    kept = tuple(each for each in before.backends if each.address not in there)
    size = max(before.table_size, after.table_size)
    return replace(after, backends=(*after.backends, *kept), table_size=size)


def find_loss(
    in_force: Mapping[str, Service], put: Iterable[Service], remove: Iterable[str]
) -> tuple[Loss, set[str]]:
    """Return how much would be lost, and the services that would lose something."""
    found: dict[str, int] = {}
    gone = 0
    for name in remove:
        if name in in_force:
            gone += 1
            found[name] = lost_backends(in_force[name], None)
    for service in put:
        before = in_force.get(service.name)
        if before is not None and (lost := lost_backends(before, service)):
            found[service.name] = lost
    backends = sum(len(each.backends) for each in in_force.values())
    return Loss(gone, len(in_force), sum(found.values()), backends), set(found)


def keep_unread(
    in_force: Mapping[str, Service],
    put: dict[str, Service],
    remove: set[str],
    unread: Iterable[tuple[str, str, str]],
) -> None:
    """Take out of what would change what may be of objects that can't be read.

    ``unread``: their kinds, namespaces and names. A slice's name begins with that of its Service.
    """
    for kind, namespace, object_ in unread:
        for name, before in in_force.items():
            its, service, *_ = f"{name}::".split(":")
            whole = kind == "Service" and service == object_
            if its != namespace or not (whole or object_.startswith(f"{service}-")):
                continue
            remove.discard(name)
            if name in put:
                put[name] = joined(before, put[name])
