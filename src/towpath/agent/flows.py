# SPDX-License-Identifier: Apache-2.0
"""Questions about the flow table, by the names that people have for things."""

from __future__ import annotations

from dataclasses import dataclass
from socket import AF_INET, AF_INET6, inet_ntop
from typing import TYPE_CHECKING, Any

from towpath.agent import documents
from towpath.datapath.address import FAMILY_V4
from towpath.datapath.flows import Filter

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

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
) -> dict[str, Any]:
    """Return up to ``limit`` entries from place ``start`` on, as documents.Flows is in JSON.

    Without the documents, which take several times as long as all the rest for pages of
    ten thousand: the agent's other threads wait meanwhile.
    """
    # One more than asked for, which tells whether there are more.
    found = table.entries(question.filter(members, names), start=start, limit=limit + 1)
    following = int(found.places[limit]) if len(found) > limit else None
    shown = found.only(slice(limit))
    return {"flows": list(_flows(shown, members, names)), "following": following}


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
) -> Iterator[dict[str, Any]]:
    ends = {
        handle: (
            names.get(member.service, str(member.service)),
            str(member.backend),
            AF_INET if member.family == FAMILY_V4 else AF_INET6,
        )
        for handle, member in members.items()
    }
    rows = zip(
        entries.handles.tolist(),
        entries.clients,
        entries.client_ports.tolist(),
        entries.idle_seconds.round(3).tolist(),
        strict=True,
    )
    for handle, client, port, idle in rows:
        service, backend, family = ends[handle]
        raw = client.tobytes()
        yield {
            "service": service,
            "client": inet_ntop(family, raw[12:] if family == AF_INET else raw),
            "client_port": port,
            "backend": backend,
            "idle_seconds": idle,
        }
