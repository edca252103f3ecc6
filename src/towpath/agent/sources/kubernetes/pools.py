# SPDX-License-Identifier: Apache-2.0
"""Gives addresses of pools to Services: one agent of the cluster does, and writes their status.

Each agent knows the pools and who has what; the one that leads decides and writes. It does so when
it has seen all Services as they are by consensus since it came to lead: what the one before has
written last is in there. A status is written for the version of the Service that was looked at, and
for no other. Should an address have been given twice all the same, by an agent that was stopped in
the middle of it, the younger Service gets another one.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from towpath.agent.errors import AgentError
from towpath.agent.sources.kubernetes.client import ApiError
from towpath.agent.sources.kubernetes.lease import WRITE_SECONDS, Election
from towpath.agent.sources.kubernetes.watch import Reflector, Resource
from towpath.core.kubernetes.addresses import read_address
from towpath.core.kubernetes.claims import CONDITION, read
from towpath.core.kubernetes.pools import Pools
from towpath.core.kubernetes.problems import Refusal
from towpath.model import ConfigError
from towpath.model.sources.kubernetes import objects
from towpath.model.sources.kubernetes.pools import KEY, parse_pools

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator

    from towpath.agent.sources.kubernetes.client import Api
    from towpath.core.kubernetes.pools import Decision
    from towpath.model.kinds import Address
    from towpath.model.sources.kubernetes import Section

log = logging.getLogger(__name__)

AT_ONCE = 8
"""Statuses that are written beside each other."""
AGAIN_SECONDS = 1.0
"""After so long what could not be written is tried again."""
_MISSING, _CONFLICT = 404, 409


class AddressPools:
    """Follows the ConfigMap and stands for election until it is cancelled.

    ``check`` raises if it isn't the same cluster any more; ``believed`` says whether what is known
    of Services is what the cluster has.
    """

    def __init__(
        self,
        section: Section,
        node: str,
        services: Reflector,
        check: Callable[[], Awaitable[None]],
        believed: Callable[[], bool],
    ) -> None:
        assert section.pools is not None  # noqa: S101 - what this is for
        self._section, self._services = section, services
        self._path = section.pools
        self._check, self._believed = check, believed
        self._wake = asyncio.Event()
        self.election = Election(self._path, node, self._wake.set)
        self.pools = Pools()
        self.tell: Callable[[Iterable[Refusal]], None] = lambda _: None
        self.reflectors: tuple[Reflector, ...] = ()
        self._known = False
        """Whether pools are known: before nothing is given, and nothing is taken away."""
        self.is_there = False
        """Whether there is the ConfigMap."""
        self._wrong: Refusal | None = None
        self._fault: str | None = None
        self._term = 0
        """For which all is known as it was then, or is later."""
        self._written: dict[tuple[str, str], int] = {}
        """Versions that were written here: what watches tell of before is older."""
        self._reserved: dict[str, tuple[Address, ...]] = {}

    async def run(self, api: Api) -> None:
        """Follow until cancelled."""
        namespace, name = self._path.split("/")
        path = f"/api/v1/namespaces/{namespace}/configmaps"
        fields = f"metadata.name={name}"
        resource = Resource(objects.ConfigMap, path, "configmaps", fields=fields)
        self.reflectors = (Reflector(api, resource, self),)
        async with asyncio.TaskGroup() as group:
            for each in self.reflectors:
                group.create_task(each.run())
            group.create_task(self.election.run(api))
            group.create_task(self._work(api))

    # ---- What is told of the ConfigMap -----------------------------------------------------------

    async def is_same_cluster(self) -> None:
        """Raise AgentError if the API server is another cluster's than what is in force."""
        await self._check()

    def put(self, found: objects.ConfigMap) -> None:
        """These are the pools now, if they make sense; if not, they are what they were."""
        meta, self.is_there = found.metadata, True
        try:
            text = (found.data or {})[KEY]
            pools = parse_pools(text, KEY)
        except KeyError:
            self._refuse(meta, f"has no key {KEY}")
        except ConfigError as error:
            self._refuse(meta, str(error))
        else:
            self._wrong = None
            self._known = True
            self.pools.configure(pools)
            log.info("Kubernetes: pools of addresses: %s", ", ".join(p.name for p in pools))
        self._wake.set()

    def _refuse(self, meta: objects.Meta, why: str) -> None:
        what = f"pools stay as they were: {why}"
        self._wrong = Refusal("ConfigMap", meta.namespace, meta.name, "InvalidPools", what)
        log.warning("%s", self._wrong)
        self.tell((self._wrong,))

    def remove(self, kind: Any, namespace: str, name: str) -> None:
        """The ConfigMap is gone: nothing is given until there is one again."""
        del kind
        self._known = self.is_there = False
        what = "is missing: no addresses are given, and Services keep theirs"
        self._wrong = Refusal("ConfigMap", namespace, name, "NoPools", what)
        log.warning("%s", self._wrong)

    def replace(self, kind: Any, found: list[Any], unread: set[tuple[str, str]]) -> None:
        """There is one ConfigMap, or none."""
        for each in found:
            self.put(each)
        if not found and not unread:
            self.remove(kind, *self._path.split("/"))

    def cannot_read(self, refusal: Refusal) -> None:
        """It can't be decoded: pools are what they were."""
        self._wrong = refusal

    # ---- What is told of Services and Nodes ------------------------------------------------------

    def put_object(self, found: objects.Kind) -> None:
        """An object was added or changed."""
        if isinstance(found, objects.Service):
            self._put_service(found)
        elif isinstance(found, objects.Node):
            self._reserve(found.metadata.name, tuple(_addresses(found)))

    def remove_object(self, kind: Any, namespace: str, name: str) -> None:
        """An object is gone, and an address of it free."""
        if kind is objects.Service:
            self._written.pop((namespace, name), None)
            self.pools.remove((namespace, name))
            self._wake.set()
        elif kind is objects.Node:
            self._reserve(name, ())

    def replace_objects(self, kind: Any, found: list[Any], unread: set[tuple[str, str]]) -> None:
        """These are all objects of a kind, and those that can't be read stay as they were."""
        if kind is objects.Service:
            self._written.clear()
            claims = (read(each, self._section) for each in found)
            self.pools.replace((each for each in claims if each is not None), unread)
            self._wake.set()
        elif kind is objects.Node:
            nodes = {each.metadata.name: tuple(_addresses(each)) for each in found}
            for name in self._reserved.keys() - nodes.keys() - {each for _, each in unread}:
                self._reserve(name, ())
            for name, addresses in nodes.items():
                self._reserve(name, addresses)

    def _put_service(self, found: objects.Service) -> None:
        name = (found.metadata.namespace, found.metadata.name)
        written = self._written.get(name)
        if written is not None:
            if _number(found.metadata.resource_version) < written:
                return
            del self._written[name]
        claim = read(found, self._section)
        if claim is None:
            self.pools.remove(name)
        else:
            self.pools.put(claim)
        self._wake.set()

    def _reserve(self, node: str, addresses: tuple[Address, ...]) -> None:
        if self._reserved.get(node, ()) == addresses:
            return
        if addresses:
            self._reserved[node] = addresses
        else:
            del self._reserved[node]
        self.pools.reserve(each for found in self._reserved.values() for each in found)
        self._wake.set()

    # ---- What is written -------------------------------------------------------------------------

    async def _work(self, api: Api) -> None:
        while True:
            # wait_for() of Python 3.11 may lose that it is cancelled.
            with suppress(TimeoutError):
                async with asyncio.timeout(AGAIN_SECONDS):
                    await self._wake.wait()
            self._wake.clear()
            if not self.election.leads:
                if self._term:
                    # What was decided and not written is another's to decide.
                    self._term = 0
                    self.pools.begin()
                continue
            try:
                await self._lead(api)
            except AgentError as error:
                self._note(str(error))

    async def _lead(self, api: Api) -> None:
        term = self.election.term
        if self._term != term and not await self._look(term):
            return
        while self.pools.undecided and self._may_write(term):
            found = self.pools.decisions()
            if not found:
                continue
            places = asyncio.Semaphore(AT_ONCE)
            done = await asyncio.gather(*(self._write(api, each, places, term) for each in found))
            if not all(done):
                # What is there now is about to be told.
                await asyncio.sleep(AGAIN_SECONDS / 10)
                return
            self._note(None)

    def _may_write(self, term: int) -> bool:
        election = self.election
        return election.leads and election.term == term and self._known and self._believed()

    async def _look(self, term: int) -> bool:
        """Have all Services known as they are now, by consensus, and pools too."""
        followed = (self._services, *self.reflectors)
        lists = [each.lists for each in followed]
        for each in followed:
            # Not by a version: the server's memory is up to 5 s late to know that it has one.
            each.list_anew()
        while any(each.lists == before for each, before in zip(followed, lists, strict=True)):
            if not self.election.leads or self.election.term != term:
                return False
            self._wake.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(AGAIN_SECONDS):
                    await self._wake.wait()
        self.pools.begin()
        self._term = term
        return True

    async def _write(
        self, api: Api, decision: Decision, places: asyncio.Semaphore, term: int
    ) -> bool:
        """Write a Service's status; False: it is to be decided again."""
        name = decision.claim.name
        async with places:
            if not self._may_write(term):
                self.pools.again(name)
                return False
            path = f"/api/v1/namespaces/{name[0]}/services/{name[1]}/status?fieldManager=towpath"
            try:
                body = await api.patch(path, _patch(decision), WRITE_SECONDS)
                found = msgspec.json.decode(body, type=objects.Service)
            except (AgentError, msgspec.MsgspecError) as error:
                self.pools.again(name)
                code = error.code if isinstance(error, ApiError) else -1
                if code not in {_MISSING, _CONFLICT}:
                    self._note(f"status of Service {'/'.join(name)}: {error}")
                return False
        if self.pools.knows(decision.claim):
            self._put_service(found)
            self._written[name] = _number(found.metadata.resource_version)
        # Else something newer was told meanwhile, such as that it is gone.
        self.tell(decision.problems)
        return True

    def _note(self, fault: str | None) -> None:
        if fault is not None and fault != self._fault:
            log.warning("Kubernetes: addresses of pools can't be given: %s", fault)
        self._fault = fault

    # ---- What it says of itself ------------------------------------------------------------------

    def list_anew(self) -> None:
        """Take over all there is now, whatever its version."""
        for each in self.reflectors:
            each.list_anew()

    def refusals(self) -> list[Refusal]:
        """What Services don't get, and what is wrong with pools."""
        wrong = [self._wrong] if self._wrong else []
        namespace, name = self._path.split("/")
        overlaps = [
            Refusal("ConfigMap", namespace, name, "PoolsOverlap", f"{one} and {other} overlap")
            for one, other in self.pools.overlaps()
        ]
        return [*wrong, *overlaps, *self.pools.refusals()]

    def troubles(self) -> Iterator[str]:
        """What keeps it from its work."""
        if self._fault and self.election.leads:
            yield f"addresses of pools can't be given: {self._fault}"
        if self.election.trouble:
            yield self.election.trouble


def _patch(decision: Decision) -> dict[str, Any]:
    """Only what is ours: other conditions stay, and nothing is written if another has been."""
    claim, told = decision.claim, decision.told
    status: dict[str, Any] = {"conditions": [{"type": CONDITION, "$patch": "delete"}]}
    if told is not None:
        now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        condition = {
            "type": CONDITION,
            "status": "True" if told.ok else "False",
            "reason": told.reason,
            "message": told.message,
            "lastTransitionTime": now,
        }
        ingress = [{"ip": str(each), "ipMode": "VIP"} for each in decision.addresses]
        status = {"conditions": [condition], "loadBalancer": {"ingress": ingress or None}}
    meta = {"uid": claim.uid, "resourceVersion": claim.version}
    return {"metadata": meta, "status": status}


def _number(version: str) -> int:
    """Versions of one kind can be compared as numbers."""
    return int(version) if version.isdecimal() else 1 << 64


def _addresses(node: objects.Node) -> Iterator[Address]:
    for each in (node.status.addresses if node.status else None) or ():
        try:
            yield read_address(each.address)
        except ValueError:
            continue  # such as a host's name
