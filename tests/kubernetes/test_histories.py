# SPDX-License-Identifier: Apache-2.0
"""A watch goes on only where the server shows that it has what is known, and as it was."""

from __future__ import annotations

import signal
from functools import partial
from typing import TYPE_CHECKING

import pytest
from tests.kubernetes.harness_watch import delete, make, running

from towpath.agent.sources.kubernetes import watch
from towpath.agent.sources.kubernetes.access import read_kubeconfig
from towpath.agent.sources.kubernetes.history import number
from towpath.agent.sources.kubernetes.watch import Resource
from towpath.model.sources.kubernetes import objects

if TYPE_CHECKING:
    from pathlib import Path

    from tools.kubernetes.control_plane import ControlPlane

    from towpath.agent.sources.kubernetes.access import Place

pytestmark = pytest.mark.thorough
LABELLED = Resource(objects.Service, "/api/v1/services", "services", "!hidden")


@pytest.fixture
def place(control_plane: ControlPlane) -> Place:
    """Where it is."""
    return read_kubeconfig(control_plane.kubeconfig, None)


def label(control_plane: ControlPlane, name: str, value: str | None) -> None:
    """Give a Service a label, or take it away."""
    path = f"/api/v1/namespaces/default/services/{name}"
    body = {"metadata": {"labels": {"hidden": value}}}
    assert control_plane.request("PATCH", path, body, "application/merge-patch+json")[0] == 200


def test_a_watch_goes_on(control_plane: ControlPlane, place: Place) -> None:
    """Whatever was the last change, and without a list."""
    with running(place, LABELLED) as made:
        names = made.told.names

        def changed(*, there: bool) -> None:
            made.until(lambda: ("mine" in names) == there)
            made.pause()
            made.resume()
            # Nothing is told until the server has shown the last change.
            make(control_plane, "next")
            made.until(lambda: "next" in names)
            made.pause()
            delete(control_plane, "next")
            made.resume()
            made.until(lambda: "next" not in names)

        make(control_plane, "mine")
        changed(there=True)
        label(control_plane, "mine", "yes")
        changed(there=False)
        label(control_plane, "mine", None)
        changed(there=True)
        delete(control_plane, "mine")
        changed(there=False)
        assert made.reflector.lists == 1
        assert made.told.replaced == 1


def test_the_server_ends_it(
    control_plane: ControlPlane, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After its time, as it does after half an hour."""
    monkeypatch.setattr(watch, "WATCH_SECONDS", (1, 1))
    with running(place) as made:
        for each in ("one", "two", "three"):
            make(control_plane, each)
            made.until(partial(made.told.names.__contains__, each))
            asked = made.api.asked
            made.until(partial(made.has_asked, asked + 2))
        for each in ("one", "two", "three"):
            delete(control_plane, each)
        made.until(lambda: not made.told.names & {"one", "two", "three"})
        assert made.reflector.lists == 1


@pytest.mark.parametrize("caught_up", [False, True])
def test_a_database_that_was_put_back_meanwhile(
    control_plane: ControlPlane,
    place: Place,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    caught_up: bool,
) -> None:
    """What is lost and what is new is told, also when versions have come to the same again."""
    monkeypatch.setattr(watch, "PROOF_SECONDS", 3.0)
    monkeypatch.setattr(watch, "TOO_LARGE_SECONDS", 3.0)
    make(control_plane, "before")
    control_plane.snapshot(tmp_path / "snapshot")
    with running(place) as made:
        for each in range(20):
            make(control_plane, f"lost-{each}")
        made.until(lambda: "lost-19" in made.told.names)
        made.pause()
        known = number(made.reflector.version)
        # Nobody else may write: versions would catch up.
        control_plane.stop("scheduler", "controller-manager")
        control_plane.restore(tmp_path / "snapshot")
        control_plane.stop("apiserver", number=signal.SIGKILL)
        control_plane.start("apiserver")
        make(control_plane, "new")
        while caught_up and newest(control_plane) <= known:
            make(control_plane, "filling")
            delete(control_plane, "filling")
        made.resume()
        made.until(lambda: "new" in made.told.names)
        made.until(lambda: "lost-19" not in made.told.names)
        assert {"kubernetes", "before"} <= made.told.names
        for name in ("new", "before"):
            delete(control_plane, name)
        made.until(lambda: not {"new", "before"} & made.told.names)
    control_plane.start("controller-manager", "scheduler")


def newest(control_plane: ControlPlane) -> int:
    """The version that a list has now."""
    status, found = control_plane.request("GET", "/api/v1/namespaces/default/services?limit=1")
    assert status == 200
    return number(found["metadata"]["resourceVersion"])
