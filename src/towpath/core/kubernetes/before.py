# SPDX-License-Identifier: Apache-2.0
"""What an agent of before has left in force, as endpoints that may be held.

Slices that are written anew lack ready endpoints for a while. Who has seen these before holds them.
An agent that begins just then has seen nothing: but what is in force was right until then, and is
known to whoever begins.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from towpath.core.kubernetes.endpoints import HOLD_SECONDS
from towpath.core.kubernetes.slices import READY, Found, Listed, said_once

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from towpath.core.kubernetes.endpoints import Endpoints
    from towpath.core.kubernetes.slices import Said, Slice
    from towpath.model.kinds import Address
    from towpath.model.service import Service
    from towpath.model.sources.kubernetes import objects

Name = tuple[str, str]
"""Namespace and name."""


class Before:
    """Each Service's endpoints are asked for once: then they are known by themselves."""

    def __init__(self, services: Iterable[Service] = ()) -> None:
        self._services: dict[Name, list[Service]] = {}
        for each in services:
            namespace, name, *_ = f"{each.name}::".split(":")
            self._services.setdefault((namespace, name), []).append(each)
        self._until: dict[Name, float] = {}

    def endpoints(self, service: objects.Service, node: str) -> Endpoints:
        """Return those of a Service that got new connections."""
        meta = service.metadata
        found = self._services.pop((meta.namespace, meta.name), ())
        made: Endpoints = {}
        for port in service.spec.ports or () if found else ():
            label = f"{meta.namespace}:{meta.name}:{port.name or port.port}:"
            mine = [each for each in found if each.name.startswith(label)]
            for family in (4, 6):
                listed = dict(_found(mine, family, node))
                if listed:
                    at = (port.port, port.protocol, family)
                    made[at] = Listed([Found(*each) for each in listed.items()])
        return made

    def hold(self, service: objects.Service, slices: Iterable[Slice], now: float) -> None:
        """Some are held. While it is known that slices are yet to be written they stay.

        Where slices may disagree for ever they are held for a time: what has gone while no agent
        was there nobody will tell.
        """
        ports = service.spec.ports or ()
        agree_in_the_end = all(isinstance(each.target_port, int) for each in ports)
        if not (agree_in_the_end and all(each.managed for each in slices)):
            meta = service.metadata
            self._until[meta.namespace, meta.name] = now + HOLD_SECONDS

    def settle(self) -> None:
        """All Services were looked at: whatever is made under a name from now on is another."""
        self._services = {}

    def over(self, now: float) -> set[Name]:
        """Return Services whose endpoints of before were held long enough, once."""
        over = {name for name, until in self._until.items() if now > until}
        for name in over:
            del self._until[name]
        return over


def _found(services: Iterable[Service], family: int, node: str) -> Iterator[tuple[Address, Said]]:
    """Each as often as it is a backend: last where it is known to be on this node."""
    all_of_them = (
        (backend, backend.port or service.port)
        for service in services
        if service.vip.version == family
        for backend in service.backends
        if backend.takes_flows
    )
    for each, port in sorted(all_of_them, key=lambda pair: pair[0].local):
        yield each.address, said_once(port, READY, node if each.local else None, None, None)
