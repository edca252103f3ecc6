# SPDX-License-Identifier: Apache-2.0
"""What requests may hold that changes services, and how it is checked.

By the model, as the configuration file is: the same rules, the same messages.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from towpath.capabilities import API
from towpath.model import ConfigError, Problem, Service, parse_service
from towpath.model.kinds import Flag
from towpath.model.owner import Owner  # noqa: TC001 - read when a request is
from towpath.model.parse import parse_backends, parse_with_services

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


@dataclass(frozen=True, slots=True)
class Wish:
    """Services to apply."""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid", "use_attribute_docstrings": True}

    services: tuple[Service, ...]
    prune: Annotated[bool, Flag()] = False
    """Also remove the API's services that are not listed."""
    force: Annotated[bool, Flag()] = False
    """Backends that are removed don't keep the flows they have."""


@dataclass(frozen=True, slots=True)
class Question:
    """Services whose apply is to be planned."""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid", "use_attribute_docstrings": True}

    services: tuple[Service, ...]
    prune: Annotated[bool, Flag()] = False
    """Also remove the API's services that are not listed."""
    force: Annotated[bool, Flag()] = False
    """Backends that are removed don't keep the flows they have."""
    owner: Owner = API
    """Another than api, such as file: as if services were all that this source has."""


def _wish(raw: Any) -> Wish:
    return parse_with_services(Wish, raw)


def _question(raw: Any) -> Question:
    return parse_with_services(Question, raw)


KINDS: Mapping[str, Callable[[Any], Any]] = {
    "wish": _wish,
    "question": _question,
    "service": parse_service,
    "backends": parse_backends,
}
"""Makes what a request is for of plain data, by a name. ConfigError."""


@dataclass(frozen=True, slots=True)
class Judged:
    """What a body is for, or what is wrong with it."""

    value: Any = None
    problems: tuple[Problem, ...] = ()
    not_json: str = ""
    """Why it can't be read at all."""

    def get(self) -> Any:
        """The value. ConfigError."""
        if self.problems:
            raise ConfigError(self.problems)
        return self.value


def judge(kind: str, body: bytes) -> Judged:
    """Read and check a body, here and now."""
    try:
        return Judged(KINDS[kind](json.loads(body)))
    except ConfigError as error:
        return Judged(problems=error.problems)
    except RecursionError:
        return Judged(problems=(Problem("is nested too deep; allowed: what is described"),))
    except MemoryError:
        return too_much("memory than there is for one")
    except ValueError as error:
        return Judged(not_json=getattr(error, "msg", None) or str(error))


def too_much(what: str) -> Judged:
    """What is said of a body that takes more time or memory than it may."""
    return Judged(problems=(Problem(f"takes more {what}; send it in parts"),))
