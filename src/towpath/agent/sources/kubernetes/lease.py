# SPDX-License-Identifier: Apache-2.0
"""One of several agents leads: whoever holds a Lease of coordination.k8s.io.

As client-go does it, with its times. No two clocks are compared: a Lease is over when nobody has
renewed it for as long as it says, by the clock of who waits. Its holder stops before that, by its
own clock, counted from before it asked. So clocks may differ, unless one runs half as fast again as
the other.

========================  ==========================================================================
what is seen              what follows
========================  ==========================================================================
no Lease                  it is made; of two that make it one is refused
it is free                it is taken; versions decide between two
another's, and renewed    it is asked for again 2 s later
another's, for 15 s       it is taken
ours                      it is renewed each 2 s; 10 s after the last time we don't lead any more
========================  ==========================================================================
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
import uuid
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from towpath.agent.errors import AgentError
from towpath.agent.sources.kubernetes.client import ApiError
from towpath.agent.sources.kubernetes.history import number
from towpath.model.sources.kubernetes import objects

if TYPE_CHECKING:
    from collections.abc import Callable

    from towpath.agent.sources.kubernetes.client import Api

log = logging.getLogger(__name__)

LEASE_SECONDS = 15
RENEW_SECONDS = 10.0
"""So long after it was renewed a Lease is believed to be ours."""
RETRY_SECONDS = 2.0
WRITE_SECONDS = 4.0
"""What a leader writes has so much time: less than is left when it stops."""
_LONGEST_SECONDS = 60
"""A Lease that says more, whoever has written it, is over then all the same."""
_MISSING, _CONFLICT = 404, 409


class Election:
    """Stands for election for as long as `run` runs."""

    def __init__(
        self,
        path: str,
        node: str,
        changed: Callable[[], None],
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._namespace, self._name = path.split("/")
        self._changed, self._clock = changed, clock or _clock
        # Not the node's name alone: an agent that starts again isn't the one that had the Lease.
        self.identity = f"{node}_{uuid.uuid4()}"
        self.term = 0
        """How often it has come to lead."""
        self.trouble: str | None = None
        self.went_back: Callable[[], None] = lambda: None
        """Called when the Lease is an older one than before."""
        self._until = float("-inf")
        self._lease: objects.Lease | None = None
        self._seen_at = 0.0
        """When the Lease was first seen as it is."""

    @property
    def leads(self) -> bool:
        """Whether nobody else can lead just now."""
        return self._clock() < self._until

    @property
    def leader(self) -> str | None:
        """The node whose agent leads, as far as is known."""
        holder = self._lease.spec.holder_identity if self._lease else None
        return holder.rpartition("_")[0] or holder if holder else None

    async def run(self, api: Api) -> None:
        """Stand until cancelled; then let go."""
        try:
            while True:
                await self.attempt(api)
                await asyncio.sleep(RETRY_SECONDS * random.uniform(0.9, 1.1))  # noqa: S311
        finally:
            await self._release(api)

    async def attempt(self, api: Api) -> None:
        """Take the Lease or renew it, if that can be."""
        led, before = self.leads, self.leader
        try:
            await self._acquire_or_renew(api)
        except AgentError as error:
            # Of several that write at once one has its way, and the others see whose it is.
            if not _is_conflict(error):
                if self.trouble is None:
                    log.warning("Kubernetes: Lease %s/%s: %s", self._namespace, self._name, error)
                self.trouble = f"Lease {self._namespace}/{self._name}: {error}"
        else:
            self.trouble = None
        if (self.leads, self.leader) != (led, before):
            self._changed()

    @property
    def _path(self) -> str:
        return f"/apis/coordination.k8s.io/v1/namespaces/{self._namespace}/leases"

    async def _acquire_or_renew(self, api: Api) -> None:
        if self.leads:
            try:
                await self._write(api)
            except AgentError as error:
                if not _is_conflict(error):
                    raise
            else:
                return
        try:
            body = await api.get(f"{self._path}/{self._name}", seconds=WRITE_SECONDS)
        except ApiError as error:
            if error.code != _MISSING:
                raise
            self._until, self._lease = float("-inf"), None
        else:
            self._see(_decoded(body))
            if not self._may_take():
                self._until = float("-inf")
                return
        await self._write(api)

    async def _write(self, api: Api) -> None:
        """Make the Lease, take it or renew it."""
        begun, led = self._clock(), self.leads
        wanted = self._wanted(self._lease)
        if self._lease is None:
            body = await api.post(self._path, wanted, WRITE_SECONDS)
        else:
            body = await api.put(f"{self._path}/{self._name}", wanted, WRITE_SECONDS)
        self._see(_decoded(body))
        if not led:
            self.term += 1
            log.info("Kubernetes: this agent leads: %s/%s", self._namespace, self._name)
        self._until = begun + RENEW_SECONDS

    def _see(self, lease: objects.Lease) -> None:
        before = self._lease.metadata.resource_version if self._lease else None
        if before != lease.metadata.resource_version:
            self._seen_at = self._clock()
        if before and number(lease.metadata.resource_version) < number(before):
            self.went_back()
        self._lease = lease

    def _may_take(self) -> bool:
        assert self._lease is not None  # noqa: S101 - it was just read
        spec = self._lease.spec
        if not spec.holder_identity or spec.holder_identity == self.identity:
            return True
        seconds = min(spec.lease_duration_seconds or LEASE_SECONDS, _LONGEST_SECONDS)
        return self._clock() - self._seen_at > seconds

    def _wanted(self, before: objects.Lease | None) -> dict[str, Any]:
        now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        spec = before.spec if before else objects.LeaseSpec()
        is_mine = spec.holder_identity == self.identity
        times = spec.lease_transitions or 0
        wanted: dict[str, Any] = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": self._name, "namespace": self._namespace},
            "spec": {
                "holderIdentity": self.identity,
                "leaseDurationSeconds": LEASE_SECONDS,
                "acquireTime": spec.acquire_time if is_mine else now,
                "renewTime": now,
                "leaseTransitions": times + (before is not None and not is_mine),
            },
        }
        if before is not None:
            wanted["metadata"]["resourceVersion"] = before.metadata.resource_version
        return wanted

    async def _release(self, api: Api) -> None:
        """Let another lead at once."""
        if not self.leads or self._lease is None:
            return
        self._until = float("-inf")
        wanted = self._wanted(self._lease)
        wanted["spec"] |= {"holderIdentity": "", "leaseDurationSeconds": 1}
        with suppress(AgentError):
            await api.put(f"{self._path}/{self._name}", wanted, 1.0)


def _decoded(body: bytes) -> objects.Lease:
    try:
        return msgspec.json.decode(body, type=objects.Lease)
    except msgspec.MsgspecError as error:
        raise ApiError(f"what the API server sends makes no sense: {error}") from error


def _is_conflict(error: AgentError) -> bool:
    return isinstance(error, ApiError) and error.code == _CONFLICT


def _clock() -> float:
    """Counts what a machine that is suspended sleeps, too."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
