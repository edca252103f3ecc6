# SPDX-License-Identifier: Apache-2.0
"""Puts together what is told of a cluster, and hands in the services that it amounts to."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any

from towpath.agent.errors import ConflictError
from towpath.agent.sources.kubernetes import report
from towpath.agent.sources.kubernetes.access import AccessError, find_place
from towpath.agent.sources.kubernetes.attempts import Attempts
from towpath.agent.sources.kubernetes.client import Api
from towpath.agent.sources.kubernetes.events import Events
from towpath.agent.sources.kubernetes.health import HealthPorts
from towpath.agent.sources.kubernetes.identity import Identity
from towpath.agent.sources.kubernetes.lateness import Lateness
from towpath.agent.sources.kubernetes.nodes import NodeFeed
from towpath.agent.sources.kubernetes.pods import PodLimits
from towpath.agent.sources.kubernetes.pools import AddressPools
from towpath.agent.sources.kubernetes.ports import HeldPorts
from towpath.agent.sources.kubernetes.settings import resources, settings_of
from towpath.agent.sources.kubernetes.takeover import taking_over, without_wait
from towpath.agent.sources.kubernetes.truth import Truth
from towpath.agent.sources.kubernetes.watch import Reflector
from towpath.core.kubernetes.cluster import Changed, Cluster
from towpath.core.kubernetes.withheld import Loss, find_loss, joined, keep_unread
from towpath.model import Problem

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from prometheus_client.core import Metric

    from towpath.agent.sources.intake import Intake, Update
    from towpath.core.kubernetes.problems import Refusal
    from towpath.model import Service
    from towpath.model.kinds import Address
    from towpath.model.sources.kubernetes import Section, objects

log = logging.getLogger(__name__)

AGAIN_SECONDS = 1.0
"""Between two looks at whether what was refused may fit now."""
_RESTART_SECONDS = 5.0
PORTS_SECONDS = 10.0
"""Between two looks at which ports processes of this node have."""


class Source:
    """Follows a cluster. Everything but `facts`, `trouble` and `metrics` is the event loop's."""

    def __init__(self, section: Section, intake: Intake[Update]) -> None:
        assert intake.given is not None  # noqa: S101 - of the agent
        self._section, self._intake = section, intake
        self._given = intake.given
        self._owned = intake.given.owned
        self._settings = settings_of(section, intake.given.config)
        self._identity = Identity(intake.given.config.state.directory / "kubernetes.json")
        self._fault: str | None = "not connected yet"
        self.reflectors: tuple[Reflector, ...] = ()
        self.pods: PodLimits | None = None
        self.pools: AddressPools | None = None
        self.truth = Truth((), self._list_anew)
        self._begin(())

    def _begin(self, in_force: Iterable[Service]) -> None:
        self.cluster = Cluster(self._settings)
        self._nodes = NodeFeed(self._section, self._settings.node, self._given)
        self._attempts = Attempts(self._intake, self._section.grow_to, self.cluster, in_force)
        self.cluster.restore(self._attempts.in_force.values())
        self._wake = asyncio.Event()
        self._begun = time.monotonic()
        self._first = True
        self._listed = False
        self._accepting = False
        self._awaited: set[Any] = set()
        """Kinds of another cluster that was accepted."""
        self.unread: dict[tuple[str, str, str], Refusal] = {}
        self.loss: Loss | None = None
        self.withheld: set[str] = set()
        self.unserved: tuple[Refusal, ...] = ()
        self.lateness = Lateness()
        self._refused_as_of = 0
        self._others: tuple[Refusal, ...] = ()
        """What isn't served for other reasons than objects have."""
        self._held = HeldPorts()

    async def run(self) -> None:
        """Hand in what the cluster has, then whatever changes, until cancelled."""
        while True:
            try:
                place = find_place(self._section)
                break
            except AccessError as error:
                if self._fault != str(error):
                    log.warning("%s", error)
                self._fault = str(error)
                await asyncio.sleep(_RESTART_SECONDS)
        self._begin(self._owned())
        async with Api(place) as api:
            self._api = api
            self.reflectors = tuple(
                Reflector(api, resource, self) for resource in resources(self._section)
            )
            # The kubelet writes it whatever else happens.
            self.reflectors[2].history.pinned["", self._settings.node] = None
            self.truth = Truth(self.reflectors, self._list_anew)
            self._fault = None
            self._events = Events(api, self._settings.node) if self._section.events else None
            self._ports = HealthPorts() if self._section.health_checks else None
            self.pods = self._pod_limits()
            self.pools = self._address_pools()
            try:
                async with asyncio.TaskGroup() as group:
                    for each in self.reflectors:
                        group.create_task(each.run())
                    group.create_task(self._publish())
                    group.create_task(self._look_at_ports())
                    group.create_task(self.truth.run(api))
                    if self._events is not None:
                        group.create_task(self._events.run())
                    if self.pods is not None:
                        group.create_task(self.pods.run(api))
                    if self.pools is not None:
                        group.create_task(self.pools.run(api))
            finally:
                if self._ports is not None:
                    await self._ports.close()

    def _pod_limits(self) -> PodLimits | None:
        limits = self._given.shared.limits
        if not self._section.pod_limits or limits is None:
            return None
        node, events = self._settings.node, self._events
        made = PodLimits(self._section, node, self._given, limits, self.is_same_cluster)
        if events is not None:
            made.tell = events.tell
        return made

    def _address_pools(self) -> AddressPools | None:
        if self._section.pools is None:
            return None
        node, services = self._settings.node, self.reflectors[0]
        made = AddressPools(self._section, node, services, self.is_same_cluster, self._is_believed)
        if self._events is not None:
            made.tell = self._events.tell
        made.election.went_back = self.truth.hurry
        return made

    def _is_believed(self) -> bool:
        """Whether what is known is what the cluster has, as far as can be told."""
        doubts = self._listed or self.withheld or self._awaited or self._identity.trouble
        doubts = doubts or self.truth.trouble
        return not doubts and all(each.synced for each in self.reflectors)

    # ---- What is told ----------------------------------------------------------------------------

    async def is_same_cluster(self) -> None:
        """Raise AgentError if the API server is another cluster's than what is in force."""
        await self._identity.check(self._api)

    def put(self, found: objects.Kind) -> None:
        """An object was added or changed."""
        self.cluster.put(found)
        if self.pools is not None:
            self.pools.put_object(found)
        if self.unread:
            self._read(type(found), found.metadata.namespace, found.metadata.name)
        self._told()

    def remove(self, kind: Any, namespace: str, name: str) -> None:
        """An object is gone."""
        self.cluster.remove(kind, namespace, name)
        if self.pools is not None:
            self.pools.remove_object(kind, namespace, name)
        self._read(kind, namespace, name)
        self._told()

    def replace(self, kind: Any, found: list[Any], unread: set[tuple[str, str]]) -> None:
        """These are all the objects of a kind; those that can't be read stay."""
        for key in [key for key in self.unread if key[0] == kind.__name__]:
            if key[1:] not in unread:
                del self.unread[key]
        self.cluster.replace(kind, found, keep=unread)
        if self.pools is not None:
            self.pools.replace_objects(kind, found, unread)
        self._listed = True
        self._nodes.listed = True
        if self._awaited:
            self._awaited.discard(kind)
            self._accepting = not self._awaited
        self._told()

    def cannot_read(self, refusal: Refusal) -> None:
        """An object can't be decoded: it stays as it was."""
        self.unread[refusal.kind, refusal.namespace, refusal.name] = refusal
        log.warning("%s", refusal)
        self._told()

    def _read(self, kind: Any, namespace: str, name: str) -> None:
        self.unread.pop((kind.__name__, namespace, name), None)

    def _told(self) -> None:
        self.lateness.told()
        self._wake.set()

    def pod(self, service: str, backend: Address) -> str | None:
        """Return what the pod is called that a backend of a service is. For any thread."""
        namespace, _, rest = service.partition(":")
        return self.cluster.pod((namespace, rest.partition(":")[0]), backend)

    # ---- What is handed in -----------------------------------------------------------------------

    async def _publish(self) -> None:
        """Hand in what has changed; what changes meanwhile, or rests, is in the next one."""
        rest: float | None = None
        while True:
            try:
                # wait_for() of Python 3.11 may lose that it is cancelled.
                async with asyncio.timeout(AGAIN_SECONDS if rest is None else rest):
                    await self._wake.wait()
            except TimeoutError:
                again = self._attempts.refused and self._intake.may_fit_now()
                if rest is None and not (again or self.cluster.forget(time.monotonic())):
                    continue
            self._wake.clear()
            rest = None
            if self._awaited or not all(each.synced for each in self.reflectors):
                continue
            if not self._takes_all and (rest := self.cluster.next_due(time.monotonic())):
                continue
            await self._hand_in()
            self.cluster.in_force(time.monotonic())
            rest = self.cluster.next_due(time.monotonic())
            if rest is not None:
                self.lateness.told()

    @property
    def _takes_all(self) -> bool:
        """Whether what is there is compared with what is in force: nothing rests then."""
        return self._first or self._listed or self._accepting

    async def _hand_in(self) -> None:
        self.lateness.begin()
        attempts, in_force = self._attempts, self._attempts.in_force
        take = self.cluster.take if self._takes_all else self.cluster.take_due
        changed = take(time.monotonic())
        put = {each.name: each for each in changed.put}
        remove = set(changed.remove)
        if self._first:
            remove |= in_force.keys() - put.keys()
            keep_unread(in_force, put, remove, self.unread)
        if self._accepting:
            put, remove = self._everything()
        elif attempts.refused and self._intake.may_fit_now():
            put |= attempts.refused_now()
        remove |= self._gone_since(changed)
        self._keep_back(put, remove)
        put = {name: each for name, each in put.items() if in_force.get(name) != each}
        remove &= in_force.keys()
        attempts.forget_refused({*changed.remove, *put, *remove})
        first, self._first = self._first, False
        self._listed = self._accepting = False
        if put or remove or attempts.refused or first:
            # With a name Services are handed over one by one.
            more = self._section.service_proxy_name is not None and put.keys() - in_force.keys()
            if more and not first:
                at_once, put = without_wait(put)
                await attempts.make(at_once, ())
            if not attempts.growing:
                tracking = self._given.shared.tracking
                async with taking_over(tracking, first=first, more=bool(more)):
                    await attempts.make(put, remove)
            if attempts.growing:
                return
            self._intake.settle(tuple(attempts.refused.values()))
        elif self._intake.status.accepted is None:
            self._intake.settle(())
        self.lateness.done()
        await self._tell(changed)
        if first:
            seconds = time.monotonic() - self._begun
            number = len(in_force)
            log.info("Kubernetes: %d services first taken over in %.2f s", number, seconds)

    def _everything(self) -> tuple[dict[str, Service], set[str]]:
        wanted = self.cluster.services()
        self.withheld, self.loss = set(), None
        return wanted, self._attempts.in_force.keys() - wanted.keys()

    def _gone_since(self, changed: Changed) -> set[str]:
        """What is withheld of Services that came and went between two looks."""
        if not self.withheld or self._listed:
            return set()
        gone = self.withheld - self.cluster.services().keys()
        return {name for name in gone if tuple(name.split(":")[:2]) in changed.names}

    def _keep_back(self, put: dict[str, Service], remove: set[str]) -> None:
        """Take out what a list that isn't believed would remove."""
        if not (self._first or self._listed):
            # A watch has said so: it is known to have changed.
            self.withheld -= put.keys() | remove
        else:
            loss, losers = find_loss(self._attempts.in_force, put.values(), remove)
            if not self._accepting and loss.is_large(self._section.lost_share):
                log.error("Kubernetes: a list lacks %s; they stay until this is accepted", loss)
                self.withheld |= losers
                self.loss = loss
            else:
                self.withheld -= put.keys()
            for name in self.withheld & losers:
                remove.discard(name)
                if name in put:
                    put[name] = joined(self._attempts.in_force[name], put[name])
        if not self.withheld:
            self.loss = None

    async def _tell(self, changed: Changed) -> None:
        """Events and health-check ports, by what is in force now."""
        if self._ports is not None:
            await self._ports.serve(self.cluster.health(), self.cluster.here.node_ports)
        await self._nodes.hand_on(self.cluster.nodes())
        others = (*self.unread.values(), *self._of_ports(), *self._attempts.not_in_force())
        if self._refused_as_of != self.cluster.refused or others != self._others:
            self._refused_as_of, self._others = self.cluster.refused, others
            self.unserved = (*self.cluster.refusals(), *others)
        if self._events is not None:
            self._events.tell((*self.cluster.refusals_of(changed.names), *others))

    def _of_ports(self) -> tuple[Refusal, ...]:
        """Node ports that processes hold, health-check ports that can't be answered."""
        return (*self._held.refusals, *(self._ports.refusals() if self._ports else ()))

    async def _look_at_ports(self) -> None:
        """See now and then who has which port of this node's: nobody tells."""
        while True:
            await asyncio.sleep(PORTS_SECONDS)
            before = self._of_ports()
            if self._ports is not None:
                await self._ports.again()
            self._held.look(self.cluster.node_ports(), self.cluster.here)
            if self._of_ports() != before:
                await self._tell(Changed((), (), frozenset()))
            if self._events is not None:
                # The API server forgets Events.
                self._events.tell(self.unserved)

    # ---- What it says of itself ------------------------------------------------------------------

    async def accept(self) -> None:
        """Believe what the cluster has now, whatever it lacks. ConflictError: nothing is kept."""
        if self._identity.is_another:
            log.warning("Kubernetes: the other cluster is accepted")
            self._identity.accept()
            # Nothing is handed in before all of it is known.
            self._awaited = {each.resource.kind for each in self.reflectors}
            self._nodes.accepting = True
            self._list_anew()
        elif self.withheld or self._nodes.withholds:
            log.warning("Kubernetes: accepted: a list that lacks %s", self.loss or "Nodes")
            self._accepting = self._nodes.accepting = True
            self._wake.set()
        else:
            what = "nothing is withheld: all that Kubernetes has is in force"
            raise ConflictError([Problem(what)])

    def _list_anew(self) -> None:
        """Take over all there is now, whatever its version."""
        for each in (*self.reflectors, self.pods, self.pools):
            if each is not None:
                each.list_anew()

    @property
    def trouble(self) -> str | None:
        """Why it can't be followed just now, or isn't believed; None when all is well."""
        return "; ".join(self._troubles()) or None

    def _troubles(self) -> Iterator[str]:
        if self._fault:
            yield self._fault
        if self._identity.trouble:
            yield self._identity.trouble
        if self.truth.trouble:
            yield self.truth.trouble
        yield from report.troubles(self.reflectors)
        if self._attempts.no_room:
            yield self._attempts.no_room
        yield from self._nodes.troubles()
        if self.pods is not None:
            yield from report.troubles(self.pods.reflectors)
            yield from self.pods.troubles()
        if self.pools is not None:
            yield from report.troubles(self.pools.reflectors)
            yield from self.pools.troubles()
        if self.withheld and self.loss:
            yield (
                f"a list lacks {self.loss}, which stay as they were; `towpath source accept"
                " kubernetes` takes it over"
            )

    def facts(self) -> dict[str, Any]:
        """Fields of documents.SourceStatus that are its own."""
        return report.facts(self)

    def metrics(self) -> Sequence[Metric]:
        """What is known of what, and how old it is."""
        return tuple(report.metrics(self))
