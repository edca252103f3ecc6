# SPDX-License-Identifier: Apache-2.0
"""What a list lacks, and whether it is believed.

A list tells what is there, and what has gone only by leaving it out. One that leaves out a large
share may come from a server that was put back, or has begun anew. What such a list lacks stays as
it is, until a watch says something of it, a later list has it, or a person accepts.
"""

from __future__ import annotations

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
    """Return how many backends a service has no more."""
    if after is None:
        return len(before.backends)
    there = {each.address for each in after.backends}
    return sum(each.address not in there for each in before.backends)


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
