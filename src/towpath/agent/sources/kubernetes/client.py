# SPDX-License-Identifier: Apache-2.0
"""Speaks HTTP with the API server: one request, or a stream of lines."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Self

import aiohttp
import msgspec

from towpath.agent.errors import AgentError
from towpath.agent.sources.kubernetes.access import Credentials
from towpath.model.sources.kubernetes.objects import ApiStatus

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Mapping
    from types import TracebackType

    from towpath.agent.sources.kubernetes.access import Place

CONNECT_SECONDS = 10.0
SILENCE_SECONDS = 150.0
"""Bookmarks come every minute, the first after two: a connection that is silent for longer is
lost, whoever cut it."""
REQUEST_SECONDS = 90.0
"""The API server itself gives up after 60 s."""
LONGEST_SECONDS = 120.0
"""The API server may ask to be left alone for so long; a proxy in between may say anything."""
_UNAUTHORIZED = 401
_ERRORS = 400


class ApiError(AgentError):
    """The API server refused, or could not be reached.

    ``code`` is 0 if there was no answer.
    """

    def __init__(self, message: str, status: ApiStatus | None = None, after: float = 0.0) -> None:
        super().__init__(message)
        self.status = status or ApiStatus()
        self.after = after
        """So many seconds it wants to be left alone."""

    @property
    def code(self) -> int:
        """As HTTP has it."""
        return self.status.code

    @property
    def too_large(self) -> bool:
        """Whether it hasn't come to the version yet that was asked for, or never will."""
        causes = (self.status.details.causes if self.status.details else None) or ()
        return any(each.reason == "ResourceVersionTooLarge" for each in causes)


def refused(status: ApiStatus, after: float = 0.0) -> ApiError:
    """Return what a Status of the API says as an error."""
    if not after and status.details and status.details.retry_after_seconds:
        after = float(status.details.retry_after_seconds)
    message = status.message or status.reason or "no reason given"
    return ApiError(f"{status.code}: {message}", status, min(after, LONGEST_SECONDS))


class Api:
    """A connection pool to one API server. Use it in ``async with``.

    No proxy or certificate authority is taken from the environment: only what the kubeconfig says.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self.credentials = Credentials(place)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENCE_SECONDS
        )
        self._session = aiohttp.ClientSession(
            timeout=timeout,
            # A stream that begins with the state is compressed piece by piece otherwise, which
            # costs the server more than the network gains.
            headers={"Accept-Encoding": "identity", "User-Agent": "towpath"},
            trust_env=False,
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._session is not None:
            await self._session.close()

    @asynccontextmanager
    async def _request(
        self, method: str, path: str, **options: Any
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Ask. ApiError: it refuses, or can't be reached, or is lost in between."""
        assert self._session is not None  # noqa: S101 - of `async with`
        headers = await self.credentials.headers()
        if "data" in options:
            headers["Content-Type"] = options.pop("kind", "application/json")
        if self._place.server_name:
            options["server_hostname"] = self._place.server_name
        try:
            async with self._session.request(
                method,
                f"{self._place.server}{path}",
                headers=headers,
                ssl=await self.credentials.tls(),
                proxy=self._place.proxy,
                **options,
            ) as response:
                if response.status >= _ERRORS:
                    await self._refuse(response)
                yield response
        except TimeoutError as error:
            raise ApiError("no answer in time") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise ApiError(str(error) or type(error).__name__) from error

    async def _refuse(self, response: aiohttp.ClientResponse) -> None:
        if response.status == _UNAUTHORIZED:
            self.credentials.refresh()
        body = await response.content.read(1 << 16)
        try:
            status = msgspec.json.decode(body, type=ApiStatus)
        except msgspec.MsgspecError:
            status = ApiStatus(message=body.decode(errors="replace").strip()[:200])
        told = response.headers.get("Retry-After", "")
        after = float(told) if told.isdecimal() else 0.0
        raise refused(msgspec.structs.replace(status, code=response.status), after)

    async def get(
        self,
        path: str,
        parameters: Mapping[str, str] | None = None,
        seconds: float = REQUEST_SECONDS,
    ) -> bytes:
        """Return an answer's body. ApiError, AccessError."""
        limit = aiohttp.ClientTimeout(total=seconds, sock_connect=min(seconds, CONNECT_SECONDS))
        async with self._request("GET", path, params=parameters, timeout=limit) as response:
            return await response.read()

    async def post(self, path: str, body: object, seconds: float = REQUEST_SECONDS) -> bytes:
        """Make an object; return it. ApiError, AccessError."""
        return await self._send("POST", path, body, seconds)

    async def put(self, path: str, body: object, seconds: float = REQUEST_SECONDS) -> bytes:
        """Put an object in the place of what is there; return it. ApiError, AccessError."""
        return await self._send("PUT", path, body, seconds)

    async def patch(self, path: str, body: object, seconds: float = REQUEST_SECONDS) -> bytes:
        """Change what of an object is named; return it. ApiError, AccessError."""
        kind = "application/strategic-merge-patch+json"
        return await self._send("PATCH", path, body, seconds, kind=kind)

    async def _send(
        self, method: str, path: str, body: object, seconds: float, **more: str
    ) -> bytes:
        limit = aiohttp.ClientTimeout(total=seconds, sock_connect=min(seconds, CONNECT_SECONDS))
        data = msgspec.json.encode(body)
        async with self._request(method, path, data=data, timeout=limit, **more) as response:
            return await response.read()

    async def lines(self, path: str, parameters: Mapping[str, str]) -> AsyncGenerator[list[bytes]]:
        """Yield the lines of a stream as they come, all that are there at once.

        It ends when the server ends it as it should. ApiError: in any other way; AccessError.
        """
        rest = b""
        async with self._request("GET", path, params=parameters) as response:
            async for piece in response.content.iter_any():
                lines = (rest + piece).split(b"\n")
                rest = lines.pop()
                if lines:
                    yield lines
