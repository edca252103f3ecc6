# SPDX-License-Identifier: Apache-2.0
"""Follows this node's Pods and all Namespaces, and has bandwidth limit what annotations say.

Apart from Services: whatever fails here holds up none of them.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from towpath.agent.errors import REFUSALS
from towpath.agent.sources.kubernetes.sandboxes import Sandboxes
from towpath.agent.sources.kubernetes.watch import Reflector, Resource
from towpath.core.kubernetes.pods import Pods
from towpath.model.sources.kubernetes import objects

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping

    from towpath.agent.parts import Limits
    from towpath.agent.sources.intake import Surroundings
    from towpath.agent.sources.kubernetes.client import Api
    from towpath.core.kubernetes.problems import Refusal
    from towpath.model.bandwidth import Sourced
    from towpath.model.kinds import Address
    from towpath.model.sources.kubernetes import Section

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
"""Between two looks at whether devices of pods that have left are gone."""
AGAIN_SECONDS = 5.0
"""After so long limits that could not be put into force are tried again."""


def resources(node: str) -> tuple[Resource, ...]:
    """The kinds that are followed for limits."""
    return (
        Resource(objects.Pod, "/api/v1/pods", "pods", fields=f"spec.nodeName={node}"),
        Resource(objects.Namespace, "/api/v1/namespaces", "namespaces"),
    )


class PodLimits:
    """Follows them until it is cancelled. ``check`` says whether it is still the same cluster."""

    def __init__(
        self,
        section: Section,
        node: str,
        given: Surroundings,
        limits: Limits,
        check: Callable[[], Awaitable[None]],
    ) -> None:
        self._node, self._given, self._limits, self._check = node, given, limits, check
        self.pods = Pods(limits.sourced.pods)
        self.reflectors: tuple[Reflector, ...] = ()
        self.unread: dict[tuple[str, str, str], Refusal] = {}
        self._sandboxes = Sandboxes(section.cni_results, self._placed)
        self._wake = asyncio.Event()
        self._in_force: Sourced | None = None
        self._fault: str | None = None
        self.tell: Callable[[list[Refusal]], None] = lambda _: None

    async def run(self, api: Api) -> None:
        """Follow until cancelled."""
        self.reflectors = tuple(Reflector(api, each, self) for each in resources(self._node))
        async with asyncio.TaskGroup() as group:
            for each in self.reflectors:
                group.create_task(each.run())
            group.create_task(self._sandboxes.run())
            group.create_task(self._publish())

    # ---- What is told ----------------------------------------------------------------------------

    async def is_same_cluster(self) -> None:
        """Raise AgentError if the API server is another cluster's than what is in force."""
        await self._check()

    def put(self, found: Any) -> None:
        """An object was added or changed."""
        self.unread.pop((type(found).__name__, found.metadata.namespace, found.metadata.name), None)
        self.pods.put(found)
        self._wake.set()

    def remove(self, kind: Any, namespace: str, name: str) -> None:
        """An object is gone."""
        self.unread.pop((kind.__name__, namespace, name), None)
        self.pods.remove(kind, namespace, name)
        self._wake.set()

    def replace(self, kind: Any, found: list[Any], unread: set[tuple[str, str]]) -> None:
        """These are all the objects of a kind; those that can't be read stay."""
        for key in [key for key in self.unread if key[0] == kind.__name__]:
            if key[1:] not in unread:
                del self.unread[key]
        self.pods.replace(kind, found, keep=unread)
        self._wake.set()

    def cannot_read(self, refusal: Refusal) -> None:
        """An object can't be decoded: it stays as it was."""
        self.unread[refusal.kind, refusal.namespace, refusal.name] = refusal
        log.warning("%s", refusal)
        self._wake.set()

    def _placed(self, found: Mapping[str, tuple[Address, ...]]) -> None:
        self.pods.sandboxes(found)
        self._wake.set()

    # ---- What is handed on -----------------------------------------------------------------------

    async def _publish(self) -> None:
        while True:
            if self._fault:
                wait: float | None = AGAIN_SECONDS
            else:
                wait = LOOK_SECONDS if self.pods.leaving else None
            # wait_for() of Python 3.11 may lose that it is cancelled.
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._wake.wait()
            self._wake.clear()
            if not all(each.synced for each in self.reflectors):
                continue
            if self.pods.leaving:
                self.pods.gone(await asyncio.to_thread(self._limits.missing))
            await self._hand_on()

    async def _hand_on(self) -> None:
        wanted = self.pods.wanted()
        self.tell([*self.pods.refusals(), *self.unread.values()])
        if wanted == self._in_force:
            return
        try:
            await self._given.change(self._limits.limit_pods, wanted)
        except (*REFUSALS, OSError) as error:
            text = f"limits of pods could not be put into force, and are tried again: {error}"
            if text != self._fault:
                log.warning("%s", text)
            self._fault = text
            return
        self._in_force, self._fault = wanted, None

    # ---- What it says of itself ------------------------------------------------------------------

    def list_anew(self) -> None:
        """Take over all there is now, whatever its version."""
        for each in self.reflectors:
            each.list_anew()

    def refusals(self) -> list[Refusal]:
        """What of annotations isn't in force."""
        return [*self.pods.refusals(), *tuple(self.unread.values())]

    def troubles(self) -> Iterator[str]:
        """What keeps it from its work."""
        if self._fault:
            yield self._fault

    def notes(self) -> Iterator[str]:
        """What makes limits later than they could be."""
        if self._sandboxes.trouble:
            yield self._sandboxes.trouble
