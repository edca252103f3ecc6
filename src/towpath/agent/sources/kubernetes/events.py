# SPDX-License-Identifier: Apache-2.0
"""Events on objects that can't be served as they are.

Their names follow from what they say, so that all nodes' agents together write each once. The API
server forgets them after an hour; what still holds then is said again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from datetime import UTC, datetime
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from towpath.agent.errors import AgentError
from towpath.agent.sources.kubernetes.client import ApiError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from towpath.agent.sources.kubernetes.client import Api
    from towpath.core.kubernetes.problems import Refusal

log = logging.getLogger(__name__)

SECONDS = 1.0
"""Between two Events, but for the first ones."""
BURST = 10
AGAIN_SECONDS = 3600.0
_MOST = 1000
"""That wait; what comes beyond is in the status only."""
_CONFLICT, _FORBIDDEN = 409, 403


class Events:
    """Writes Events, a few at a time."""

    def __init__(self, api: Api, node: str) -> None:
        self._api, self._node = api, node
        self._told: dict[Refusal, float] = {}
        self._waiting: deque[Refusal] = deque()
        self._wake = asyncio.Event()
        self._forbidden = False

    def tell(self, refusals: Iterable[Refusal]) -> None:
        """Have these written, but for those that were written not long ago."""
        now = time.monotonic()
        for each in refusals:
            if now - self._told.get(each, -AGAIN_SECONDS) < AGAIN_SECONDS:
                continue
            if len(self._waiting) < _MOST:
                self._told[each] = now
                self._waiting.append(each)
                self._wake.set()

    async def run(self) -> None:
        """Write until cancelled."""
        allowance, at = float(BURST), time.monotonic()
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                now = time.monotonic()
                allowance, at = min(BURST, allowance + (now - at) / SECONDS), now
                if allowance < 1:
                    await asyncio.sleep((1 - allowance) * SECONDS)
                    continue
                allowance -= 1
                await self._write(self._waiting.popleft())
            self._told = {
                each: then
                for each, then in self._told.items()
                if time.monotonic() - then < AGAIN_SECONDS
            }

    async def _write(self, refusal: Refusal) -> None:
        namespace = refusal.namespace or "default"
        try:
            await self._api.post(
                f"/api/v1/namespaces/{namespace}/events", self._event(refusal, namespace)
            )
        except ApiError as error:
            if error.code == _FORBIDDEN and not self._forbidden:
                self._forbidden = True
                log.warning("Kubernetes: may not write Events: %s", error)
            elif error.code not in {_CONFLICT, _FORBIDDEN}:
                log.info("Kubernetes: an Event could not be written: %s", error)
        except AgentError as error:
            log.info("Kubernetes: an Event could not be written: %s", error)

    def _event(self, refusal: Refusal, namespace: str) -> dict[str, Any]:
        now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        hashed = blake2b("\0".join(refusal).encode(), digest_size=8).hexdigest()
        group = "discovery.k8s.io/v1" if refusal.kind == "EndpointSlice" else "v1"
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": f"{refusal.name[:230]}.{hashed}", "namespace": namespace},
            "involvedObject": {
                "apiVersion": group,
                "kind": refusal.kind,
                "namespace": refusal.namespace,
                "name": refusal.name,
            },
            "reason": refusal.reason,
            "message": refusal.message[:1000],
            "type": "Warning",
            "source": {"component": "towpath", "host": self._node},
            "reportingComponent": "towpath",
            "reportingInstance": self._node,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }
