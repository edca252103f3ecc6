# SPDX-License-Identifier: Apache-2.0
"""Whether what lists and watches tell is what the cluster's database has.

They are answered from the API server's memory. If the database is put back to a snapshot while the
server runs, that memory keeps what was before for ever, and misses what is written until versions
have come to where they were. Only a GET of one object asks the database. So of each kind the object
that changed last is asked for now and then, and this node's Node, which the kubelet writes at least
every five minutes.

===============================  ===============================================================
what the database has            what follows
===============================  ===============================================================
what was told                    nothing
something older                  the memory isn't true: a database can't be behind its watches
something newer, or nothing      the same if it isn't told within 30 s
===============================  ===============================================================

It is told then, and all is listed anew: another API server may answer. It is over when a list has
what the database has of the objects that gave it away.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from towpath.agent.errors import AgentError
from towpath.agent.sources.kubernetes.client import ApiError
from towpath.agent.sources.kubernetes.history import number
from towpath.model.sources.kubernetes import objects

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from towpath.agent.sources.kubernetes.client import Api
    from towpath.agent.sources.kubernetes.history import Mark, Name
    from towpath.agent.sources.kubernetes.watch import Reflector

log = logging.getLogger(__name__)

LOOK_SECONDS = 60.0
"""Between two looks at most."""
SETTLE_SECONDS = 30.0
"""So long a watch may be behind the database."""
ANEW_SECONDS = 300.0
"""Between two lists of all while what they tell isn't true."""
GET_SECONDS = 20.0
_SUSPECTS = 4
"""So many objects of a kind give it away, at most."""
_POLL_SECONDS = 0.25
_MISSING, _FORBIDDEN = 404, 403


class _Suspect(NamedTuple):
    """An object that isn't in the database as it was told."""

    of: Reflector
    key: Name
    why: str


class _NotAskedError(AgentError):
    """The database wasn't asked, or it doesn't matter what it has."""


class Truth:
    """Looks for as long as `run` runs. ``anew`` has all kinds listed anew."""

    def __init__(self, reflectors: Sequence[Reflector], anew: Callable[[], None]) -> None:
        self._reflectors, self._anew = reflectors, anew
        self._suspects: tuple[_Suspect, ...] = ()
        self._pinned: list[_Suspect] = []
        self._lists: list[int] = []
        """How often each kind had been listed when this was found."""
        self._anew_at = 0.0
        self._forbidden = False
        self._hurry = asyncio.Event()

    @property
    def trouble(self) -> str | None:
        """What isn't true; None: nothing is known against it."""
        if not self._suspects:
            return None
        return (
            f"the API server tells what its database doesn't have ({self._suspects[0].why}), as if"
            " that was put back while it ran; services stay as they were: restart the API server"
        )

    def hurry(self) -> None:
        """Look at once: something is odd."""
        self._hurry.set()

    async def run(self, api: Api) -> None:
        """Look now and then until cancelled."""
        while True:
            seconds = LOOK_SECONDS * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
            try:
                async with asyncio.timeout(seconds):
                    await self._hurry.wait()
            except TimeoutError:
                pass
            self._hurry.clear()
            await self.look(api)

    async def look(self, api: Api) -> None:
        """Compare what was told with the database."""
        if self._suspects:
            await self._look_again(api)
            return
        known = [
            (each, mark)
            for each in self._reflectors
            for mark in {each.history.last, *each.history.pinned.values()}
            if mark is not None
        ]
        looks = await asyncio.gather(*(self._find(api, *each) for each in known))
        if found := [each for each in looks if each is not None]:
            await self._doubt(api, found)

    async def _doubt(self, api: Api, found: list[_Suspect]) -> None:
        """More of what changed last may be otherwise: the more is known, the surer is its end."""
        for reflector in self._reflectors:
            for mark in reflector.history.recent():
                known = [each.key for each in found if each.of is reflector]
                if len(known) < _SUSPECTS and mark.key not in known:
                    suspect = await self._find(api, reflector, mark, patience=0.0)
                    found += [suspect] if suspect else []
        for each in found:
            if each.key not in each.of.history.pinned:
                each.of.history.pinned[each.key] = None
                self._pinned.append(each)
            log.error("Kubernetes: not what the database has: %s", each.why)
        self._suspects = tuple(found)
        self._list_anew()

    def _list_anew(self) -> None:
        self._lists = [each.lists for each in self._reflectors]
        self._anew_at = time.monotonic() + ANEW_SECONDS
        self._anew()

    async def _look_again(self, api: Api) -> None:
        """See whether what was listed since is true."""
        if any(
            each.lists == before or each.error is not None
            for each, before in zip(self._reflectors, self._lists, strict=True)
        ):
            return
        try:
            same = [await self._is_true(api, each) for each in self._suspects]
        except AgentError as error:
            log.info("Kubernetes: what the database has isn't known: %s", error)
            return
        if all(same):
            log.warning("Kubernetes: what the API server tells is what its database has again")
            for each in self._pinned:
                del each.of.history.pinned[each.key]
            self._suspects, self._pinned = (), []
        elif time.monotonic() >= self._anew_at:
            self._list_anew()

    async def _is_true(self, api: Api, suspect: _Suspect) -> bool:
        found = await self._ask(api, suspect.of, suspect.key)
        return _agree(suspect.of.history.pinned.get(suspect.key), found)

    async def _find(
        self, api: Api, reflector: Reflector, mark: Mark, patience: float | None = None
    ) -> _Suspect | None:
        """Compare one object; None: nothing is to be said against what was told of it."""
        if reflector.error is not None or not reflector.synced:
            return None
        lists = reflector.lists
        was_pinned = mark.key in reflector.history.pinned
        reflector.history.pin(mark)
        try:
            found = await self._ask(api, reflector, mark.key)
            if _agree(mark, found):
                return None
            if found is None or number(found.resource_version) > mark.number:
                limit = SETTLE_SECONDS if patience is None else patience
                await _told(reflector, mark, time.monotonic() + limit)
            if reflector.lists != lists:
                return None
        except AgentError as error:
            log.debug("Kubernetes: what the database has isn't known: %s", error)
            return None
        finally:
            if not was_pinned:
                reflector.history.pinned.pop(mark.key, None)
        return _Suspect(reflector, mark.key, _why(reflector, mark, found))

    async def _ask(self, api: Api, reflector: Reflector, key: Name) -> objects.Meta | None:
        """Return what the database has of an object."""
        try:
            body = await api.get(reflector.resource.object(*key), seconds=GET_SECONDS)
        except ApiError as error:
            if error.code == _MISSING:
                return None
            if error.code == _FORBIDDEN and not self._forbidden:
                self._forbidden = True
                log.warning("Kubernetes: what is told can't be compared: %s", error)
            raise
        try:
            return msgspec.json.decode(body, type=objects.Head).metadata
        except msgspec.MsgspecError as error:
            raise ApiError(f"what the API server sends makes no sense: {error}") from error


async def _told(reflector: Reflector, mark: Mark, until: float) -> None:
    """Wait until so long nothing is told of an object. AgentError: something is."""
    while True:
        if reflector.history.pinned.get(mark.key) != mark:
            raise _NotAskedError("it has changed meanwhile")
        if reflector.error is not None:
            raise _NotAskedError("there is no watch")
        if time.monotonic() >= until:
            return
        await asyncio.sleep(_POLL_SECONDS)


def _agree(known: Mark | None, found: objects.Meta | None) -> bool:
    if known is None or known.gone:
        return found is None
    return found is not None and known.is_of(found)


def _why(reflector: Reflector, mark: Mark, found: objects.Meta | None) -> str:
    kind, name = reflector.resource.kind.__name__, "/".join(filter(None, mark.key))
    told = f"gone at version {mark.number}" if mark.gone else f"of version {mark.number}"
    has = f"version {found.resource_version}" if found else "none"
    return f"{kind} {name} is {told}, and the database has {has}"
