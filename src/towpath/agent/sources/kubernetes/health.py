# SPDX-License-Identifier: Apache-2.0
"""``healthCheckNodePort``: tells load balancers whether this node has endpoints of a Service."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import TYPE_CHECKING

from towpath.core.kubernetes.problems import Refusal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aiohttp import web

    from towpath.core.kubernetes.translate import Health
    from towpath.model.kinds import Address

log = logging.getLogger(__name__)


class HealthPorts:
    """Answers on each port, at the node's addresses that have node ports."""

    def __init__(self) -> None:
        self._known: Mapping[int, Health] = {}
        self._at: tuple[Address, ...] = ()
        self._busy = asyncio.Lock()
        self._servers: dict[tuple[int, str], asyncio.Server] = {}
        self._failed: dict[tuple[int, str], str] = {}

    async def serve(self, known: Mapping[int, Health], at: tuple[Address, ...]) -> None:
        """Answer for these Services, and no others."""
        self._known, self._at = known, at
        await self.again()

    async def again(self) -> None:
        """Listen where it should be: also where somebody else was."""
        async with self._busy:
            await self._follow()

    async def _follow(self) -> None:
        known, at = self._known, self._at
        wanted = {(port, str(address)) for port in known for address in at}
        for key in self._servers.keys() - wanted:
            self._servers.pop(key).close()
        self._failed = {key: why for key, why in self._failed.items() if key in wanted}
        for key in sorted(wanted - self._servers.keys()):
            await self._listen(key)

    def refusals(self) -> list[Refusal]:
        """Ports that can't be answered."""
        return [
            Refusal(
                "Service",
                found.namespace,
                found.name,
                "HealthCheckPortInUse",
                f"healthCheckNodePort {port} isn't answered at {address}: {why}",
            )
            for (port, address), why in sorted(self._failed.items())
            if (found := self._known.get(port))
        ]

    async def _listen(self, key: tuple[int, str]) -> None:
        from aiohttp import web  # noqa: PLC0415 - a server takes 2 MiB, and few nodes have such ports

        port, address = key

        async def answer(_: web.BaseRequest) -> web.StreamResponse:
            return self.answer(port, 6 if ":" in address else 4)

        try:
            server = await asyncio.get_running_loop().create_server(
                web.Server(answer, access_log=None), address, port
            )
        except OSError as error:
            if self._failed.get(key) != str(error):
                log.warning("healthCheckNodePort %d at %s: %s", port, address, error)
            self._failed[key] = str(error)
        else:
            self._failed.pop(key, None)
            self._servers[key] = server

    def answer(self, port: int, family: int) -> web.Response:
        """200 with endpoints of this node in that family, 503 without."""
        from aiohttp import web  # noqa: PLC0415 - as above

        found = self._known.get(port)
        local = found.local.get(family, 0) if found else 0
        body = {
            "service": {
                "namespace": found.namespace if found else "",
                "name": found.name if found else "",
            },
            "localEndpoints": local,
            "serviceProxyHealthy": True,
        }
        return web.Response(
            body=json.dumps(body).encode(),
            status=200 if local else 503,
            headers={
                "X-Load-Balancing-Endpoint-Weight": str(local),
                "X-Content-Type-Options": "nosniff",
            },
            content_type="application/json",
        )

    async def close(self) -> None:
        """Answer no more."""
        servers, self._servers = self._servers, {}
        for server in servers.values():
            server.close()
