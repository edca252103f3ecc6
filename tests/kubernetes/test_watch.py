# SPDX-License-Identifier: Apache-2.0
"""What a list and a watch must bear, against the real API server: one kind, in this process."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import stat
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.kubernetes.harness_watch import SECONDS, Running, delete, make, running

from towpath.agent.sources.kubernetes import access, client, identity, watch
from towpath.agent.sources.kubernetes.access import read_kubeconfig
from towpath.agent.sources.kubernetes.client import Api, ApiError
from towpath.agent.sources.kubernetes.events import Events
from towpath.agent.sources.kubernetes.settings import resources
from towpath.core.kubernetes.problems import Refusal
from towpath.model import parse_config

if TYPE_CHECKING:
    from tools.kubernetes.control_plane import ControlPlane

    from towpath.agent.sources.kubernetes.access import Place


@pytest.fixture
def place(control_plane: ControlPlane) -> Place:
    """Where it is."""
    return read_kubeconfig(control_plane.kubeconfig, None)


def test_a_state_and_what_changes(control_plane: ControlPlane, place: Place) -> None:
    """Streamed; once, whatever comes after it."""
    make(control_plane, "first")
    with running(place) as made:
        made.until(lambda: {"kubernetes", "first"} <= made.told.names)
        make(control_plane, "second")
        made.until(lambda: "second" in made.told.names)
        delete(control_plane, "second")
        delete(control_plane, "first")
        made.until(lambda: not {"first", "second"} & made.told.names)
        assert made.told.replaced == made.reflector.lists == 1
        assert made.reflector.error is None


def test_lists_in_pages(
    control_plane: ControlPlane, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where streamed lists are refused: as whole, and followed from there."""
    monkeypatch.setattr(watch, "PAGE", 2)
    asked: list[dict[str, str]] = []
    get = Api.get

    async def noted(self: Api, path: str, parameters: Any = None, *more: Any) -> bytes:
        asked.append(dict(parameters or {}))
        return await get(self, path, parameters, *more)

    monkeypatch.setattr(Api, "get", noted)
    for name in ("one", "two", "three"):
        make(control_plane, name)
    made = Running(place, streams=False)
    try:
        made.until(lambda: {"one", "two", "three", "kubernetes"} <= made.told.names)
        pages = [each for each in asked if each.get("limit") == "2"]
        assert len(pages) >= 2
        assert ["continue" in each for each in pages] == [False, *[True] * (len(pages) - 1)]
        assert made.reflector.lists == 1
        make(control_plane, "four")
        made.until(lambda: "four" in made.told.names)
    finally:
        made.close()
        for name in ("one", "two", "three", "four"):
            delete(control_plane, name)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_api_server_is_restarted(
    control_plane: ControlPlane, place: Place, number: signal.Signals
) -> None:
    """What was known stays known; what changes after it is told."""
    make(control_plane, "kept")
    with running(place) as made:
        control_plane.stop("apiserver", number=number)
        made.until(lambda: made.reflector.error is not None)
        assert "kept" in made.told.names
        control_plane.start("apiserver")
        delete(control_plane, "kept")
        made.until(lambda: "kept" not in made.told.names and made.reflector.error is None)
        assert "kubernetes" in made.told.names


def test_an_expired_version(control_plane: ControlPlane, place: Place) -> None:
    """410: all is told anew, not older than what was known."""
    made = Running(place)
    try:
        made.until(lambda: made.reflector.synced)

        def cut() -> None:
            made.reflector.version = "1"
            made.reflector._hurry.set()
            assert made.reflector._connecting is not None
            made.reflector._connecting.cancel()

        made._loop.call_soon_threadsafe(cut)
        made.until(lambda: made.reflector.lists > 1)
        make(control_plane, "later")
        made.until(lambda: "later" in made.told.names)
        assert "kubernetes" in made.told.names
        delete(control_plane, "later")
        made.until(lambda: "later" not in made.told.names)
    finally:
        made.close()


def test_history_that_went_back(
    control_plane: ControlPlane,
    place: Place,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A restored etcd: what is there replaces what was known, after a time."""
    monkeypatch.setattr(watch, "TOO_LARGE_SECONDS", 3.0)
    make(control_plane, "before")
    control_plane.snapshot(tmp_path / "snapshot")
    with running(place) as made:
        for number in range(50):
            make(control_plane, f"lost-{number}")
        made.until(lambda: "lost-49" in made.told.names)
        # Nobody else may write: the version would catch up.
        control_plane.stop("scheduler", "controller-manager")
        control_plane.restore(tmp_path / "snapshot")
        control_plane.stop("apiserver", number=signal.SIGKILL)
        control_plane.start("apiserver")
        made.until(lambda: "lost-49" not in made.told.names)
        assert {"kubernetes", "before"} <= made.told.names
        delete(control_plane, "before")
        made.until(lambda: "before" not in made.told.names)
    control_plane.start("controller-manager", "scheduler")


class Proxy:
    """Forwards to the API server, until it is told to go silent."""

    def __init__(self, port: int) -> None:
        self._to = port
        self.silent = 0
        """Of connections, those up to this number."""
        self.taken = 0
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                ours, _ = self._listener.accept()
                self.taken += 1
                theirs = socket.create_connection(("127.0.0.1", self._to))
                self._open += (ours, theirs)
                number = self.taken
                for pair in ((ours, theirs), (theirs, ours)):
                    threading.Thread(target=self._copy, args=(*pair, number), daemon=True).start()

    def _copy(self, source: socket.socket, to: socket.socket, number: int) -> None:
        with suppress(OSError):
            while piece := source.recv(65536):
                while number <= self.silent:
                    time.sleep(0.05)
                to.sendall(piece)
            to.close()

    def close(self) -> None:
        """Take no more, and end what there is."""
        self.silent = 0
        self._listener.close()
        for each in self._open:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


def test_a_connection_that_dies_silently(
    control_plane: ControlPlane, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody says a word: the time of a few bookmarks, and all is told anew."""
    monkeypatch.setattr(client, "SILENCE_SECONDS", 3.0)
    proxy = Proxy(control_plane.port)
    place = replace(place, server=f"https://127.0.0.1:{proxy.port}")
    try:
        with running(place) as made:
            proxy.silent = proxy.taken
            make(control_plane, "unheard")
            made.until(lambda: "unheard" in made.told.names)
            assert made.reflector.lists > 1
            delete(control_plane, "unheard")
            made.until(lambda: "unheard" not in made.told.names)
            proxy.close()
    finally:
        proxy.close()


@pytest.mark.thorough
def test_a_slow_reader(
    control_plane: ControlPlane, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whom the server has given up, as it reads too slowly, goes on from what it has read."""
    make(control_plane, "fat")
    make(control_plane, "short-lived")
    with running(place) as made:
        lists, before = made.reflector.lists, given_up(control_plane)
        goes_on, put = threading.Event(), made.told.put

        def slow(found: Any) -> None:
            assert goes_on.wait(SECONDS)
            put(found)

        monkeypatch.setattr(made.told, "put", slow)
        for number in range(1000):
            fatten(control_plane, "fat", number)
            if given_up(control_plane) > before:
                break
        assert given_up(control_plane) > before
        make(control_plane, "late")
        delete(control_plane, "short-lived")
        goes_on.set()
        made.until(lambda: "late" in made.told.names and "short-lived" not in made.told.names)
        assert made.reflector.lists == lists
        for name in ("late", "fat"):
            delete(control_plane, name)
        made.until(lambda: not made.told.names & {"late", "fat"})


def fatten(control_plane: ControlPlane, name: str, number: int) -> None:
    """Change a Service, so that its event is as large as may be."""
    path = f"/api/v1/namespaces/default/services/{name}"
    body = {"metadata": {"annotations": {"fat": str(number) + 200_000 * "x"}}}
    assert control_plane.request("PATCH", path, body, "application/merge-patch+json")[0] == 200


def given_up(control_plane: ControlPlane) -> float:
    """Watches that the server has ended for that, as it counts them."""
    said = control_plane.request("GET", "/metrics")[1]
    return sum(
        float(line.rpartition(" ")[2])
        for line in said.splitlines()
        if line.startswith("apiserver_terminated_watchers_total")
    )


def test_a_token_that_is_replaced(
    control_plane: ControlPlane, place: Place, tmp_path: Path
) -> None:
    """A refused token has its file read again, at once."""
    token = tmp_path / "token"
    token.write_text("wrong\n")
    made = Running(replace(place, token=None, token_file=token))
    try:
        made.until(lambda: "401" in (made.reflector.error or ""))
        token.write_text(f"{control_plane.token}\n")
        made.until(lambda: "kubernetes" in made.told.names)
    finally:
        made.close()


def test_a_plugin_is_run_again(control_plane: ControlPlane, place: Place, tmp_path: Path) -> None:
    """When what it gave is refused, or has expired; what it fails with is told."""
    given, program = tmp_path / "given", tmp_path / "plugin"
    program.write_text(f"#!/bin/sh\necho run >>{tmp_path}/runs\nexec cat {given}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    plugin = access.Plugin(str(program))
    made = Running(replace(place, token=None, plugin=plugin))
    try:
        made.until(lambda: "ended with 1" in (made.reflector.error or ""))
        given.write_text(json.dumps({"status": {"token": "wrong"}}))
        made.until(lambda: "401" in (made.reflector.error or ""))
        given.write_text(json.dumps({"status": {"token": control_plane.token}}))
        made.until(lambda: "kubernetes" in made.told.names)
        runs = (tmp_path / "runs").read_text().count("run")
        make(control_plane, "signed")
        made.until(lambda: "signed" in made.told.names)
        assert (tmp_path / "runs").read_text().count("run") == runs
        delete(control_plane, "signed")
    finally:
        made.close()


def test_etcd_is_away(control_plane: ControlPlane, place: Place) -> None:
    """What was known stays known; a client that begins then knows nothing, and says so."""
    make(control_plane, "known")
    with running(place) as made:
        os.kill(control_plane.program("etcd").pid, signal.SIGSTOP)
        try:
            late = Running(place)
            time.sleep(3)
            # From the API server's memory, or not at all: never empty.
            assert late.told.replaced == 0 or "known" in late.told.names
            late.close()
            assert "known" in made.told.names
        finally:
            os.kill(control_plane.program("etcd").pid, signal.SIGCONT)
        make(control_plane, "after")
        made.until(lambda: "after" in made.told.names)
        delete(control_plane, "after")
        delete(control_plane, "known")


def test_what_a_pod_is_given(
    control_plane: ControlPlane, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The environment, an authority, and an account's token, which the kubelet writes anew."""
    rules = Path(__file__).resolve().parents[2] / "deploy" / "kubernetes" / "rbac.yaml"
    control_plane.kubectl("apply", "-f", str(rules))

    def give() -> None:
        path = "/api/v1/namespaces/kube-system/serviceaccounts/towpath/token"
        status, answer = control_plane.request("POST", path, {"spec": {}})
        assert status == 201
        # As the kubelet does: at once, by a rename.
        (tmp_path / "new").write_text(answer["status"]["token"])
        (tmp_path / "new").rename(tmp_path / "token")

    (tmp_path / "ca.crt").write_bytes(control_plane.authority.read_bytes())
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(control_plane.port))
    (tmp_path / "token").write_text("expired")
    made = Running(access.in_pod(at=tmp_path))
    try:
        made.until(lambda: "401" in (made.reflector.error or ""))
        give()
        made.until(lambda: made.reflector.synced)
    finally:
        made.close()


def test_the_account_is_enough_and_no_more(control_plane: ControlPlane, place: Place) -> None:
    """With deploy/kubernetes/rbac.yaml all is followed; what isn't needed is refused."""
    rules = Path(__file__).resolve().parents[2] / "deploy" / "kubernetes" / "rbac.yaml"
    control_plane.kubectl("apply", "-f", str(rules))
    path = "/api/v1/namespaces/kube-system/serviceaccounts/towpath/token"
    status, answer = control_plane.request("POST", path, {"spec": {}})
    assert status == 201
    place = replace(place, token=answer["status"]["token"])
    section = parse_config("kubernetes: {}", "towpath.yaml").sections["kubernetes"]
    for resource in resources(section):
        with running(place, resource):
            pass

    async def ask() -> list[int]:
        codes = []
        async with Api(place) as api:
            await api.get(identity.PATH)
            events = Events(api, "n1")
            refusal = Refusal("Service", "default", "any", "Tried", "by a test")
            await events._write(refusal)
            assert not events._forbidden
            for path in ("/api/v1/pods", "/api/v1/secrets", "/api/v1/namespaces/default"):
                with pytest.raises(ApiError) as caught:
                    await api.get(path)
                codes.append(caught.value.code)
        await asyncio.sleep(0.3)
        return codes

    assert asyncio.run(ask()) == [403, 403, 403]
    found = control_plane.get("events")["items"]
    assert [each["message"] for each in found if each["reason"] == "Tried"] == ["by a test"]
