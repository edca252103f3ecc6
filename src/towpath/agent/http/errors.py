# SPDX-License-Identifier: Apache-2.0
"""Errors as HTTP answers: a status, and every problem with its field.

The body is always ``{"problems": [{"message", "field", "file", "line"}, ...]}``.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from towpath.agent.errors import AgentError, ConflictError, InvalidError, NotFoundError
from towpath.agent.http.response import AsciiJSONResponse
from towpath.api.codec import plain
from towpath.datapath.errors import DatapathError
from towpath.kernel.errors import KernelError
from towpath.model import ConfigError, Problem, problems_of
from towpath.model.problems import field_path
from towpath.printable import printable

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from fastapi import FastAPI, Request, Response

log = logging.getLogger(__name__)

# The most specific class comes first.
STATUS: tuple[tuple[type[Exception], int], ...] = (
    (ConfigError, 422),
    (InvalidError, 422),
    (NotFoundError, 404),
    (ConflictError, 409),
    (DatapathError, 409),
    (AgentError, 500),
    (KernelError, 500),
)


def install(app: FastAPI, absent: Collection[str] = ()) -> None:
    """Make app answer errors with problems. ``absent``: keys that would bring more paths."""
    app.exception_handler(RequestValidationError)(_invalid)
    app.exception_handler(HTTPException)(partial(_http, absent))
    for kind, _ in STATUS:
        app.add_exception_handler(kind, _refused)


def answer(status: int, problems: Iterable[Problem]) -> Response:
    """The answer to a request that was refused."""
    return AsciiJSONResponse({"problems": plain(list(problems))}, status)


def _refused(_: Request, error: Exception) -> Response:
    status = next(status for kind, status in STATUS if isinstance(error, kind))
    if status == 500:  # noqa: PLR2004 - the one that is not the client's fault
        log.error("%s", error)
    return answer(status, getattr(error, "problems", (Problem(str(error)),)))


def _http(absent: Collection[str], request: Request, error: HTTPException) -> Response:
    """No such path, or not with this method."""
    more = f"; not configured here: {', '.join(absent)}" if absent else ""
    path = printable(request.url.path)
    message = f"{request.method} {path}: {error.detail}; see /v1/openapi.json{more}"
    return answer(error.status_code, [Problem(message)])


def _invalid(_: Request, error: RequestValidationError) -> Response:
    """A body, path or query that is not what the path takes: 400 when it isn't even JSON."""
    errors = error.errors()
    if any(each["type"] == "json_invalid" for each in errors):
        reasons = [str(each.get("ctx", {}).get("error", each["msg"])) for each in errors]
        return answer(400, [Problem(f"the body is not JSON: {reason}") for reason in reasons])
    return answer(422, validation_problems(errors))


def validation_problems(errors: Sequence[Mapping[str, Any]]) -> Iterator[Problem]:
    """Problems of a validation error, with those of the model's own checks unfolded.

    Where a part of the request was checked by the model, the error holds a
    ConfigError whose fields are relative to that part.
    """
    for error in errors:
        place = tuple(error["loc"])[1:]  # without body, path or query
        inner = error.get("ctx", {}).get("error")
        if isinstance(inner, ConfigError):
            for problem in inner.problems:
                prefix = field_path(place)
                joint = "." if prefix and problem.field else ""
                yield replace(problem, field=f"{prefix}{joint}{problem.field}")
        else:
            yield from problems_of([{**error, "loc": place}])
