# SPDX-License-Identifier: Apache-2.0
"""What a source hands its content to, and what became of it."""

from __future__ import annotations

import logging
import time
from datetime import UTC, datetime
from operator import is_not
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from towpath.agent.errors import REFUSALS, AgentError, ConflictError, RequestError
from towpath.api.documents import SourceStatus
from towpath.datapath.errors import DatapathError
from towpath.kernel.errors import KernelError
from towpath.model import ConfigError, Problem
from towpath.model.problems import bounded

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Sequence

    from towpath.agent.parts import Shared
    from towpath.datapath.neigh.wanted import Wanted
    from towpath.model import Config, Service

log = logging.getLogger(__name__)

Content = TypeVar("Content")

AGAIN_SECONDS = 5.0
"""After so long a content is handed in again that failed for a reason which says nothing of it."""


def now() -> str:
    """The time, ISO 8601 with its offset, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def problems_in(error: Exception) -> tuple[Problem, ...]:
    """What an error says, as problems."""
    if isinstance(error, ConfigError | RequestError):
        return error.problems
    return (Problem(str(error)),)


class Update(NamedTuple):
    """Services that a source hands in."""

    put: tuple[Service, ...]
    remove: tuple[str, ...] = ()
    """Names of services that are gone."""
    whole: bool = True
    """Whether ``put`` are all that the source has; otherwise others stay."""


class Surroundings(NamedTuple):
    """What a source may ask of the agent."""

    config: Config
    owned: Callable[[], tuple[Service, ...]]
    """Its services that are in force. For any thread."""
    change: Callable[..., Awaitable[Any]]
    """Runs a call on the writer's thread."""
    shared: Shared
    """What other parts have for it."""
    next_hops: Wanted
    """Where it says which hosts are to be kept resolved."""
    grow: Callable[[str, Collection[Service], int], str | None]
    """Have limits grow, of which the one that is named is too small for its services, to so many
    MiB at most. Returns why they can't; None: the agent begins anew with larger ones. On the event
    loop."""


class Intake(Generic[Content]):
    """Takes what a source has; what is refused changes nothing.

    Args:
        name: What messages call the source.
        take: Puts a content into force, or raises one of errors.REFUSALS.
        desired: What the content must agree with; other objects whenever that has changed.
        given: What a source may ask of the agent.
    """

    def __init__(
        self,
        name: str,
        take: Callable[[Content], Awaitable[object]],
        desired: Callable[[], tuple[object, ...]],
        given: Surroundings | None = None,
    ) -> None:
        self.name = name
        self.given = given
        self._take = take
        self._desired = desired
        self._status = SourceStatus()
        # What it was refused for contradicting; None when that is not why.
        self._contradicted: tuple[object, ...] | None = None
        # When it may be tried again; None when the content itself is wrong.
        self._again: float | None = None

    @property
    def status(self) -> SourceStatus:
        """What is in force, and what was refused. For any thread."""
        return self._status

    @property
    def trouble(self) -> str | None:
        """Why a content could not be put into force that may be right. For any thread."""
        if self._again is None:
            return None
        reasons = "; ".join(map(str, self._status.problems))
        return f"{self.name} could not be put into force, and is tried again: {reasons}"

    async def offer(self, content: Content) -> bool:
        """Have a content put into force; whether it was. After a refusal, offer all there is."""
        try:
            await self._take(content)
        except REFUSALS as error:
            self.refuse(error)
            return False
        self.accept()
        return True

    async def attempt(self, content: Content) -> Exception | None:
        """Have a part of a content put into force; why not. `settle` says what became of all."""
        try:
            await self._take(content)
        except REFUSALS as error:
            return error
        return None

    def settle(self, refused: Sequence[Exception]) -> None:
        """All has been attempted that there was; these are why parts of it are not in force."""
        contradicts = any(isinstance(each, ConflictError | DatapathError) for each in refused)
        self._contradicted = self._desired() if contradicts else None
        faults = any(map(_is_fault, refused))
        self._again = time.monotonic() + AGAIN_SECONDS if faults else None
        problems = bounded(problem for each in refused for problem in problems_in(each))
        for problem in problems:
            if problem not in self._status.problems:
                log.error("%s: not in force: %s", self.name, problem)
        self._status = SourceStatus(now(), now() if refused else None, problems)

    def may_fit_now(self) -> bool:
        """Whether what the content was refused for contradicting has changed since.

        Or whether it is time to try again what failed for another reason than what it says.
        """
        if self._again is not None and time.monotonic() >= self._again:
            return True
        before = self._contradicted
        return before is not None and any(map(is_not, before, self._desired()))

    def accept(self) -> None:
        """What was handed in is in force."""
        log.info("%s: in force", self.name)
        self._contradicted = self._again = None
        self._status = SourceStatus(accepted=now())

    def refuse(self, error: Exception) -> None:
        """What was handed in is not; what was in force before stays."""
        contradiction = isinstance(error, ConflictError | DatapathError)
        self._contradicted = self._desired() if contradiction else None
        self._again = time.monotonic() + AGAIN_SECONDS if _is_fault(error) else None
        before = self._status.problems
        self._status = SourceStatus(self._status.accepted, now(), problems_in(error))
        if self._again is not None and self._status.problems == before:
            return  # as the time before
        for problem in self._status.problems:
            log.error("%s: refused, what was in force stays: %s", self.name, problem)


def _is_fault(error: Exception) -> bool:
    """Whether it is the machine that refuses, as when there are too many open files."""
    ours = isinstance(error, AgentError) and not isinstance(error, RequestError)
    return ours or isinstance(error, KernelError)
