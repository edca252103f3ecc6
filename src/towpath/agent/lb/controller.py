# SPDX-License-Identifier: Apache-2.0
"""Carries changes of the desired state to the disk and to the kernel, one at a time.

Every change takes the same way: merge, write to the database, apply to the
kernel, commit. A change that the kernel refuses is rolled back on disk; a
process that dies between the two leaves a kernel one change ahead of the disk,
for a request that nobody got an answer to, and the next start puts that right.
"""

from __future__ import annotations

import logging
import time
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple, Protocol

from towpath.agent.errors import ConflictError, InvalidError, NotFoundError
from towpath.agent.lb.desired import Desired
from towpath.capabilities import API, FILE, origin
from towpath.core.health import carried, held, verdicts
from towpath.core.lb.states import BackendKey, effective
from towpath.core.lb.terminating import find_terminating, merge_terminating, plan_terminating
from towpath.layered import Layered
from towpath.model import CheckType, Problem, Service, check_service, check_services

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

    from towpath.agent.lb.store import Store
    from towpath.agent.sources.intake import Update
    from towpath.core.health import Down
    from towpath.core.lb.plan import Transition
    from towpath.core.lb.terminating import TerminatingByKey
    from towpath.datapath.flows.count import FlowCounter
    from towpath.documents import Plan
    from towpath.model import Address, Config
    from towpath.model.service import ServiceKey

log = logging.getLogger(__name__)


class Datapath(Protocol):
    """What changes need of :class:`towpath.datapath.balancer.Balancer`."""

    def observed(self) -> tuple[Service, ...]:
        """The services that are in the kernel."""
        ...

    def plan(self, services: Iterable[Service]) -> Transition:
        """What apply() would do."""
        ...

    def apply(self, services: Iterable[Service]) -> Transition:
        """Make the kernel hold these services; refused whole when they don't fit."""
        ...

    @property
    def version(self) -> int:
        """Another number whenever the kernel may hold other services than before."""
        ...

    def observed_at(self, keys: Iterable[ServiceKey]) -> tuple[Service, ...]:
        """Those of the services that are in the kernel which have these keys."""
        ...

    def change(self, keys: Iterable[ServiceKey], services: Iterable[Service]) -> Transition:
        """Make the kernel hold ``services`` in the place of those at ``keys``; others stay."""
        ...

    def flow_counter(self, backends: Collection[BackendKey]) -> FlowCounter:
        """Prepare to count the flows of backends. Those that aren't there have none."""
        ...

    def refresh_devices(self) -> None:
        """Look again which VLAN devices there are."""
        ...


class Judged(NamedTuple):
    """What is desired, and which of its backends get no new flows since they aren't well."""

    desired: Desired
    down: Down


class _Part(NamedTuple):
    """What a change looks at: all services, or those that it is about."""

    before: tuple[Service, ...]
    after: tuple[Service, ...]
    observed: tuple[Service, ...]
    whole: bool

    @property
    def keys(self) -> set[ServiceKey]:
        """What they are for."""
        return {each.key for each in (*self.before, *self.after)}


class Controller:
    """The desired state and the way to change it. Methods are called by one thread.

    ``judged``, ``terminating`` and ``config`` are replaced, never modified, so that any thread may
    read them.

    ``sources``: those, besides the file, whose services are desired as they were last handed in;
    ``desired``: what `stored` says that is, if it was asked before.
    ConflictError: the API's contradict the file.
    """

    def __init__(
        self,
        config: Config,
        store: Store,
        datapath: Datapath,
        sources: Collection[str] = (API,),
        desired: Desired | None = None,
    ) -> None:
        self.config = config
        self.judged = Judged(desired or stored(config, store, sources), {})
        self._store = store
        self._datapath = datapath
        self.terminating = Layered({each.key: each for each in store.terminating()})
        self.trouble: str | None = None
        self._in_step = False
        """The kernel holds exactly what this believes: a change need not look at all of it."""

    @property
    def desired(self) -> Desired:
        """The services of all sources."""
        return self.judged.desired

    @property
    def down(self) -> Down:
        """Their backends that get no new flows."""
        return self.judged.down

    def start(self) -> Plan:
        """Bring the kernel to the desired state, whatever it holds.

        What it gave no flows because it was down gets none until it is known to be up. Backends
        that nobody wishes for any more leave as if they were removed now. Stored services that are
        not desired, as those of sources that there are no more, are forgotten.
        """
        down = held(self.desired.services(), self._datapath.observed())
        self.judged = Judged(self.desired, down)

        def write() -> None:
            for owner in self._store.owners():
                kept = {service.name for service in self.desired.services(owner)}
                gone = self._store.names(owner) - kept
                if gone:
                    log.info("forgotten, of source %s: %s", owner, ", ".join(sorted(gone)))
                    self._store.delete(gone)

        self._in_step = False
        return self._carry_out(self.desired, write=write)

    def set_down(self, down: Down, seen: Desired | None = None) -> Plan:
        """Give no new flows to backends that are down, and new ones again to the others.

        ``seen``: the desired state that they were found in, if that may be another by now.
        """
        before, down = self.down, self._carried(down, seen, self.desired)
        keys = {key for key in before.keys() | down.keys() if before.get(key) != down.get(key)}
        return self._carry_out(self.desired, self._names(keys), down=down)

    @staticmethod
    def _carried(down: Down, seen: Desired | None, desired: Desired) -> Down:
        """What is down by what is desired now."""
        if seen is None or seen is desired:
            return down
        return carried(down, seen.services(), desired.services())

    def reload(self, config: Config) -> Plan:
        """Take over a changed configuration file.

        Raises ConflictError when it contradicts services of another source.
        """
        desired = self.desired.replaced(FILE, config.services)
        names = {each.name for each in (*self.desired.services(FILE), *config.services)}
        self._datapath.refresh_devices()
        plan = self._carry_out(desired, names, config)
        self.config = config
        return plan

    def put(
        self, services: Collection[Service], *, prune: bool = False, force: bool = False
    ) -> Plan:
        """Add or replace services of the API; prune removes its others.

        Backends that are removed keep their flows for a while, unless by force.
        """
        keys = {service.key for service in services} if force else set()
        gone = self._pruned(services) if prune else ()
        return self._change(services, gone, lambda backend: backend.service in keys)

    def take(self, owner: str, update: Update) -> Plan:
        """Take over what another source than the file or the API hands in.

        Raises ConflictError when it contradicts services of the others.
        """
        if update.whole:
            gone = self._pruned(update.put, owner)
        else:
            gone = {each.name for each in self.desired.named(update.remove, owner)}
        return self._change(update.put, gone, owner=owner)

    def delete(self, name: str) -> Plan:
        """Remove a service of the API."""
        self.desired.owned_by_api(name)
        return self._change((), (name,))

    def edit(self, name: str, change: Callable[[Service], Service], *, force: bool = False) -> Plan:
        """Replace a service of the API by what change makes of it; force as for put()."""
        return self.put((change(self.desired.owned_by_api(name)),), force=force)

    def remove_backend(self, name: str, address: Address, *, force: bool = False) -> Plan:
        """Remove a backend; force also ends the flows of one that is terminating already."""
        service = self.desired.owned_by_api(name)
        kept = tuple(each for each in service.backends if each.address != address)
        gone = BackendKey(service.key, address)
        if len(kept) == len(service.backends) and not (force and gone in self.terminating):
            known = ", ".join(str(each.address) for each in kept) or "none"
            raise NotFoundError(f"service {name!r} has no backend {address}; it has: {known}")
        at_once = gone if force else None
        changed = replace(service, backends=kept)
        return self._change((changed,), (), lambda backend: backend == at_once)

    def reap(self, counted: TerminatingByKey, flows: Mapping[BackendKey, int]) -> Plan | None:
        """Remove the backends that were terminating at a count and are done. None: there are none.

        Done are those without flows, and those whose time is over.
        """
        now = time.time()
        done = {
            key
            for key, each in self.terminating.items()
            if counted.get(key) is each and (not flows.get(key) or now >= each.until)
        }
        if not done:
            return None
        names = self._names({key.service for key in done})
        return self._carry_out(self.desired, names, at_once=done.__contains__)

    def plan(self, services: Collection[Service], *, owner: str = API, prune: bool = False) -> Plan:
        """What would happen if owner asked for these services. Nothing is changed.

        For another owner than the API they are all that it has, pruned or not.
        """
        _check(services)
        _check_commands(services, owner)
        if owner == API:
            gone = self._pruned(services) if prune else ()
            desired = self.desired.changed(API, put=services, remove=gone)
        else:
            desired = self.desired.replaced(owner, services)
        part = self._part(desired, None)
        terminating = self._find_terminating(part, self.config)
        down = self._carried(self.down, self.desired, desired)
        wanted = self._datapath.plan(_effective(part.after, down, terminating))
        return plan_terminating(wanted.plan, self.terminating, terminating)

    def flow_counter(self, service: Service) -> tuple[FlowCounter, Service]:
        """Prepare to count the flows of a service's backends, and the service as it is in force."""
        known = self.terminating.items()
        mine = {key: each for key, each in known if key.service == service.key}
        (found,) = effective(merge_terminating((service,), mine), verdicts((service,), self.down))
        keys = [BackendKey(found.key, each.address) for each in found.backends]
        return self._datapath.flow_counter(keys), found

    def terminating_flow_counter(self) -> tuple[TerminatingByKey, FlowCounter]:
        """Who is terminating, and what counts their flows, for reap()."""
        return self.terminating, self._datapath.flow_counter(self.terminating)

    def _pruned(self, kept: Iterable[Service], owner: str = API) -> set[str]:
        """Names of the owner's services that are not among kept."""
        owned = {service.name for service in self.desired.services(owner)}
        return owned - {service.name for service in kept}

    def _change(
        self,
        put: Collection[Service],
        remove: Collection[str],
        at_once: Callable[[BackendKey], bool] = lambda _: False,
        owner: str = API,
    ) -> Plan:
        """Change services of an owner: on disk and in the kernel, or nowhere."""
        _check(put)
        _check_commands(put, owner)
        desired = self.desired.changed(owner, put=put, remove=remove)
        names = {*remove, *(each.name for each in put)}

        def write() -> None:
            self._store.delete(remove)
            self._store.put(put, owner)

        return self._carry_out(desired, names, write=write, at_once=at_once, lasting=owner == API)

    def _carry_out(
        self,
        desired: Desired,
        names: Collection[str] | None = None,
        config: Config | None = None,
        *,
        down: Down | None = None,
        write: Callable[[], None] = lambda: None,
        at_once: Callable[[BackendKey], bool] = lambda _: False,
        lasting: bool = False,
    ) -> Plan:
        """Make this the desired state, on disk (what ``write`` writes) and in the kernel.

        ``names``: the services that it may be about, by their names now or then; None for all.
        Others aren't looked at, unless the kernel may hold something else than was believed.
        ``lasting``: whether what is written has to survive the machine. What another source than
        the API has it tells again.
        """
        part = self._part(desired, names)
        found = self._find_terminating(part, config or self.config, at_once)
        gone = self._terminating_of(part) - found.keys()
        if down is None:
            down = self._carried_along(part)
        services = _effective(part.after, down, found)
        with self._as_before_on_failure(), self._store.transaction(lasting=lasting):
            write()
            if part.whole:
                self._store.put_terminating(found.values())
            else:
                new = (each for key, each in found.items() if self.terminating.get(key) != each)
                self._store.change_terminating(new, [self.terminating[key] for key in gone])
            if part.whole:
                done = self._datapath.apply(services)
            else:
                done = self._datapath.change(part.keys, services)
        was = gone | {key for key in found if key in self.terminating}
        self.judged = Judged(desired, down)
        self.terminating = self.terminating.changed(found, gone)
        self._in_step = True
        return plan_terminating(done.plan, was, found)

    def _part(self, desired: Desired, names: Collection[str] | None) -> _Part:
        """What there is and is to be of some services, or of all."""
        if names is None or not self._in_step:
            before, after = self.desired.services(), desired.services()
            return _Part(before, after, self._datapath.observed(), whole=True)
        before, after = self.desired.named(names), desired.named(names)
        part = _Part(before, after, (), whole=False)
        return part._replace(observed=self._datapath.observed_at(part.keys))

    def _names(self, keys: Iterable[ServiceKey]) -> set[str]:
        """The services that are desired at these keys."""
        found = (self.desired.at(key) for key in keys)
        return {each.name for each in found if each is not None}

    def _find_terminating(
        self,
        part: _Part,
        config: Config,
        at_once: Callable[[BackendKey], bool] = lambda _: False,
    ) -> TerminatingByKey:
        """Who of these services would be terminating if they were desired."""
        return find_terminating(
            part.observed,
            part.after,
            self.terminating,
            now=time.time(),
            timeout=config.drain.timeout,
            at_once=at_once,
        )

    def _terminating_of(self, part: _Part) -> set[BackendKey]:
        """Who of these services is terminating now: those are all in the kernel."""
        if part.whole or not self.terminating:
            return set(self.terminating)
        # As they were merged into what is desired: without a weight.
        keys = (
            BackendKey(key, backend.address)
            for key, service in ((each.key, each) for each in part.observed)
            for backend in service.backends
            if not backend.weight
        )
        return {key for key in keys if key in self.terminating}

    def _carried_along(self, part: _Part) -> Down:
        """What is down once these services are as they are to be."""
        if part.whole or not self.down:
            return carried(self.down, part.before, part.after)
        keys = part.keys
        others = {key: each for key, each in self.down.items() if key not in keys}
        return others | dict(carried(self.down, part.before, part.after))

    @contextmanager
    def _as_before_on_failure(self) -> Iterator[None]:
        """When the block raises, bring the kernel back to ``desired``.

        Costs nothing where the kernel has not been touched. Where even this fails the
        next change puts it right, since it compares all with what the kernel has.
        """
        version = self._datapath.version
        try:
            yield
        except BaseException:
            if self._datapath.version == version:
                raise
            self._in_step = False
            services = self.desired.services()
            try:
                self._datapath.apply(_effective(services, self.down, self.terminating))
            except Exception:
                log.exception("the kernel could not be brought back to the state before")
                self.trouble = "a failed change could not be undone; the log has the reason"
            raise
        self.trouble = None


def _effective(
    services: tuple[Service, ...], down: Down, terminating: TerminatingByKey
) -> tuple[Service, ...]:
    """What of these services the kernel is to hold."""
    return effective(merge_terminating(services, terminating), verdicts(services, down))


def stored(config: Config, store: Store, sources: Iterable[str]) -> Desired:
    """What is desired when an agent starts. ConflictError: the API contradicts the file.

    What other sources have handed in is left out where it contradicts these: it may not be what
    they have now, and only they can tell.
    """
    api = store.services() if API in sources else ()
    desired = Desired.of({FILE: config.services, API: api})
    for owner in sources:
        if owner != API:
            desired = _as_far_as_it_fits(desired, owner, store.services(owner))
    return desired


def _as_far_as_it_fits(desired: Desired, owner: str, services: Collection[Service]) -> Desired:
    try:
        return desired.changed(owner, put=services)
    except ConflictError:
        for service in services:
            try:
                desired = desired.changed(owner, put=(service,))
            except ConflictError as error:
                log.warning("source %s: %s", owner, error)
    return desired


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


def _check_commands(services: Iterable[Service], owner: str) -> None:
    """Raise InvalidError for a check that runs a command, unless it is in the file.

    Whoever may change services, by the API's socket for one, may not run programs as the agent.
    """
    if owner == FILE:
        return
    for service in services:
        if service.health and service.health.type is CheckType.COMMAND:
            raise InvalidError(
                [
                    Problem(
                        f"command of service {service.name!r} can't be set through"
                        f" {origin(owner).label}; allowed: in the configuration file",
                        "health.type",
                    )
                ]
            )
