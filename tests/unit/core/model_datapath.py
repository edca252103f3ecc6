# SPDX-License-Identifier: Apache-2.0
"""A model of the datapath, that carries out steps and refuses every wrong order."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from towpath.core.lb import steps
from towpath.core.lb.options import Options
from towpath.core.lb.routes import canonical
from towpath.model import Backend, Service, ServiceKey, SourceRoute

if TYPE_CHECKING:
    from collections.abc import Iterable

    from towpath.model import Address


@dataclass
class Room:
    """One service of the model."""

    options: Options
    backends: dict[Address, Backend] = field(default_factory=dict)
    table: frozenset[Backend] | None = None
    """Those that take flows, as of the last SetTable. Their ids aren't in it."""
    away: frozenset[tuple[Address, int]] = frozenset()
    """Those whose slots the others filled then, with their weights."""
    fresh: set[Address] = field(default_factory=set)
    """Those whose flows a step has moved."""
    table_size: int = 0
    published: bool = False
    routes: tuple[SourceRoute, ...] = ()

    def set_table(self, backends: Iterable[Backend]) -> None:
        """Have those that take flows share the table."""
        backends = tuple(backends)
        self.table = frozenset(replace(each, server_id=()) for each in backends if each.takes_flows)
        away = {(each.address, each.weight) for each in backends if each.weight}
        self.away = frozenset(away - {(each.address, each.weight) for each in self.table})
        self.table_size = self.options.table_size


class Datapath:
    """What a datapath holds. Every step checks that its order is right."""

    def __init__(self) -> None:
        self.rooms: dict[ServiceKey, Room] = {}

    def carry_out(self, step: steps.Step) -> None:
        """Do one step, then check that nothing is left dangling."""
        if isinstance(step, steps.BackendStep):
            self._change_backends(step)
        else:
            self._change_service(step)
        self.check()

    def _change_service(self, step: steps.ServiceStep) -> None:
        match step:
            case steps.CreateService(service):
                assert service.key not in self.rooms
                self.rooms[service.key] = Room(Options.of(service))
            case steps.SetOptions(key, options):
                assert self.rooms[key].options != options
                self.rooms[key].options = options
            case steps.PublishService(key):
                assert not self.rooms[key].published
                self.rooms[key].published = True
            case steps.MoveService(key, to):
                assert self.rooms[key].published
                assert to not in self.rooms
                self.rooms[to] = self.rooms.pop(key)
            case steps.WithdrawService(key):
                assert self.rooms[key].published
                self.rooms[key].published = False
            case steps.DiscardService(key):
                room = self.rooms.pop(key)
                assert (room.published, room.backends, room.table) == (False, {}, frozenset())

    def _change_backends(self, step: steps.BackendStep) -> None:
        match step:
            case steps.AddBackends(key, backends):
                for backend in backends:
                    assert backend.address not in self.rooms[key].backends
                    self.rooms[key].backends[backend.address] = backend
            case steps.SetServerIds(key, backends):
                room = self.rooms[key]
                for backend in backends:
                    before = room.backends[backend.address]
                    assert before.server_id != backend.server_id
                    room.backends[backend.address] = replace(before, server_id=backend.server_id)
            case steps.SetBackend(key, backend):
                room = self.rooms[key]
                assert room.backends[backend.address].server_id == backend.server_id
                assert room.backends[backend.address] != backend
                if backend.state == "down" != room.backends[backend.address].state:
                    assert backend.address not in {each.address for each in room.table or ()}
                    room.fresh.add(backend.address)
                room.backends[backend.address] = backend
            case steps.SetTable(key, backends):
                room = self.rooms[key]
                room.set_table(backends)
                noted = [room.backends[each.address] for each in backends]
                pairs = zip(noted, backends, strict=True)
                assert all(
                    before == after or not before.takes_flows or after.state == "down"
                    for before, after in pairs
                )
            case steps.SetRoutes(key, routes, backends):
                room = self.rooms[key]
                assert room.routes != routes
                assert {each.address for each in backends} <= room.backends.keys()
                room.routes = routes
            case steps.RemoveBackend(key, address):
                del self.rooms[key].backends[address]

    def check(self) -> None:
        """No service without table, no table that refers to an absent backend."""
        for room in self.rooms.values():
            assert not room.published or room.table is not None
            assert {each.address for each in room.table or ()} <= room.backends.keys()

    def recover(self) -> None:
        """What a datapath does after a crash: drop what is half done, mend tables."""
        for key, room in list(self.rooms.items()):
            if not room.published:
                del self.rooms[key]
                continue
            known = {each.address for each in room.table or ()}
            room.backends = {
                a: each for a, each in room.backends.items() if a in known or not each.takes_flows
            }
            room.set_table(room.backends.values())
        self.check()

    def observed(self) -> tuple[Service, ...]:
        """The services that packets find, named by their keys."""
        return tuple(
            Service(
                str(key),
                *key[:3],
                backends=tuple(room.backends.values()),
                scope=key.scope,
                route_from=room.routes,
                **room.options.fields(),
            )
            for key, room in self.rooms.items()
        )

    def assert_is(self, services: tuple[Service, ...]) -> None:
        """Check that it does exactly what is desired."""
        assert self.rooms.keys() == {service.key for service in services}
        for service in services:
            room = self.rooms[service.key]
            assert room.published
            assert room.options == Options.of(service)
            assert room.routes == canonical(service.route_from)
            assert room.backends == {each.address: each for each in service.backends}
            wanted = Room(room.options)
            wanted.set_table(service.backends)
            assert (room.table, room.away) == (wanted.table, wanted.away)
            assert room.table_size == service.table_size or not room.table
