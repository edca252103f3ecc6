# SPDX-License-Identifier: Apache-2.0
"""Puts services into force: all of them, or as many as can be, and what can't is told and kept."""

from __future__ import annotations

import logging
from itertools import islice
from typing import TYPE_CHECKING

from towpath.agent.errors import ConflictError
from towpath.agent.sources.intake import Update
from towpath.core.kubernetes.problems import Refusal
from towpath.datapath.errors import CapacityError
from towpath.model import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from towpath.agent.sources.intake import Intake
    from towpath.core.kubernetes.cluster import Cluster
    from towpath.model import Service

log = logging.getLogger(__name__)

_MOST_REFUSED = 64
"""So many services are tried one by one when they don't fit; the rest waits for a change. Of those
that are in others' way all others are in force."""
_PART = 500
"""Services that are put into force at once."""


class Attempts:
    """What is in force of a cluster, and what was refused. For the event loop.

    ``grow_to``: MiB of the kernel's memory that larger tables may take, 0: they stay as they are.
    ``in_force``: what was so before.
    """

    def __init__(
        self, intake: Intake[Update], grow_to: int, cluster: Cluster, in_force: Iterable[Service]
    ) -> None:
        self._intake = intake
        self._grow_to = grow_to
        self._cluster = cluster
        self.in_force = {each.name: each for each in in_force}
        self.refused: dict[str, Exception] = {}
        """By service: why."""
        self.growing = False
        """The agent begins anew with larger tables: nothing more is tried."""
        self.no_room = ""
        """Why limits didn't grow that were too small."""
        self._short: CapacityError | None = None
        """What there was no room for at the last attempt."""

    async def make(self, put: Mapping[str, Service], remove: Iterable[str]) -> None:
        """Put services into force, and remove others. What can't be is among `refused`."""
        self._short = None
        for some, gone in _parts(tuple(put.values()), tuple(remove)):
            await self._attempt(some, gone)
            if self.growing:
                return
        if not self.refused:
            self.no_room = ""

    async def _attempt(self, put: tuple[Service, ...], remove: tuple[str, ...]) -> None:
        """Have all of it put into force, or if that can't be as much as can."""
        error = await self._intake.attempt(Update(put, remove, whole=False))
        if error is None:
            self._took(put, remove)
            return
        if isinstance(error, CapacityError) and error.setting:
            self._short = error
            if self._grows():
                return
        if remove:
            await self._attempt((), remove)
            await self._attempt(put, ())
        elif len(put) == 1 or (len(self.refused) >= _MOST_REFUSED and not _is_wrong(error)):
            self.refused |= dict.fromkeys((each.name for each in put), error)
        elif put:
            half = len(put) // 2
            await self._attempt(put[:half], ())
            await self._attempt(put[half:], ())

    def _took(self, put: Iterable[Service], remove: Iterable[str]) -> None:
        for name in remove:
            self.in_force.pop(name, None)
        self.in_force |= {each.name: each for each in put}

    def _grows(self) -> bool:
        """Whether the agent begins anew with larger tables; if not, why is noted."""
        assert self._short is not None  # noqa: S101 - what this is called for
        if self.growing or self.no_room:
            return self.growing
        assert self._intake.given is not None  # noqa: S101 - of the agent
        wanted, grow = self._cluster.services().values(), self._intake.given.grow
        why = grow(self._short.setting, wanted, self._grow_to) if self._grow_to else "grow_to is 0"
        self.growing = why is None
        if why is not None:
            self.no_room = f"{self._short}; limits don't grow: {why}"
            log.error("Kubernetes: %s", self.no_room)
        return self.growing

    # ---- What was refused ------------------------------------------------------------------------

    def refused_now(self) -> dict[str, Service]:
        """Return what was refused, as it is by now, to be tried again."""
        wanted = self._cluster.services()
        return {name: wanted[name] for name in self.refused if name in wanted}

    def forget_refused(self, names: Iterable[str]) -> None:
        """These go, or are tried again."""
        for name in names:
            self.refused.pop(name, None)

    def not_in_force(self) -> Iterator[Refusal]:
        """Services that there is no room for, or that are in another's way, as far as is known."""
        told = ((name, why) for name, why in self.refused.items() if _reason(why))
        for name, why in islice(told, _MOST_REFUSED):
            namespace, service, *_ = name.split(":")
            why_not = self.no_room if _is_short(why) and self.no_room else why
            what = f"{name} isn't served: {why_not}"
            yield Refusal("Service", namespace, service, _reason(why), what)


def _is_short(error: Exception) -> bool:
    return isinstance(error, CapacityError) and bool(error.setting)


def _is_wrong(error: Exception) -> bool:
    """Whether it is some service's own fault, or two's, which cost nothing to try."""
    return isinstance(error, ConfigError | ConflictError)


def _reason(error: Exception) -> str:
    """Return what an Event calls it; nothing of what isn't the object's."""
    if _is_short(error):
        return "NoRoom"
    if isinstance(error, ConflictError):
        return "AddressInUse"
    return "Invalid" if isinstance(error, ConfigError) else ""


def _parts(
    put: tuple[Service, ...], remove: tuple[str, ...]
) -> Iterator[tuple[tuple[Service, ...], tuple[str, ...]]]:
    """A large change in parts: each takes memory while it is made, and the writer's time."""
    yield put[:_PART], remove
    for first in range(_PART, len(put), _PART):
        yield put[first : first + _PART], ()
