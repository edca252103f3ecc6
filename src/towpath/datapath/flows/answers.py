# SPDX-License-Identifier: Apache-2.0
"""Answers to questions about flows, by the names that people have for things.

They are in two tables: those of services with ``forwarding: snat`` have one of their own. Which of
them a backend's flows are in is its service's matter; what the other one may still have of it, from
before the forwarding was changed, no packet finds. In pages the flow table comes first.
"""

from __future__ import annotations

from socket import AF_INET, AF_INET6, inet_ntop
from typing import TYPE_CHECKING, Any, NamedTuple

from towpath import documents
from towpath.datapath.address import FAMILY_V4
from towpath.datapath.flows.flow_table import Filter
from towpath.datapath.flows.nat_table import STATES, Wanted
from towpath.model.flow_question import FlowQuestion

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from towpath.datapath.flows.flow_table import Entries, FlowTable
    from towpath.datapath.flows.members import Member, Members
    from towpath.datapath.flows.nat_table import NatFlows, Translations
    from towpath.model import Address, Service, ServiceKey

Active = dict["ServiceKey", dict["Address", int]]
"""Flows by service and backend."""

ACTIVE_SECONDS = 300.0
"""A flow that was not seen for so long is not called active."""


class Tables(NamedTuple):
    """Where flows are remembered."""

    plain: FlowTable
    translated: NatFlows


def _plain(question: FlowQuestion, members: Members, names: Mapping[ServiceKey, str]) -> Filter:
    """Return a question as the flow table takes it."""
    mine = () if question.translated else _handles(question, members, names, translated=False)
    return Filter(mine, question.client, question.max_idle)


def _wanted(question: FlowQuestion, members: Members, names: Mapping[ServiceKey, str]) -> Wanted:
    """Return the same question as the table of translations takes it."""
    mine = _handles(question, members, names, translated=True)
    source, port = question.translated or (None, None)
    return Wanted(Filter(mine, question.client, question.max_idle), source, port, question.expired)


def _handles(
    question: FlowQuestion,
    members: Members,
    names: Mapping[ServiceKey, str],
    *,
    translated: bool,
) -> list[int]:
    return [
        handle
        for handle, member in members.items()
        if member.translated is translated and _is_about(question, member, names)
    ]


def _is_about(question: FlowQuestion, member: Member, names: Mapping[ServiceKey, str]) -> bool:
    return (
        (question.service is None or names.get(member.service) == question.service)
        and (question.vip is None or member.service.vip == question.vip)
        and (question.backend is None or member.backend == question.backend)
    )


def names_of(services: Iterable[Service]) -> dict[ServiceKey, str]:
    """Return the services' names by what the kernel knows of them."""
    return {service.key: service.name for service in services}


def page(
    tables: Tables,
    question: FlowQuestion,
    members: Members,
    names: Mapping[ServiceKey, str],
    *,
    start: int,
    limit: int,
) -> dict[str, Any]:
    """Return up to ``limit`` flows from place ``start`` on, as documents.Flows is in JSON.

    Without the documents, which take several times as long as all the rest for pages of
    ten thousand: the agent's other threads wait meanwhile.
    """
    # One more than asked for, which tells whether there are more.
    wanted, before = limit + 1, tables.plain.capacity
    plain = tables.plain.entries(_plain(question, members, names), start=start, limit=wanted)
    translated = tables.translated.entries(
        _wanted(question, members, names), start=max(start - before, 0), limit=wanted - len(plain)
    )
    places = [*plain.places.tolist(), *(translated.places + before).tolist()]
    rest = translated.only(slice(max(limit - len(plain), 0)))
    flows = [
        *_flows(plain.only(slice(limit)), members, names),
        *_translated(rest, tables.translated, members, names),
    ]
    return {"flows": flows, "following": places[limit] if len(places) > limit else None}


def counts(
    tables: Tables, question: FlowQuestion, members: Members, names: Mapping[ServiceKey, str]
) -> documents.FlowCounts:
    """Return how many there are, by backend."""
    translated = tables.translated.counts(_wanted(question, members, names))
    # No handle is in both.
    found = translated | tables.plain.counts(_plain(question, members, names))
    backends = tuple(
        documents.FlowCount(names.get(member.service, str(member.service)), member.backend, number)
        for handle, member in members.items()
        if (number := found.get(handle, 0))
    )
    return documents.FlowCounts(
        total=sum(found.values()),
        limit=tables.plain.capacity,
        backends=backends,
        translated=translated.total(),
        nat_limit=tables.translated.capacity,
    )


def active(tables: Tables, members: Members) -> Active:
    """Return how many flows each backend has that were seen lately; 0 is told, too."""
    question = FlowQuestion(max_idle=ACTIVE_SECONDS)
    found = tables.translated.counts(_wanted(question, members, {}))
    found |= tables.plain.counts(_plain(question, members, {}))
    made: Active = {}
    for handle, member in members.items():
        made.setdefault(member.service, {})[member.backend] = found.get(handle, 0)
    return made


def recent(tables: Tables) -> tuple[dict[int, int], dict[int, int]]:
    """Return how many flows each handle has that were seen lately, untranslated and translated."""
    lately = Filter(max_idle_seconds=ACTIVE_SECONDS)
    return tables.plain.counts(lately), dict(tables.translated.counts(Wanted(lately)))


class _End(NamedTuple):
    """What a handle stands for, as it is shown."""

    service: str
    backend: str
    family: int

    def text(self, address: bytes) -> str:
        """An address of the service's clients."""
        return inet_ntop(self.family, address[-4:] if self.family == AF_INET else address)


def _ends(members: Members, names: Mapping[ServiceKey, str]) -> dict[int, _End]:
    return {
        handle: _End(
            names.get(member.service, str(member.service)),
            str(member.backend),
            AF_INET if member.family == FAMILY_V4 else AF_INET6,
        )
        for handle, member in members.items()
    }


def _flows(
    entries: Entries, members: Members, names: Mapping[ServiceKey, str]
) -> Iterator[dict[str, Any]]:
    ends = _ends(members, names)
    rows = zip(
        entries.handles.tolist(),
        entries.clients,
        entries.client_ports.tolist(),
        entries.idle_seconds.round(3).tolist(),
        strict=True,
    )
    for handle, client, port, idle in rows:
        end = ends[handle]
        yield {
            "service": end.service,
            "client": end.text(client.tobytes()),
            "client_port": port,
            "backend": end.backend,
            "idle_seconds": idle,
            "translation": None,
        }


def _translated(
    entries: Translations, table: NatFlows, members: Members, names: Mapping[ServiceKey, str]
) -> Iterator[dict[str, Any]]:
    ends = _ends(members, names)
    sources = {number: str(address) for number, address in table.sources.items()}
    rows = zip(
        entries.handles.tolist(),
        entries.clients,
        entries.client_ports.tolist(),
        entries.vips,
        entries.vip_ports.tolist(),
        entries.backend_ports.tolist(),
        entries.sources.tolist(),
        entries.ports.tolist(),
        entries.states.tolist(),
        entries.expired.tolist(),
        entries.idle_seconds.round(3).tolist(),
        entries.remaining_seconds.round(3).tolist(),
        strict=True,
    )
    for handle, client, client_port, vip, vip_port, backend_port, *rest in rows:
        source, port, state, over, idle, left = rest
        end = ends[handle]
        yield {
            "service": end.service,
            "client": end.text(client.tobytes()),
            "client_port": client_port,
            "backend": end.backend,
            "idle_seconds": idle,
            "translation": {
                "address": sources[source],
                "port": port,
                "vip": end.text(vip.tobytes()),
                "vip_port": vip_port,
                "backend_port": backend_port,
                "state": "expired" if over else STATES[state],
                "remaining_seconds": left,
            },
        }
