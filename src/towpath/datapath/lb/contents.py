# SPDX-License-Identifier: Apache-2.0
"""The services in the kernel: what they are, and how they become what is wished for."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from towpath.core.lb.plan import Transition, plan
from towpath.core.lb.steps import RemoveBackend
from towpath.datapath.lb import build
from towpath.datapath.lb.admission import check
from towpath.datapath.lb.execute import execute
from towpath.datapath.lb.local import nobody
from towpath.datapath.lb.served import Served
from towpath.kernel.bpf.rcu import wait_for_readers
from towpath.model.service import Service, ServiceKey

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from towpath.datapath.lb.local import IsHere
    from towpath.datapath.lb.services import Installed, Place
    from towpath.datapath.maps.source import TableSource


def unnamed(key: ServiceKey) -> str:
    """Return what a service is called whose name isn't known, such as tcp-203.0.113.10-80."""
    return re.sub("[/,]", "_", f"{key.protocol}-{key.vip}-{key.port}")


class Contents:
    """The services in the maps of ``source``, by name and by what the kernel has of them.

    Where there are services in the maps already they are taken over by :meth:`adopt`.
    ``is_here``: whether packets to a backend are delivered on this node.
    """

    def __init__(self, source: TableSource, is_here: IsHere = nobody) -> None:
        self._source = source
        self._is_here = is_here
        self.tables = build.tables(source, is_here)
        self._observed: dict[ServiceKey, Service] = {}
        self.served = Served()
        """What these services are at, and where their backends are."""
        self.version = 0
        """Increases when the services are others than before."""
        self._places: tuple[Place, ...] | None = None

    def observed(self) -> tuple[Service, ...]:
        """Return the services that are in the kernel.

        The kernel doesn't know their names: a service that this object hasn't
        been given is called as :func:`unnamed` says.
        """
        return tuple(self._observed.values())

    @property
    def by_key(self) -> dict[ServiceKey, Service]:
        """The same by what they are for."""
        return self._observed

    @property
    def installed(self) -> Collection[Installed]:
        """The services as they are in the kernel."""
        return self.tables.services.values()

    @property
    def places(self) -> tuple[Place, ...]:
        """Where they are counted; the same object until something changes."""
        if self._places is None:
            self._places = tuple(each.place for each in self.installed)
        return self._places

    def adopt(self, known: Iterable[Service] = ()) -> None:
        """Take over what is in the kernel, with the names that are ``known``.

        Those that are there just as they are known are these very objects.
        """
        self.version += 1
        by_key = {service.key: service for service in known}
        alike = self.tables.adopt(by_key)
        self._places = None
        self._observed = {
            key: by_key[key]
            if key in alike
            else Service(
                name=by_key[key].name if key in by_key else unnamed(key),
                vip=key.vip,
                port=key.port,
                protocol=key.protocol,
                scope=key.scope,
                backends=each.backends(),
                route_from=each.route_from(),
                **each.options.fields(),
            )
            for key, each in sorted(self.tables.services.items(), key=lambda item: item[0].order)
        }
        self.served = Served.of(self._observed.values())

    def plan(self, services: Iterable[Service]) -> Transition:
        """Return what `apply` would do with ``services``."""
        return plan(self.observed(), tuple(services))

    def apply(
        self, services: Iterable[Service], prepare: Callable[[Transition], None] = lambda _: None
    ) -> Transition:
        """Make ``services`` what is in the kernel, step by step, and return the steps.

        ``prepare`` is called before the first one. Flows go on throughout. CapacityError: there is
        no room; nothing was changed then.
        """
        services = tuple(services)
        return self._carry_out(self.plan(services), services, prepare)

    def change(
        self,
        keys: Iterable[ServiceKey],
        services: Iterable[Service],
        prepare: Callable[[Transition], None] = lambda _: None,
    ) -> Transition:
        """Make ``services`` what is in the place of those at ``keys``, as `apply` does.

        All others stay as they are, and cost nothing.
        """
        services = tuple(services)
        before = self.at({*keys, *(each.key for each in services)})
        wanted = plan(before, services, others=len(self._observed) - len(before))
        return self._carry_out(wanted, services, prepare)

    def at(self, keys: Iterable[ServiceKey]) -> tuple[Service, ...]:
        """Return those of the services that have these keys."""
        return tuple(self._observed[key] for key in keys if key in self._observed)

    def _carry_out(
        self,
        wanted: Transition,
        services: tuple[Service, ...],
        prepare: Callable[[Transition], None],
    ) -> Transition:
        check(self.tables, wanted.steps)
        prepare(wanted)
        self.version += 1
        if wanted.steps:
            self._places = None
        try:
            for step in wanted.steps:
                execute(step, self.tables)
            self.tables.withdraw_leftovers()
            self.tables.mark(dict.fromkeys(step.key for step in wanted.steps))
        except BaseException:
            # As after a death: the kernel's tables say what there is.
            wait_for_readers()
            self.tables = build.tables(self._source, self._is_here)
            self.adopt((*self.observed(), *services))
            raise
        if any(isinstance(step, RemoveBackend) for step in wanted.steps):
            self._forget_drops()
        for change in wanted.changes:
            self.served.change(change.before, change.after)
            if change.before is not None:
                del self._observed[change.before.key]
        # The very objects: what doesn't change next time is then seen at a glance. And the keys
        # that the tables have: equal ones would take as much memory again.
        for after in (each.after for each in wanted.changes if each.after):
            self._observed[self.tables.services[after.key].key] = after
        return wanted

    def _forget_drops(self) -> None:
        """Give up the room of drops of backends that are gone."""
        table = self._source.maps["backend_drops"]
        for key in list(table.keys()):
            if not self.tables.backends.has(int(key["handle"])):
                table.delete(key, missing_ok=True)
