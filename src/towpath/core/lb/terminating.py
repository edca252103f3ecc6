# SPDX-License-Identifier: Apache-2.0
"""Backends that nobody wishes for any more and that still have flows.

They stay for a while, draining, and are no part of what is wished for: which ones
they are follows from what is observed and what is desired. Their weight is 0, so the
table is made without them when they leave, and is not touched when they are gone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, TypeAlias

from towpath.core.lb.plan import backends_gone
from towpath.core.lb.states import BackendKey
from towpath.model.kinds import Address, Ports, PortSet, Prefix, UnicastAddress, Vip, Word
from towpath.model.service import (
    SERVER_ID,
    Backend,
    BackendState,
    Protocol,
    Scope,
    Service,
    ServiceKey,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from towpath.documents import Plan, ServiceChange


@dataclass(frozen=True, slots=True)
class Terminating:
    """A backend that was removed while it may have had flows."""

    vip: Annotated[Address | Prefix, Vip()]
    port: Annotated[int | Ports, PortSet()]
    protocol: Protocol
    address: Annotated[Address, UnicastAddress()]
    since: float
    """When it was removed, in seconds since 1970."""
    until: float
    """It is gone by then, whatever flows it has."""
    scope: Annotated[Scope, Word("all", "node")] = "all"
    backend_port: int | None = None
    """Its own port: a flow may begin until the table is without it."""
    local: bool = False
    """It was said to be on this node, where its flows go on."""
    server_id: Annotated[tuple[int, ...], SERVER_ID] = ()
    """Those that connection ids name it by, but for what another backend has now."""

    @property
    def key(self) -> BackendKey:
        """The backend."""
        return BackendKey(ServiceKey(self.vip, self.port, self.protocol, self.scope), self.address)


TerminatingByKey: TypeAlias = Mapping[BackendKey, Terminating]


def find_terminating(
    observed: Iterable[Service],
    desired: Iterable[Service],
    known: Mapping[BackendKey, Terminating],
    *,
    now: float,
    timeout: float,
    at_once: Callable[[BackendKey], bool] = lambda _: False,
) -> TerminatingByKey:
    """Return the backends that are there, are not desired, and are to keep their flows.

    Those that are ``known`` to be terminating keep their times; others have ``timeout``
    seconds from ``now``, and with a timeout of 0 none. Without flows to keep there is
    nothing to wait for: where the service remembers none, where the backend is down, and
    where ``at_once`` says so.
    """
    found = {}
    for before, after, backend in backends_gone(observed, desired):
        key = BackendKey(after.key, backend.address)
        remembers = before.flow_table and after.flow_table
        if not remembers or backend.state is BackendState.DOWN or at_once(key):
            continue
        earlier = known.get(BackendKey(before.key, backend.address))
        times = (earlier.since, earlier.until) if earlier else (now, now + timeout)
        if earlier or timeout:
            vip, port, protocol, scope = after.key
            found[key] = Terminating(
                vip,
                port,
                protocol,
                backend.address,
                *times,
                scope=scope,
                backend_port=backend.port,
                local=backend.local,
                server_id=backend.server_id,
            )
    return found


def merge_terminating(
    services: Iterable[Service], terminating: TerminatingByKey
) -> tuple[Service, ...]:
    """Return the services with the backends of theirs that are terminating, draining.

    Services that nobody leaves are the very objects.
    """
    by_service: dict[ServiceKey, list[Terminating]] = {}
    for key, each in terminating.items():
        by_service.setdefault(key.service, []).append(each)
    if not by_service:
        return tuple(services)
    return tuple(_with(service, by_service.get(service.key, ())) for service in services)


def _with(service: Service, leaving: Iterable[Terminating]) -> Service:
    state = BackendState.DRAINING
    taken = {server_id for each in service.backends for server_id in each.server_id}
    more = tuple(
        Backend(
            each.address,
            0,
            state,
            each.backend_port,
            each.local,
            tuple([server_id for server_id in each.server_id if server_id not in taken]),
        )
        for each in leaving
    )
    return replace(service, backends=(*service.backends, *more)) if more else service


def plan_terminating(made: Plan, before: Iterable[BackendKey], after: Iterable[BackendKey]) -> Plan:
    """Return a plan as it is meant: backends that leave are removed, those back are added.

    ``before`` and ``after``: which backends were terminating, and are once it is carried out.
    """
    was, leaves = frozenset(before), frozenset(after)
    if not was and not leaves:
        return made
    return replace(
        made, changes=tuple(_change_terminating(each, was, leaves) for each in made.changes)
    )


def _change_terminating(
    change: ServiceChange, was: frozenset[BackendKey], leaves: frozenset[BackendKey]
) -> ServiceChange:
    def among(keys: frozenset[BackendKey], backends: Iterable[Address]) -> tuple[Address, ...]:
        return tuple(each for each in backends if BackendKey(change.service.key, each) in keys)

    # In order, and each once.
    changed = dict.fromkeys(
        (
            *change.backends_reweighted,
            *change.backends_restated,
            *change.backends_redirected,
            *change.backends_relocated,
            *change.backends_reidentified,
        )
    )
    gone = among(leaves, changed)
    back = among(was - leaves, changed)

    def others(backends: Iterable[Address]) -> tuple[Address, ...]:
        return tuple(each for each in backends if each not in (*gone, *back))

    return replace(
        change,
        backends_added=(*change.backends_added, *back),
        backends_removed=(*change.backends_removed, *gone),
        backends_leaving=gone,
        backends_reweighted=others(change.backends_reweighted),
        backends_restated=others(change.backends_restated),
        backends_redirected=others(change.backends_redirected),
        backends_relocated=others(change.backends_relocated),
        backends_reidentified=others(change.backends_reidentified),
    )
