# SPDX-License-Identifier: Apache-2.0
"""Follows all objects of one kind: a list, then what changes, for as long as it takes.

A state is known when its end was marked, and not before: a stream that ends earlier, however
cleanly, says nothing. Whatever goes wrong, what was known stays known.

==========================  ====================================================================
what is seen                what follows
==========================  ====================================================================
a clean end                 the watch goes on: from right before the last change that is known,
                            which the server has to tell first. So it is the same cluster's, with
                            the same history; else the state anew
any other end, silence      the state anew, not older than the last version that was told
something of a version      the same: history isn't what was known
that was told already
410, or its event           the same
504 ResourceVersionTooLarge the same; for longer than 30 s: history went back. The state anew,
                            whatever its version, in the place of what was known
streamed lists refused      lists in pages, for good
401                         credentials are read again, once at once
else                        again later: in 0.2 s, then twice as long each time up to 30 s, with
                            jitter, or when the server says (Retry-After)
==========================  ====================================================================
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar, cast

import msgspec

from towpath.agent.errors import AgentError
from towpath.agent.sources.kubernetes.client import ApiError, refused
from towpath.agent.sources.kubernetes.history import History, Mark, number
from towpath.core.kubernetes.problems import Refusal
from towpath.model.sources.kubernetes import objects

if TYPE_CHECKING:
    from towpath.agent.sources.kubernetes.client import Api

log = logging.getLogger(__name__)

T = TypeVar("T", bound=objects.Kind)

END = "k8s.io/initial-events-end"
PAGE = 500
TOO_LARGE_SECONDS = 30.0
"""History went back if the server doesn't come to a version for so long."""
PROOF_SECONDS = 30.0
"""So long a server has to tell what it should know. One that is behind is silent."""
FIRST_SECONDS, MOST_SECONDS = 0.2, 30.0
BRIEF_SECONDS = 1.0
WATCH_SECONDS = (1800, 3600)
_UNAUTHORIZED, _GONE, _INVALID, _BAD = 401, 410, 422, 400
_AT_ONCE = 256
"""Events between two looks at whether anybody else has something to do."""


class Resource(NamedTuple):
    """A kind of objects, and where the API has them."""

    kind: Any
    path: str
    called: str
    selector: str = ""
    """Of labels."""
    fields: str = ""
    """A selector of fields."""

    def object(self, namespace: str, name: str) -> str:
        """Return where one object is."""
        if not namespace:
            return f"{self.path}/{name}"
        group, _, kind = self.path.rpartition("/")
        return f"{group}/namespaces/{namespace}/{kind}/{name}"


class Sink(Protocol):
    """Who is told."""

    async def is_same_cluster(self) -> None:
        """Raise AgentError if what is about to be listed isn't to be believed."""

    def put(self, found: Any) -> None:
        """An object was added or changed."""

    def remove(self, kind: Any, namespace: str, name: str) -> None:
        """An object is gone."""

    def replace(self, kind: Any, found: list[Any], unread: set[tuple[str, str]]) -> None:
        """These are all; those that could not be read stay as they were."""

    def cannot_read(self, refusal: Refusal) -> None:
        """An object could not be decoded: it stays as it was."""


class RestartError(AgentError):
    """The stream is no use any more: its ends are to be taken up again."""


class OtherHistoryError(AgentError):
    """What is told is not what follows on what is known."""


class Reflector:
    """Follows one kind for as long as `run` runs."""

    def __init__(self, api: Api, resource: Resource, sink: Sink) -> None:
        self.resource = resource
        self.history = History()
        self.version = ""
        """Up to which all is known."""
        self.synced = False
        """Whether the state was known once."""
        self.heard = 0.0
        """When the server told anything, events or bookmarks, by the monotonic clock."""
        self.error: str | None = None
        """Why nothing is told just now; None when a stream is open."""
        self.since = time.monotonic()
        """Since when it is as ``error`` says."""
        self.lists = 0
        """How often the state was taken over anew."""
        self._api, self._sink = api, sink
        self._floor = "0"
        """What a state must not be older than. Empty: what the server has by consensus."""
        self._listing = True
        self._streams = True
        self._too_large_since: float | None = None
        self._unproven: Mark | None = None
        """What a server has to tell first, to be believed."""
        self._wait = FIRST_SECONDS
        self._hurry = asyncio.Event()
        self._connecting: asyncio.Future[None] | None = None
        self._event = msgspec.json.Decoder(cast("Any", objects.Event)[resource.kind])
        self._object = msgspec.json.Decoder(resource.kind)

    async def run(self) -> None:
        """Follow until cancelled."""
        while True:
            begun = time.monotonic()
            self._hurry.clear()
            self._connecting = asyncio.ensure_future(self._connect())
            try:
                await self._connecting
            except AgentError as error:
                await self._pause(self._judge(error))
            except asyncio.CancelledError:
                if not self._hurry.is_set():
                    raise
            else:
                # A server without its database ends watches as soon as they begin.
                if time.monotonic() - begun < BRIEF_SECONDS:
                    await self._pause(self._longer())

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            # wait_for() of Python 3.11 may lose that it is cancelled.
            async with asyncio.timeout(seconds):
                await self._hurry.wait()

    def list_anew(self) -> None:
        """Take over all there is now, whatever its version."""
        self._want_anew()
        self._hurry.set()
        if self._connecting is not None:
            self._connecting.cancel()

    def _want_anew(self) -> None:
        self._listing, self._floor = True, ""

    # ---- What goes wrong -------------------------------------------------------------------------

    def _judge(self, error: AgentError) -> float:
        """Note what it means, and return how long to wait."""
        if isinstance(error, RestartError):
            self._note(None)
            return 0.0
        self._note(f"{self.resource.called}: {error}")
        if not isinstance(error, ApiError):
            return self._longer()
        if error.code in {_INVALID, _BAD} and self._listing and self._streams:
            log.info("%s: no streamed lists here: %s", self.resource.called, error)
            self._streams = False
            return 0.0
        if error.too_large:
            return self._too_large()
        # All else that ends a stream may have lost what was on its way, or be another server.
        self._want_list()
        if error.code == _UNAUTHORIZED and self._wait == FIRST_SECONDS:
            self._longer()
            return 0.0
        return max(self._longer(), error.after)

    def _too_large(self) -> float:
        now = time.monotonic()
        if self._too_large_since is None:
            self._too_large_since = now
        self._listing = True
        if now - self._too_large_since > TOO_LARGE_SECONDS:
            log.warning(
                "%s: the API server knows no version %s: its history went back; all is listed anew",
                self.resource.called,
                self.version,
            )
            self._want_anew()
            self._too_large_since = None
        return min(self._longer(), 2.0)

    def _want_list(self) -> None:
        if not self._listing:
            self._listing, self._floor = True, self.version or "0"

    def _longer(self) -> float:
        wait, self._wait = self._wait, min(2 * self._wait, MOST_SECONDS)
        return wait * random.uniform(0.5, 1.0)  # noqa: S311 - no secret

    def _note(self, error: str | None) -> None:
        if (error is None) != (self.error is None):
            self.since = time.monotonic()
        if error is not None and error != self.error:
            log.warning("%s", error)
        self.error = error

    def _well(self) -> None:
        self.heard = time.monotonic()
        self._wait = FIRST_SECONDS
        if self.error is not None:
            log.info("%s: followed again", self.resource.called)
            self._note(None)

    # ---- One connection --------------------------------------------------------------------------

    async def _connect(self) -> None:
        last = self.history.last
        if last is None:
            self._want_list()
        self._unproven = None if self._listing else last
        if self._listing:
            await self._sink.is_same_cluster()
        if self._listing and not self._streams:
            await self._list_pages()
        collected = _Collected() if self._listing else None
        try:
            async with asyncio.timeout(PROOF_SECONDS if self._unproven else None) as patience:
                collected = await self._follow(collected, patience)
        except TimeoutError:
            self._doubt("the API server doesn't tell what is known")
        except OtherHistoryError as error:
            self._doubt(str(error))
        else:
            if collected is not None:
                raise ApiError("the stream ended before the state was whole")
            if self._unproven is not None:
                self._doubt("the API server ends without telling what is known")

    def _doubt(self, why: str) -> None:
        log.warning("%s: %s; all is listed anew", self.resource.called, why)
        self._want_list()

    async def _follow(
        self, collected: _Collected | None, patience: asyncio.Timeout
    ) -> _Collected | None:
        parameters = self._parameters() | self._beginning()
        async with aclosing(self._api.lines(self.resource.path, parameters)) as stream:
            async for lines in stream:
                for count, line in enumerate(lines):
                    collected = self._take(line, collected)
                    if count % _AT_ONCE == _AT_ONCE - 1:
                        await asyncio.sleep(0)
                if self._unproven is None:
                    patience.reschedule(None)
        return collected

    def _beginning(self) -> dict[str, str]:
        """Where a watch begins."""
        wanted = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(random.randint(*WATCH_SECONDS)),  # noqa: S311 - no secret
        }
        if self._listing:
            wanted |= {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan"}
            version = self._floor
        elif self._unproven is not None:
            version = str(self._unproven.number - 1)
        else:
            version = self.version
        return wanted | ({"resourceVersion": version} if version else {})

    def _parameters(self) -> dict[str, str]:
        given = {"labelSelector": self.resource.selector, "fieldSelector": self.resource.fields}
        return {name: each for name, each in given.items() if each}

    def _take(self, line: bytes, collected: _Collected | None) -> _Collected | None:
        """Take one event over. Returns what has been collected of a state that isn't whole yet."""
        try:
            event = self._event.decode(line)
        except msgspec.MsgspecError:
            return self._take_other(line, collected)
        meta = event.object.metadata
        if event.type not in {"ADDED", "MODIFIED", "DELETED"}:
            return self._take_other(line, collected)
        if collected is None and not self._follows(meta):
            return None
        if event.type == "DELETED":
            self._remove(meta, collected)
        elif collected is None:
            self._sink.put(event.object)
        else:
            collected.found[meta.namespace, meta.name] = event.object
        if collected is None:
            self._took(meta, gone=event.type == "DELETED")
        return collected

    def _follows(self, meta: objects.Meta) -> bool:
        """Whether a change is news. OtherHistoryError: it can't come after what is known."""
        if self._unproven is not None:
            if not self._unproven.is_of(meta):
                raise OtherHistoryError("the API server tells something else than what is known")
            self._unproven = None
            self._well()
            return False
        if 0 < number(meta.resource_version) <= number(self.version):
            raise OtherHistoryError(
                f"version {meta.resource_version} is told after version {self.version}"
            )
        return True

    def _took(self, meta: objects.Meta, *, gone: bool) -> None:
        self.history.note(meta, gone=gone)
        self.version = meta.resource_version or self.version
        self._well()

    def _remove(self, meta: objects.Meta, collected: _Collected | None) -> None:
        if collected is None:
            self._sink.remove(self.resource.kind, meta.namespace, meta.name)
        else:
            collected.found.pop((meta.namespace, meta.name), None)
            collected.unread.pop((meta.namespace, meta.name), None)

    def _take_other(self, line: bytes, collected: _Collected | None) -> _Collected | None:
        """Take a bookmark, an error, or an object that can't be decoded."""
        try:
            event = msgspec.json.decode(line, type=objects.Raw)
            if event.type == "ERROR":
                self._fail(msgspec.json.decode(event.object, type=objects.ApiStatus))
            if event.type == "BOOKMARK":
                mark = msgspec.json.decode(event.object, type=objects.Bookmark).metadata
                return self._take_bookmark(mark, collected)
            meta = msgspec.json.decode(event.object, type=objects.Head).metadata
        except msgspec.MsgspecError as error:
            raise ApiError(f"what the API server sends makes no sense: {error}") from error
        if collected is None and not self._follows(meta):
            return None
        if event.type == "DELETED":
            self._remove(meta, collected)
        else:
            self._sink.cannot_read(self._unread(meta, event.object))
            if collected is not None:
                collected.unread[meta.namespace, meta.name] = meta
        if collected is None:
            self._took(meta, gone=event.type == "DELETED")
        return collected

    def _unread(self, meta: objects.Meta, raw: msgspec.Raw) -> Refusal:
        try:
            self._object.decode(raw)
            why = "an unknown event"
        except msgspec.MsgspecError as error:
            why = str(error)
        kind = self.resource.kind.__name__
        what = f"can't be read, and stays as it was: {why}"
        return Refusal(kind, meta.namespace, meta.name, "Unreadable", what)

    def _take_bookmark(
        self, mark: objects.BookmarkMeta, collected: _Collected | None
    ) -> _Collected | None:
        if collected is not None:
            if (mark.annotations or {}).get(END) != "true":
                return collected
            self._replace(collected)
        if self._unproven is not None:
            raise OtherHistoryError("the API server has come to a version without what is known")
        self.version = mark.resource_version or self.version
        self._well()
        return None

    def _fail(self, status: objects.ApiStatus) -> None:
        if status.code == _GONE and not self._listing:
            log.info("%s: version %s is too old", self.resource.called, self.version)
            self._want_list()
            raise RestartError
        raise refused(status)

    def _replace(self, collected: _Collected) -> None:
        found, unread = list(collected.found.values()), collected.unread
        self.history.replace([*(each.metadata for each in found), *unread.values()])
        self._sink.replace(self.resource.kind, found, set(unread))
        self.lists += 1
        self.synced, self._listing, self._too_large_since = True, False, None

    # ---- Lists in pages --------------------------------------------------------------------------

    async def _list_pages(self) -> None:
        """A whole list, or none: a token that has expired begins anew."""
        parameters = self._parameters() | {"limit": str(PAGE)}
        if self._floor:
            parameters |= {"resourceVersion": self._floor, "resourceVersionMatch": "NotOlderThan"}
        collected = _Collected()
        while True:
            body = await self._api.get(self.resource.path, parameters)
            try:
                page = msgspec.json.decode(body, type=objects.RawList)
            except msgspec.MsgspecError as error:
                raise ApiError(f"what the API server sends makes no sense: {error}") from error
            for count, raw in enumerate(page.items or ()):
                self._collect(raw, collected)
                if count % _AT_ONCE == _AT_ONCE - 1:
                    await asyncio.sleep(0)
            if not page.metadata.continue_:
                break
            # A token says which version it is of.
            parameters = self._parameters() | {
                "limit": str(PAGE),
                "continue": page.metadata.continue_,
            }
        self._replace(collected)
        self.version = page.metadata.resource_version
        self._well()

    def _collect(self, raw: msgspec.Raw, collected: _Collected) -> None:
        try:
            found = self._object.decode(raw)
        except msgspec.MsgspecError:
            try:
                meta = msgspec.json.decode(raw, type=objects.Head).metadata
            except msgspec.MsgspecError:
                return
            self._sink.cannot_read(self._unread(meta, raw))
            collected.unread[meta.namespace, meta.name] = meta
        else:
            collected.found[found.metadata.namespace, found.metadata.name] = found


class _Collected:
    """A state that isn't whole yet."""

    def __init__(self) -> None:
        self.found: dict[tuple[str, str], Any] = {}
        self.unread: dict[tuple[str, str], objects.Meta] = {}
