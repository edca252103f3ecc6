# SPDX-License-Identifier: Apache-2.0
"""Services to test with, and a datapath that is a dictionary."""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING

from towpath.core.lb.plan import Transition, plan
from towpath.datapath.errors import CapacityError
from towpath.model import Backend, Service

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from towpath.core.lb.states import BackendKey
    from towpath.datapath.flows.count import FlowCounter
    from towpath.model.service import ServiceKey


def service(name: str, vip: str = "203.0.113.10", *backends: str, port: int = 80) -> Service:
    """A small service."""
    return Service(
        name=name,
        vip=ip_address(vip),
        port=port,
        backends=tuple(Backend(ip_address(address)) for address in backends),
        table_size=251,
    )


class MemoryDatapath:
    """Holds services where the kernel would; ``room`` is how many there may be.

    ``broken`` makes the next applies stop halfway with an error, as a kernel that
    runs out of memory does.
    """

    def __init__(self, room: int = 100) -> None:
        self.held: dict[str, Service] = {}
        self.room = room
        self.broken = 0
        self.applied = 0
        self.changed = 0
        """How often it was asked for a part of all."""
        self.version = 0

    def observed(self) -> tuple[Service, ...]:
        """What it holds."""
        return tuple(self.held.values())

    def flow_counter(self, backends: Collection[BackendKey]) -> FlowCounter:
        """There is no flow table."""
        raise NotImplementedError

    def plan(self, services: Iterable[Service]) -> Transition:
        """By the real planner."""
        return plan(self.held.values(), services)

    def apply(self, services: Iterable[Service]) -> Transition:
        """All or, when broken, a part."""
        services = tuple(services)
        made = self.plan(services)
        if len(services) > self.room:
            raise CapacityError("services", len(services), self.room, "services")
        self.version += 1
        if self.broken:
            self.broken -= 1
            self.held = {each.name: each for each in services[:1]}
            raise OSError("out of memory")
        self.held = {each.name: each for each in services}
        self.applied += 1
        return made

    def observed_at(self, keys: Iterable[ServiceKey]) -> tuple[Service, ...]:
        """What it holds of these."""
        wanted = set(keys)
        return tuple(each for each in self.held.values() if each.key in wanted)

    def change(self, keys: Iterable[ServiceKey], services: Iterable[Service]) -> Transition:
        """By a plan of all: another way than the real one goes."""
        services = tuple(services)
        gone = {*keys, *(each.key for each in services)}
        others = (each for each in self.held.values() if each.key not in gone)
        self.changed += 1
        return self.apply([*others, *services])

    def refresh_devices(self) -> None:
        """There are none."""
