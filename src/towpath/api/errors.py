# SPDX-License-Identifier: Apache-2.0
"""Why an agent could not be asked, or what it refused."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from towpath.api.codec import build
from towpath.errors import ConflictError, Error, NotFoundError
from towpath.model import ConfigError, Problem

if TYPE_CHECKING:
    from pathlib import Path

_NOT_FOUND, _CONFLICT, _INVALID = 404, 409, 422


class ClientError(Error):
    """The agent could not be asked, or refused."""


class UnreachableError(ClientError):
    """Nobody answers at the socket, or not in a way that can be understood."""


class ApiError(ClientError):
    """The agent refused; nothing was changed.

    Where a :class:`towpath.LoadBalancer` has an error of its own for the same reason, this is
    of that class as well: `NotFoundError`, `ConflictError` or `ConfigError`.

    Attributes:
        status: HTTP status: 404 not there, 409 contradicts what is there or does
            not fit, 422 a value that is not allowed, 500 the kernel or the disk.
        problems: Everything that is wrong, with its field.
    """

    def __init__(self, status: int, problems: tuple[Problem, ...]) -> None:
        self.status = status
        self.problems = problems
        message = "\n".join(map(str, problems)) or f"the agent answered {status}"
        Exception.__init__(self, message)


class _ApiNotFoundError(ApiError, NotFoundError):
    """404."""


class _ApiConflictError(ApiError, ConflictError):
    """409."""


class _ApiConfigError(ApiError, ConfigError):
    """422."""


_BY_STATUS: dict[int, type[ApiError]] = {
    _NOT_FOUND: _ApiNotFoundError,
    _CONFLICT: _ApiConflictError,
    _INVALID: _ApiConfigError,
}


def refusal(status: int, content: bytes) -> ApiError:
    """Return the error that an answer stands for."""
    return _BY_STATUS.get(status, ApiError)(status, _problems(content))


def _problems(content: bytes) -> tuple[Problem, ...]:
    """Why the agent refused, or what it said if it was something else that answered."""
    try:
        found: tuple[Problem, ...] = build(tuple[Problem, ...], json.loads(content)["problems"])
    except (ValueError, KeyError, TypeError):
        text = content.decode(errors="replace").strip()
        return (Problem(text or "refused without a reason"),)
    return found


def unreachable(at: Path, error: Exception) -> UnreachableError:
    """Return the error that says what was wrong, where, and what to do."""
    return UnreachableError(_said(at, error))


def _said(at: Path, error: Exception) -> str:
    if isinstance(error, FileNotFoundError | ConnectionRefusedError):
        return (
            f"no agent answers at {at}; start one (towpath agent --config FILE)"
            " or name its socket (--socket, TOWPATH_SOCKET)"
        )
    if isinstance(error, PermissionError):
        return f"no permission to ask the agent at {at}; use its owner or group (sudo)"
    if isinstance(error, TimeoutError):
        return f"the agent at {at} took too long to answer; see its log"
    return f"the agent at {at} broke off: {error}; see its log"
