# SPDX-License-Identifier: Apache-2.0
"""Carries changes of the desired state to the disk and to the kernel, one at a time.

Every change takes the same way: merge, write to the database, apply to the
kernel, commit. A change that the kernel refuses is rolled back on disk; a
process that dies between the two leaves a kernel one change ahead of the disk,
for a request that nobody got an answer to, and the next start puts that right.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from towpath.agent.desired import Desired, Owner
from towpath.agent.errors import InvalidError
from towpath.core.health import effective, held
from towpath.model import CheckType, Config, Problem, Service, check_service, check_services

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

    from towpath.agent.store import Store
    from towpath.core.health import Down
    from towpath.core.plan import Plan
    from towpath.datapath.balancer import Member
    from towpath.datapath.counters import Counters
    from towpath.datapath.flow_table import FlowTable
    from towpath.datapath.trace import Trace
    from towpath.model import FlowTuple

log = logging.getLogger(__name__)

# Parts of the configuration that the running datapath was made with.
FIXED = (
    "devices",
    "source",
    "icmp",
    "limits",
    "checks",
    "api",
    "metrics",
    "state",
    "snat",
)


class Datapath(Protocol):
    """What the agent needs of :class:`towpath.datapath.balancer.Balancer`."""

    def observed(self) -> tuple[Service, ...]:
        """The services that are in the kernel."""
        ...

    def plan(self, services: Iterable[Service]) -> Plan:
        """What apply() would do."""
        ...

    def apply(self, services: Iterable[Service]) -> Plan:
        """Make the kernel hold these services; refused whole when they don't fit."""
        ...

    def counters(self, cpu: int | None = None) -> Counters:
        """Packets and bytes by verdict, service and backend, of one CPU or of all."""
        ...

    @property
    def cpus(self) -> Sequence[int]:
        """The CPUs that may count."""
        ...

    def members(self) -> dict[int, Member]:
        """Which backend of which service a handle stands for."""
        ...

    @property
    def flow_table(self) -> FlowTable:
        """The flows that are remembered, which any thread may ask."""
        ...

    def verdicts(self) -> dict[str, int]:
        """Packets by verdict."""
        ...

    def trace(self, flow: FlowTuple, device: str | None = None) -> Trace:
        """What the loaded program decides for a flow."""
        ...

    def refresh_devices(self) -> None:
        """Look again which VLAN devices there are."""
        ...


class Controller:
    """The desired state and the way to change it. Methods are called by one thread.

    ``desired``, ``config`` and ``down``, the backends that get no flows since they aren't
    well, are replaced, never modified, so that any thread may read them.
    """

    def __init__(self, config: Config, store: Store, datapath: Datapath) -> None:
        self.config = config
        self.store = store
        self.datapath = datapath
        self.desired = Desired.of(config.services, store.services())
        self.down: Down = {}
        self.trouble: str | None = None

    def start(self) -> Plan:
        """Bring the kernel to the desired state, whatever it holds.

        What it gave no flows because it was down gets none until it is known to be up.
        """
        self.down = held(self.desired.services(), self.datapath.observed())
        return self._apply(self.desired)

    def set_down(self, down: Down) -> Plan:
        """Give no new flows to backends that are down, and new ones again to the others."""
        with self._as_before_on_failure():
            plan = self.datapath.apply(effective(self.desired.services(), down))
        self.down = down
        return plan

    def _apply(self, desired: Desired) -> Plan:
        return self.datapath.apply(effective(desired.services(), self.down))

    def reload(self, config: Config) -> Plan:
        """Take over a changed configuration file.

        Raises InvalidError when it changes what needs a restart, ConflictError
        when it contradicts services of the API.
        """
        if problems := list(_needs_restart(self.config, config)):
            raise InvalidError(problems)
        desired = self.desired.replaced(Owner.FILE, config.services)
        self.datapath.refresh_devices()
        with self._as_before_on_failure():
            plan = self._apply(desired)
        self.desired, self.config = desired, config
        return plan

    def put(self, services: Collection[Service], *, prune: bool = False) -> Plan:
        """Add or replace services of the API; prune removes its others."""
        return self._change(services, self._pruned(services) if prune else ())

    def delete(self, name: str) -> Plan:
        """Remove a service of the API."""
        self.desired.owned_by_api(name)
        return self._change((), (name,))

    def edit(self, name: str, change: Callable[[Service], Service]) -> Plan:
        """Replace a service of the API by what change makes of it."""
        return self._change((change(self.desired.owned_by_api(name)),), ())

    def plan(
        self, services: Collection[Service], *, owner: Owner = Owner.API, prune: bool = False
    ) -> Plan:
        """What would happen if owner asked for these services. Nothing is changed.

        For Owner.FILE the services are the file's whole content, pruned or not.
        """
        _check(services)
        if owner is Owner.API:
            _check_commands(services)
        if owner is Owner.FILE:
            desired = self.desired.replaced(Owner.FILE, services)
        else:
            gone = self._pruned(services) if prune else ()
            desired = self.desired.changed(Owner.API, put=services, remove=gone)
        return self.datapath.plan(effective(desired.services(), self.down))

    def _pruned(self, kept: Iterable[Service]) -> set[str]:
        """Names of the API's services that are not among kept."""
        owned = {service.name for service in self.desired.services(Owner.API)}
        return owned - {service.name for service in kept}

    def _change(self, put: Collection[Service], remove: Collection[str]) -> Plan:
        """Change services of the API: on disk and in the kernel, or nowhere."""
        _check(put)
        _check_commands(put)
        desired = self.desired.changed(Owner.API, put=put, remove=remove)
        with self._as_before_on_failure(), self.store.transaction():
            self.store.delete(remove)
            self.store.put(put)
            plan = self._apply(desired)
        self.desired = desired
        return plan

    @contextmanager
    def _as_before_on_failure(self) -> Iterator[None]:
        """When the block raises, bring the kernel back to ``desired``.

        Costs nothing where the kernel has not been touched. Where even this fails the
        next change puts it right, since every apply compares with what the kernel has.
        """
        try:
            yield
        except BaseException:
            try:
                self._apply(self.desired)
            except Exception:
                log.exception("the kernel could not be brought back to the state before")
                self.trouble = "a failed change could not be undone; the log has the reason"
            raise
        self.trouble = None


def _check(services: Collection[Service]) -> None:
    """Raise ConfigError when anything is wrong with services by themselves.

    Paths of the problems start at the service when there is one, as a request's
    body does, and at the list when there are more.
    """
    if len(services) == 1:
        for service in services:
            check_service(service)
    else:
        check_services(services)


def _check_commands(services: Iterable[Service]) -> None:
    """Raise InvalidError for a check that runs a command.

    Whoever may use the API's socket may change services, not run programs as the agent.
    """
    for service in services:
        if service.health and service.health.type is CheckType.COMMAND:
            raise InvalidError(
                [
                    Problem(
                        f"command of service {service.name!r} can't be set through the API;"
                        " allowed: in the configuration file",
                        "health.type",
                    )
                ]
            )


def _needs_restart(running: Config, new: Config) -> Iterator[Problem]:
    """Problems for each part that differs and that the datapath was made with."""
    for part in FIXED:
        if getattr(running, part) != getattr(new, part):
            yield Problem("can't change while the agent runs; restart it to take it over", part)
