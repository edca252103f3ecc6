# SPDX-License-Identifier: Apache-2.0
"""Questions about the flow table, by the names that people have for things."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from towpath.agent import documents
from towpath.datapath.address import unpack
from towpath.datapath.flows import Filter

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from towpath.datapath.balancer import Member
    from towpath.datapath.flows import Entries, FlowTable
    from towpath.model import Address, Service, ServiceKey
    from towpath.model.kinds import Prefix

Members = dict[int, "Member"]
"""By handle."""
Active = dict["ServiceKey", dict["Address", int]]
"""Flows by service and backend."""

ACTIVE_SECONDS = 300.0
"""A flow that was not seen for so long is not called active."""


@dataclass(frozen=True, slots=True)
class Question:
    """Which flows are asked for; None: whatever they have there."""

    service: str | None = None
    """Name of the service."""
    vip: Address | Prefix | None = None
    """The VIP, as the service has it."""
    backend: Address | None = None
    client: Prefix | None = None
    """Where the client's address is; an address is a prefix of its full length."""
    max_idle: float | None = None
    """Seconds: seen within this time."""

    def filter(self, members: Members, names: Mapping[ServiceKey, str]) -> Filter:
        """Return the same question for the flow table."""
        handles = [handle for handle, member in members.items() if self._is_about(member, names)]
        return Filter(handles, self.client, self.max_idle)

    def _is_about(self, member: Member, names: Mapping[ServiceKey, str]) -> bool:
        return (
            (self.service is None or names.get(member.service) == self.service)
            and (self.vip is None or member.service.vip == self.vip)
            and (self.backend is None or member.backend == self.backend)
        )


EVERY = Question()


def names_of(services: Iterable[Service]) -> dict[ServiceKey, str]:
    """Return the services' names by what the kernel knows of them."""
    return {service.key: service.name for service in services}


def page(
    table: FlowTable,
    question: Question,
    members: Members,
    names: Mapping[ServiceKey, str],
    *,
    start: int,
    limit: int,
) -> documents.Flows:
    """Return up to ``limit`` entries from place ``start`` on, and where to go on."""
    # One more than asked for, which tells whether there are more.
    found = table.entries(question.filter(members, names), start=start, limit=limit + 1)
    following = int(found.places[limit]) if len(found) > limit else None
    shown = found.only(slice(limit))
    return documents.Flows(tuple(_flows(shown, members, names)), following)


def counts(
    table: FlowTable, question: Question, members: Members, names: Mapping[ServiceKey, str]
) -> documents.FlowCounts:
    """Return how many there are, by backend."""
    found = table.counts(question.filter(members, names))
    backends = tuple(
        documents.BackendFlows(
            names.get(member.service, str(member.service)), member.backend, number
        )
        for handle, member in members.items()
        if (number := found.get(handle, 0))
    )
    return documents.FlowCounts(sum(each.flows for each in backends), table.capacity, backends)


def active(table: FlowTable, members: Members) -> Active:
    """Return how many flows each backend has that were seen lately; 0 is told, too."""
    found = table.counts(Filter(max_idle_seconds=ACTIVE_SECONDS))
    made: Active = {}
    for handle, member in members.items():
        made.setdefault(member.service, {})[member.backend] = found.get(handle, 0)
    return made


def _flows(
    entries: Entries, members: Members, names: Mapping[ServiceKey, str]
) -> Iterable[documents.Flow]:
    rows = zip(
        entries.handles.tolist(),
        entries.clients,
        entries.client_ports.tolist(),
        entries.idle_seconds.tolist(),
        strict=True,
    )
    for handle, client, port, idle in rows:
        member = members[handle]
        yield documents.Flow(
            service=names.get(member.service, str(member.service)),
            client=unpack(client.tobytes(), member.family),
            client_port=port,
            backend=member.backend,
            idle_seconds=round(idle, 3),
        )
