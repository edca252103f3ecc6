# SPDX-License-Identifier: Apache-2.0
"""The HTTP API below /v1: what each agent has, and what its parts bring.

Its OpenAPI description is at /v1/openapi.json.
"""

from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import PlainTextResponse, Response
from pydantic import TypeAdapter
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from towpath import __version__
from towpath.agent.agent import Agent
from towpath.agent.http import errors
from towpath.agent.http.bodies import SmallBodies
from towpath.agent.http.response import Whole, answer
from towpath.agent.http.scrapes import ScrapeResponse, Scrapes
from towpath.api import documents
from towpath.capabilities import CAPABILITIES
from towpath.model import Problem


@dataclass
class Problems:
    """Why a request was refused; nothing was changed."""

    problems: tuple[Problem, ...]


_SCHEMAS = "#/components/schemas/"
# Named, and not given as a model: FastAPI would make one for each of each route's, which took a
# seventh of an agent's start.
_PROBLEMS = {"application/json": {"schema": {"$ref": f"{_SCHEMAS}{Problems.__name__}"}}}
REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"description": description, "content": _PROBLEMS}
    for status, description in (
        (400, "The body is not JSON"),
        (404, "There is no such service or backend"),
        (409, "Contradicts what is there, or does not fit"),
        (413, "The body is too large"),
        (422, "A field has a value that is not allowed"),
    )
}


def make_app(agent: Agent, scrapes: Scrapes) -> FastAPI:
    """The application that serves an agent's API and metrics."""
    app = FastAPI(
        title="Towpath agent",
        version=__version__,
        summary="Services and backends of an XDP load balancer",
        openapi_url=None,  # is made where everything else waits
        docs_url=None,  # would load its scripts from elsewhere
        redoc_url=None,
        responses=REFUSALS,
    )
    app.add_middleware(SmallBodies)
    absent = [each for each in CAPABILITIES if not each.configured(agent.config)]
    errors.install(app, tuple(dict.fromkeys(each.key or each.name for each in absent)))
    for router in (observation(agent), *(each for part in agent.parts for each in part.routes())):
        app.include_router(router, prefix="/v1")

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics(request: Request) -> Response:
        """Prometheus metrics, read from the kernel now."""
        return ScrapeResponse(scrapes, request.headers)

    @app.get("/v1/openapi.json", include_in_schema=False)
    async def openapi() -> Response:
        """The API's description, made when it is first asked for."""
        return Whole(lambda: described(app))

    return app


def described(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI description of an application whose refusals are `REFUSALS`."""
    made = app.openapi()
    schema = TypeAdapter(Problems).json_schema(ref_template=f"{_SCHEMAS}{{model}}")
    schemas = made.setdefault("components", {}).setdefault("schemas", {})
    schemas |= schema.pop("$defs", {}) | {Problems.__name__: schema}
    return made


async def warm(app: ASGIApp) -> None:
    """Have an application get ready, which it would do at its first request: 0.3 s of work."""

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        """Nobody is there."""

    scope: Scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "GET",
        "path": "/nowhere",
        "query_string": b"",
        "headers": [(b"host", b"localhost")],
        "state": {},
    }
    await app(scope, receive, send)


def make_metrics_app(scrapes: Scrapes) -> ASGIApp:
    """The application that serves nothing but metrics, on any path."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        response: Response = ScrapeResponse(scrapes, Request(scope).headers)
        if scope["method"] not in {"GET", "HEAD"}:
            response = PlainTextResponse("only GET\n", 405, {"Allow": "GET, HEAD"})
        await response(scope, receive, send)

    return app


def observation(agent: Agent) -> APIRouter:
    """What the agent itself is doing."""
    router = APIRouter(tags=["observation"])

    @router.get("/health")
    async def health() -> Response:
        """Whether all is well: 200, or 503 and what is wrong."""
        trouble = agent.trouble
        if trouble:
            return errors.answer(503, [Problem(trouble)])
        return answer({"status": "ok"})

    @router.get("/status", response_model=documents.Status)
    async def status() -> Response:
        """The agent, its file and its limits."""
        return Whole(agent.status, waits=False)

    return router
