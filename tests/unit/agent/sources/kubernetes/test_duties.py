# SPDX-License-Identifier: Apache-2.0
"""Credentials that are replaced while an agent runs, and a server that refuses, over real TLS."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from tests.unit.agent.sources.kubernetes.harness_api import (
    SERVICES,
    ApiServer,
    Known,
    refusal,
    serving,
    until,
)
from tools.kubernetes.certificates import make_authority, sign

from towpath.agent.sources.kubernetes import access, client, watch
from towpath.agent.sources.kubernetes.access import AccessError, Place, Plugin
from towpath.agent.sources.kubernetes.client import Api, ApiError
from towpath.agent.sources.kubernetes.watch import Reflector, Resource
from towpath.model.sources.kubernetes import objects

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from aiohttp import web


RESOURCE = Resource(objects.Service, SERVICES, "services")


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tried again is tried soon."""
    monkeypatch.setattr(watch, "FIRST_SECONDS", 0.01)


@asynccontextmanager
async def following(place: Place) -> AsyncIterator[tuple[Known, Reflector]]:
    """One kind is followed in the block."""
    async with Api(place) as api:
        told = Known()
        made = Reflector(api, RESOURCE, told)
        task = asyncio.ensure_future(made.run())
        try:
            yield told, made
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


def service(name: str) -> dict[str, Any]:
    """One."""
    return {"metadata": {"name": name, "namespace": "default"}}


def filled(number: int = 1) -> ApiServer:
    """With so many Services."""
    made = ApiServer()
    for each in range(number):
        made.put(SERVICES, service(f"s{each}"))
    return made


# ---- Lists in pages ------------------------------------------------------------------------------


def without_streams(request: web.Request) -> web.Response | None:
    """As a server of before 1.32 says of a streamed list."""
    return refusal(422, "Invalid") if "sendInitialEvents" in request.query else None


@pytest.mark.parametrize("code", [410, 500])
def test_a_list_in_pages_is_whole_or_none(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token that has expired, and pages of two times, are no state: the list begins anew."""
    monkeypatch.setattr(watch, "PAGE", 2)

    async def run() -> None:
        async with serving(filled(7)) as server:
            expired = 0

            def answer(request: web.Request) -> web.Response | None:
                nonlocal expired
                if request.query.get("continue") == "4" and not expired:
                    expired += 1
                    # Of a page that was sent already and one that was not.
                    server.delete(SERVICES, "s0")
                    server.put(SERVICES, service("s9"))
                    return refusal(code, "Expired")
                return without_streams(request)

            server.answer = answer
            async with following(Place(server.url)) as (told, made):
                await until(lambda: made.synced, "a state")
                assert told.replaced == [[f"s{each}" for each in (1, 2, 3, 4, 5, 6, 9)]]
                pages = [of.get("continue") for _, of in server.asked if "limit" in of]
                assert pages == [None, "2", "4", None, "2", "4", "6"]
                server.put(SERVICES, service("later"))
                await until(lambda: "later" in told.services, "a change")
                assert made.lists == 1
                # The watch goes on, and later states come in pages too.
                server.end_watches()
                server.put(SERVICES, service("last"))
                await until(lambda: "last" in told.services, "a change")
                assert made.lists == 1

    asyncio.run(run())


# ---- A server that wants to be left alone --------------------------------------------------------


@pytest.mark.parametrize("code", [429, 503])
def test_a_server_that_says_when(code: int) -> None:
    """It isn't asked before, be it for a state or for more of a watch."""

    async def run() -> None:
        async with serving(filled()) as server:
            times: list[float] = []

            def answer(request: web.Request) -> web.Response | None:
                del request
                times.append(time.monotonic())
                if len(times) in {1, 3}:
                    return refusal(code, "Busy", {"Retry-After": "1"})
                return None

            server.answer = answer
            async with following(Place(server.url)) as (told, made):
                await until(lambda: "s0" in told.services, "a state")
                assert times[1] - times[0] >= 1
                assert "Busy" not in str(made.error)
                server.end_watches()
                await until(lambda: len(times) == 3, "the watch")
                server.put(SERVICES, service("later"))
                await until(lambda: "later" in told.services, "a change")
                assert times[3] - times[2] >= 1

    asyncio.run(run())


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After": "99999999"}, 120.0),
        ({"Retry-After": "Fri, 31 Dec 1999 23:59:59 GMT"}, 0.0),
        ({"Retry-After": "-1"}, 0.0),
        ({}, 0.0),
    ],
)
def test_what_it_says(headers: dict[str, str], seconds: float) -> None:
    """Seconds, as the API server does; nobody is believed for a day."""

    async def run() -> None:
        async with serving(filled()) as server, Api(Place(server.url)) as api:
            server.answer = lambda _: refusal(429, "Busy", headers)
            with pytest.raises(ApiError) as caught:
                await api.get(SERVICES)
            assert (caught.value.code, caught.value.after) == (429, seconds)

    asyncio.run(run())


# ---- Credentials ---------------------------------------------------------------------------------


class Door:
    """Lets in who has the right token."""

    def __init__(self, server: ApiServer, token: str) -> None:
        self._token = token
        self.refused = 0
        server.answer = self.answer

    def opens_for(self, token: str) -> None:
        """Another one is right from now on."""
        self._token = token

    def answer(self, request: web.Request) -> web.Response | None:
        """Refuse, or nothing."""
        if request.headers.get("Authorization") == f"Bearer {self._token}":
            return None
        self.refused += 1
        return refusal(401, "Unauthorized")


def rename(path: Path, text: str) -> None:
    """Replace a file at once, as the kubelet does."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.rename(path)


def test_a_token_that_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is read again after a minute, before anybody refuses the old one."""
    monkeypatch.setattr(access, "TOKEN_SECONDS", 0.1)
    token = tmp_path / "token"
    token.write_text("one\n")

    async def run() -> None:
        async with serving(filled()) as server:
            door = Door(server, "one")
            async with following(Place(server.url, token_file=token)) as (told, made):
                await until(lambda: made.synced, "a state")
                rename(token, "two\n")
                await asyncio.sleep(0.11)
                door.opens_for("two")
                server.end_watches()
                server.put(SERVICES, service("later"))
                await until(lambda: "later" in told.services, "a change")
                assert door.refused == 0
                assert made.lists == 1

    asyncio.run(run())


def test_a_token_that_is_refused(tmp_path: Path) -> None:
    """The file is read again at once; one that is gone meanwhile keeps nothing from going on."""
    token = tmp_path / "token"
    token.write_text("one")

    async def run() -> None:
        async with serving(filled()) as server:
            door = Door(server, "one")
            async with following(Place(server.url, token_file=token)) as (told, made):
                await until(lambda: made.synced, "a state")
                door.opens_for("two")
                rename(token, "two")
                server.put(SERVICES, service("later"))
                server.end_watches()
                await until(lambda: door.refused, "a refusal")
                await until(lambda: "later" in told.services and not made.error, "a change")
                assert door.refused == 1
                token.unlink()
                door.opens_for("three")
                server.end_watches()
                await until(lambda: "No such file" in str(made.error), "what is wrong")
                assert told.services == {"s0", "later"}
                rename(token, "three")
                server.put(SERVICES, service("last"))
                await until(lambda: "last" in told.services and not made.error, "a change")

    asyncio.run(run())


PROGRAM = """#!/bin/sh
echo run >>{directory}/runs
exec cat {directory}/given
"""


def plugin(directory: Path) -> Plugin:
    """A program that gives what is in a file, and counts how often it runs."""
    program = directory / "plugin"
    program.write_text(PROGRAM.format(directory=directory))
    program.chmod(0o755)
    return Plugin(str(program))


def give(directory: Path, status: dict[str, str]) -> None:
    """Have it give that, which expires in an hour."""
    when = datetime.now(UTC) + timedelta(hours=1)
    # With nanoseconds, as programs in Go write it.
    status |= {"expirationTimestamp": f"{when:%Y-%m-%dT%H:%M:%S.%f}789Z"}
    (directory / "given").write_text(json.dumps({"status": status}))


def runs(directory: Path) -> int:
    """How often it ran."""
    return (directory / "runs").read_text().count("run")


def test_a_plugin_runs_before_what_it_gave_expires(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not for each request; nobody has to refuse the old one."""

    async def run() -> None:
        async with serving(filled()) as server:
            door = Door(server, "one")
            give(tmp_path, {"token": "one"})
            place = Place(server.url, plugin=plugin(tmp_path))
            async with following(place) as (told, made), Api(place) as api:
                await until(lambda: made.synced, "a state")
                began = runs(tmp_path)
                server.end_watches()
                await until(lambda: server.watches(SERVICES), "another watch")
                assert runs(tmp_path) == began == 1
                give(tmp_path, {"token": "two"})
                door.opens_for("two")
                with monkeypatch.context() as patch:
                    # So its time is all but over.
                    patch.setattr(access, "_EARLY_SECONDS", 4000)
                    server.end_watches()
                    server.put(SERVICES, service("later"))
                    await until(lambda: "later" in told.services, "a change")
                assert (door.refused, runs(tmp_path), made.lists) == (0, 2, 1)
                for _ in range(3):
                    await api.get(SERVICES)
                assert runs(tmp_path) == 3  # each client has its own

    asyncio.run(run())


def test_a_plugin_whose_token_is_refused_early(tmp_path: Path) -> None:
    """It runs again at once, whatever it said of its time."""

    async def run() -> None:
        async with serving(filled()) as server:
            door = Door(server, "two")
            give(tmp_path, {"token": "one"})
            async with following(Place(server.url, plugin=plugin(tmp_path))) as (told, made):
                await until(lambda: door.refused >= 2, "refusals")
                give(tmp_path, {"token": "two"})
                await until(lambda: made.synced and not made.error, "a state")
                assert told.services == {"s0"}
                number = runs(tmp_path)
                server.end_watches()
                await until(lambda: server.watches(SERVICES), "another watch")
                assert runs(tmp_path) == number

    asyncio.run(run())


@pytest.mark.parametrize("when", ["tomorrow", 17])
def test_a_plugin_whose_time_makes_no_sense(tmp_path: Path, when: object) -> None:
    """It is told with what it said."""

    async def run() -> None:
        (tmp_path / "given").write_text(
            json.dumps({"status": {"token": "t", "expirationTimestamp": when}})
        )
        async with Api(Place("http://127.0.0.1:1", plugin=plugin(tmp_path))) as api:
            with pytest.raises(AccessError, match=rf"expirationTimestamp {when!r} is no time"):
                await api.get(SERVICES)

    asyncio.run(run())


# ---- Certificates --------------------------------------------------------------------------------


def server_context(directory: Path) -> ssl.SSLContext:
    """Of a server that wants to know who asks."""
    make_authority(directory)
    sign(directory, "server", "/CN=server", ["IP:127.0.0.1"])
    made = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=directory / "ca.crt")
    made.load_cert_chain(directory / "server.crt", directory / "server.key")
    made.verify_mode = ssl.CERT_REQUIRED
    return made


class Guests:
    """Who has asked, by their certificates."""

    def __init__(self, server: ApiServer) -> None:
        self.names: list[str] = []
        server.answer = self.answer

    def answer(self, request: web.Request) -> None:
        """Let in whoever has one."""
        assert request.transport is not None
        subject = request.transport.get_extra_info("peercert")["subject"]
        self.names += [value for ((name, value),) in subject if name == "commonName"]


def test_certificates_that_are_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The next request has the new one; between two files that don't belong together, the old."""
    tls = server_context(tmp_path)
    for name in ("one", "two"):
        sign(tmp_path, name, f"/CN={name}")
    certificate, key = tmp_path / "client.crt", tmp_path / "client.key"

    def take(name: str, *ends: str) -> None:
        for end in ends:
            rename(tmp_path / f"client.{end}", (tmp_path / f"{name}.{end}").read_text())

    async def run() -> None:
        async with serving(filled(), tls) as server:
            guests = Guests(server)
            take("one", "crt", "key")
            authority = tmp_path / "ca.crt"
            place = Place(server.url, authority, certificate=certificate, key=key)
            async with following(place) as (told, made), Api(place) as api:
                await until(lambda: made.synced, "a state")
                await api.get(SERVICES)
                context = await api.credentials.tls()
                assert await api.credentials.tls() is context
                take("two", "crt")
                await api.get(SERVICES)
                assert set(guests.names) == {"one"}
                assert "those of before are used" in caplog.text
                take("two", "key")
                await api.get(SERVICES)
                assert guests.names[-1] == "two"
                # A watch that is open stays; the next one has the new certificate.
                server.put(SERVICES, service("later"))
                await until(lambda: "later" in told.services, "a change")
                number = guests.names.count("two")
                server.end_watches()
                await until(lambda: guests.names.count("two") > number, "another watch")
                server.put(SERVICES, service("last"))
                await until(lambda: "last" in told.services, "a change")
                assert made.lists == 1
                for each in (certificate, key):
                    each.unlink()
                await api.get(SERVICES)
            async with Api(place) as api:
                with pytest.raises(AccessError, match="No such file"):
                    await api.get(SERVICES)

    asyncio.run(run())


def test_a_plugin_that_gives_certificates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are replaced when they expire."""
    tls = server_context(tmp_path)

    def give_certificate(name: str) -> None:
        sign(tmp_path, name, f"/CN={name}")
        certificate, key = ((tmp_path / f"{name}.{end}").read_text() for end in ("crt", "key"))
        give(tmp_path, {"clientCertificateData": certificate, "clientKeyData": key})

    async def run() -> None:
        async with serving(filled(), tls) as server:
            guests = Guests(server)
            give_certificate("one")
            place = Place(server.url, tmp_path / "ca.crt", plugin=plugin(tmp_path))
            async with Api(place) as api:
                await api.get(SERVICES)
                assert runs(tmp_path) == 1
                give_certificate("two")
                await api.get(SERVICES)
                with monkeypatch.context() as patch:
                    patch.setattr(access, "_EARLY_SECONDS", 4000)
                    await api.get(SERVICES)
                await api.get(SERVICES)
                assert guests.names == ["one", "one", "two", "two"]
                assert runs(tmp_path) == 2

    asyncio.run(run())


def test_a_server_that_nobody_vouches_for(tmp_path: Path) -> None:
    """It is told nothing: neither the token nor what is asked for."""
    tls = server_context(tmp_path)
    tls.verify_mode = ssl.CERT_NONE
    other = tmp_path / "other"
    other.mkdir()
    make_authority(other)

    async def run() -> None:
        async with serving(filled(), tls) as server:
            for authority in (other / "ca.crt", None):
                place = Place(server.url, authority, basic=("me", "word"))
                async with Api(place) as api:
                    with pytest.raises(ApiError, match="certificate verify failed"):
                        await api.get(SERVICES)
            assert not server.asked
            good = Place(server.url, tmp_path / "ca.crt", server_name="another.example")
            async with Api(good) as api:
                with pytest.raises(ApiError, match=r"another\.example"):
                    await api.get(SERVICES)

    asyncio.run(run())


# ---- Connections ---------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [0, 1])
def test_a_connection_that_dies_silently(before: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is given up after the time of some bookmarks, be it in a state or after it."""
    monkeypatch.setattr(client, "SILENCE_SECONDS", 0.2)

    async def run() -> None:
        async with serving(filled()) as server:
            if not before:
                server.silent = {SERVICES}
            async with following(Place(server.url)) as (told, made):
                await until(lambda: server.lists(SERVICES) >= 1 + before, "a list")
                assert bool(told.replaced) == bool(before)
                server.silent = set()
                await until(lambda: server.lists(SERVICES) >= 2 + before, "another list")
                await until(lambda: made.synced, "a state")
                server.put(SERVICES, service("later"))
                await until(lambda: "later" in told.services, "a change")

    asyncio.run(run())
