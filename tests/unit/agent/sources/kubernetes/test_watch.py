# SPDX-License-Identifier: Apache-2.0
"""What is taken from a stream's lines; what servers really send is tried in tests/kubernetes."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

import pytest

from towpath.agent.sources.kubernetes import watch
from towpath.agent.sources.kubernetes.client import Api, ApiError
from towpath.agent.sources.kubernetes.watch import Reflector, Resource
from towpath.model.sources.kubernetes import objects

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from towpath.core.kubernetes.problems import Refusal

SERVICES = Resource(objects.Service, "/api/v1/services", "services")
END = {"k8s.io/initial-events-end": "true"}


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What ends is taken up again at once."""
    monkeypatch.setattr(watch, "FIRST_SECONDS", 0.001)


class Told:
    """What a reflector has told."""

    def __init__(self) -> None:
        self.log: list[str] = []

    async def is_same_cluster(self) -> None:
        """It is."""

    def put(self, found: Any) -> None:
        """One more."""
        self.log.append(f"+{found.metadata.name}")

    def remove(self, kind: Any, namespace: str, name: str) -> None:
        """One less."""
        del kind, namespace
        self.log.append(f"-{name}")

    def replace(self, kind: Any, found: list[Any], unread: set[tuple[str, str]]) -> None:
        """All."""
        del kind
        names = sorted(each.metadata.name for each in found)
        kept = sorted(name for _, name in unread)
        self.log.append(f"={','.join(names)}" + (f" but {','.join(kept)}" if kept else ""))

    def cannot_read(self, refusal: Refusal) -> None:
        """One that can't be decoded."""
        self.log.append(f"?{refusal.name}: {refusal.message}")


Stream = list[str | float | ApiError]


class Script:
    """Streams, one for each connection: lines, silence, then a clean end or an error."""

    def __init__(self, *streams: Stream) -> None:
        self.streams = list(streams)
        self.asked: list[dict[str, str]] = []

    async def lines(self, path: str, parameters: Mapping[str, str]) -> AsyncGenerator[list[bytes]]:
        """The next one; then silence."""
        del path
        self.asked.append(dict(parameters))
        if not self.streams:
            await asyncio.Event().wait()
        for each in self.streams.pop(0):
            if isinstance(each, ApiError):
                raise each
            if isinstance(each, float):
                await asyncio.sleep(each)
            else:
                yield [each.encode()]


def event(kind: str, name: str, version: int = 2, *, uid: str = "", **more: Any) -> str:
    """A line."""
    meta = {"name": name, "namespace": "n", "resourceVersion": str(version), "uid": uid or name}
    return json.dumps({"type": kind, "object": {"metadata": meta} | more})


def mark(version: int, annotations: Any = None) -> str:
    """A bookmark."""
    meta = {"resourceVersion": str(version), "annotations": annotations}
    return json.dumps({"type": "BOOKMARK", "object": {"kind": "Service", "metadata": meta}})


def error(code: int, reason: str = "Expired", cause: str = "") -> str:
    """An error as an event."""
    details = {"causes": [{"reason": cause}]} if cause else None
    body = {"kind": "Status", "code": code, "reason": reason, "details": details}
    return json.dumps({"type": "ERROR", "object": body})


def follow(
    *streams: Stream,
) -> tuple[list[str], list[dict[str, str]], Reflector]:
    """What is told of these streams, what was asked for, and how it is in the end."""
    told, script = Told(), Script(*streams)

    async def run() -> Reflector:
        made = Reflector(cast("Api", script), SERVICES, told)
        made._wait = 0.001
        task = asyncio.ensure_future(made.run())
        while len(script.asked) <= len(streams):
            made._wait = 0.001
            await asyncio.sleep(0.001)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        return made

    made = asyncio.run(run())
    return told.log, script.asked, made


def test_a_state_is_known_at_its_mark() -> None:
    """Other bookmarks are none; what comes after it is a change."""
    log, asked, made = follow(
        [
            event("ADDED", "a", 5),
            mark(6),
            event("ADDED", "b", 7),
            event("DELETED", "a", 8),
            mark(9, END),
            event("MODIFIED", "b", 10),
            mark(12),
        ]
    )
    assert log == ["=b", "+b"]
    assert (made.version, made.synced, made.error) == ("12", True, None)
    assert asked[0]["resourceVersion"] == "0"
    assert asked[0]["resourceVersionMatch"] == "NotOlderThan"
    # A clean end: on from right before the last change.
    assert asked[1]["resourceVersion"] == "9"
    assert "sendInitialEvents" not in asked[1]


@pytest.mark.parametrize("kind", ["MODIFIED", "DELETED"])
def test_a_server_that_tells_the_last_change_is_believed(kind: str) -> None:
    """It isn't told on; what follows is."""
    last = event(kind, "a", 8)
    log, asked, made = follow(
        [event("ADDED", "a", 5), event("ADDED", "b", 4), mark(6, END), last, mark(20)],
        [last, event("ADDED", "c", 21)],
        [event("ADDED", "c", 21)],
    )
    assert log == ["=a,b", "-a" if kind == "DELETED" else "+a", "+c"]
    assert [each["resourceVersion"] for each in asked] == ["0", "7", "20", "20"]
    assert (made.version, made.lists) == ("21", 1)


def test_a_list_has_a_last_change_too() -> None:
    """That of the object which changed last, readable or not."""
    wrong = event("ADDED", "b", 7, spec=1)
    log, asked, made = follow(
        [event("ADDED", "a", 5), wrong, mark(9, END)], [wrong, event("DELETED", "a", 12)]
    )
    assert asked[1]["resourceVersion"] == "6"
    assert [each[:3] for each in log] == ["?b:", "=a ", "-a"]
    assert made.lists == 1


@pytest.mark.parametrize(
    "stream",
    [
        [event("MODIFIED", "a", 8, uid="another")],
        [event("MODIFIED", "c", 8)],
        [event("MODIFIED", "a", 9)],
        [event("MODIFIED", "a", 8, uid="another", spec=1)],
        [mark(30)],
        [],
        # What is known, and then something of before: of two histories that part in between.
        [event("MODIFIED", "a", 8), event("ADDED", "c", 15)],
        [event("MODIFIED", "a", 8), event("ADDED", "c", 15, spec=1)],
    ],
)
def test_a_server_that_tells_something_else_is_not(stream: Stream) -> None:
    """All is listed anew, not older than what was known, and nothing told before."""
    log, asked, made = follow(
        [event("ADDED", "a", 5), mark(6, END), event("MODIFIED", "a", 8), mark(20)],
        stream,
        [event("ADDED", "c", 15), mark(30, END)],
    )
    assert log == ["=a", "+a", "=c"]
    assert asked[2]["sendInitialEvents"] == "true"
    assert asked[2]["resourceVersion"] == "20"
    assert (made.version, made.lists) == ("30", 2)


def test_a_server_that_is_silent_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is behind says nothing at all."""
    monkeypatch.setattr(watch, "PROOF_SECONDS", 0.05)
    log, asked, _ = follow(
        [event("ADDED", "a", 5), mark(6, END)],
        [60.0],
        [mark(30, END), 0.1, event("ADDED", "b", 31)],
    )
    assert [each["resourceVersion"] for each in asked][:3] == ["0", "4", "6"]
    assert "sendInitialEvents" in asked[2]
    assert log == ["=a", "=", "+b"]


def test_one_that_has_told_it_may_be_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """As any other then."""
    monkeypatch.setattr(watch, "PROOF_SECONDS", 0.05)
    last = event("ADDED", "a", 5)
    log, _, made = follow([last, mark(6, END)], [last, 0.1, event("ADDED", "b", 7)])
    assert log == ["=a", "+b"]
    assert made.lists == 1


def test_versions_go_on() -> None:
    """Something of a version that was told already is of another history."""
    log, asked, _ = follow(
        [event("ADDED", "a", 5), mark(6, END), mark(20), event("ADDED", "b", 12)],
        [event("ADDED", "b", 12), mark(30, END)],
    )
    assert log == ["=a", "=b"]
    assert asked[1]["resourceVersion"] == "20"


@pytest.mark.parametrize("version", ["", "x7"])
def test_without_anything_to_prove_it_by_all_is_listed(version: str) -> None:
    """Nothing is there, or versions are no numbers."""
    there = [json.dumps({"type": "ADDED", "object": {"metadata": {"name": "a"}}})]
    there = [each.replace('"a"', f'"a", "resourceVersion": "{version}"') for each in there]
    for some in ([], there):
        log, asked, made = follow([*some, mark(6, END)], [*some, mark(7, END)])
        assert [each["resourceVersion"] for each in asked] == ["0", "6", "7"]
        assert made.lists == 2
        assert len(log) == 2


def test_a_stream_that_ends_before_its_mark_says_nothing() -> None:
    """However cleanly."""
    log, _, made = follow([event("ADDED", "a")], [], [event("ADDED", "a"), mark(5, END)])
    assert log == ["=a"]
    assert made.lists == 1


@pytest.mark.parametrize(
    "end",
    [
        error(410),
        ApiError("lost"),
        ApiError("gone", objects.ApiStatus(code=410)),
        ApiError("away", objects.ApiStatus(code=503)),
        "nonsense",
    ],
)
def test_any_other_end_has_the_state_told_anew(end: str | ApiError) -> None:
    """Not older than what was known."""
    log, asked, _ = follow([mark(7, END), event("ADDED", "a", 8), end], [mark(9, END)])
    assert log == ["=", "+a", "="]
    assert asked[1]["sendInitialEvents"] == "true"
    assert asked[1]["resourceVersion"] == "8"


def test_history_that_went_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A version that the server doesn't come to: after a time it is forgotten."""
    late = error(504, "Timeout", "ResourceVersionTooLarge")
    _, asked, _ = follow([mark(7, END), ApiError("lost")], [late], [late])
    assert [each.get("resourceVersion") for each in asked] == ["0", "7", "7", "7"]
    monkeypatch.setattr(watch, "TOO_LARGE_SECONDS", 0.0)
    log, asked, _ = follow([mark(7, END), ApiError("lost")], [late], [late], [mark(2, END)])
    assert [each.get("resourceVersion") for each in asked][:3] == ["0", "7", "7"]
    assert "resourceVersion" not in asked[3]
    assert log == ["=", "="]


def test_an_object_that_cannot_be_read_fails_no_other() -> None:
    """It stays as it was: it is neither told as another, nor as gone."""
    log, _, made = follow(
        [
            event("ADDED", "a"),
            event("ADDED", "b", spec={"ports": [{"port": "http"}]}),
            mark(5, END),
            event("MODIFIED", "a", 6, spec={"ports": 1}),
            event("MODIFIED", "c", 7, spec=None),
            event("MODIFIED", "d", 8, spec={"ports": None, "clusterIPs": None, "future": [1]}),
            event("DELETED", "a", 9, spec={"ports": 1}),
        ]
    )
    assert log[0].startswith("?b: can't be read, and stays as it was: Expected `int`, got `str`")
    assert log[1] == "=a but b"
    assert log[2].startswith("?a: ")
    assert log[3].startswith("?c: ")
    assert log[4:] == ["+d", "-a"]
    assert made.version == "9"


def test_the_server_says_when() -> None:
    """Retry-After, and its own details."""
    made = Reflector(cast("Api", None), SERVICES, Told())
    assert made._judge(ApiError("busy", objects.ApiStatus(code=429), after=7.0)) == 7.0
    waits = [made._judge(ApiError("away", objects.ApiStatus(code=500))) for _ in range(24)]
    assert all(wait <= 30 for wait in waits)
    assert waits[-1] >= 15


def test_streamed_lists_that_are_refused() -> None:
    """Pages, for good."""
    made = Reflector(cast("Api", None), SERVICES, Told())
    assert made._judge(ApiError("forbidden", objects.ApiStatus(code=422))) == 0
    assert not made._streams
