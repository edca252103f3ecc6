# SPDX-License-Identifier: Apache-2.0
"""The control plane of these tests does what they need of it."""

from __future__ import annotations

import signal
import ssl
import time
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest
from tools.kubernetes import state
from tools.kubernetes.errors import KubernetesError

if TYPE_CHECKING:
    from pathlib import Path

    from tools.kubernetes.control_plane import ControlPlane


def service(name: str) -> dict[str, Any]:
    """A service that is accepted."""
    ports = [{"name": "web", "port": 80, "targetPort": 8080}]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"selector": {"app": name}, "ports": ports},
    }


def services(control_plane: ControlPlane) -> set[str]:
    """The names of the services that the API server tells of."""
    status, found = control_plane.request("GET", "/api/v1/namespaces/default/services")
    assert status == 200
    return {each["metadata"]["name"] for each in found["items"]}


def eventually(done: Any, seconds: float = 30.0) -> None:
    """Wait until something is true."""
    limit = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < limit
        time.sleep(0.1)


def test_its_certificate_and_token_are_asked_for(control_plane: ControlPlane) -> None:
    """A client that knows the authority trusts it; one without a token is refused."""
    context = ssl.create_default_context(cafile=str(control_plane.authority))
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(  # noqa: S310 - https
            urllib.request.Request(  # noqa: S310
                f"{control_plane.url}/api", headers={"Authorization": "Bearer wrong"}
            ),
            context=context,
        )
    assert control_plane.request("GET", "/version")[1]["gitVersion"] == "v1.37.2"


def test_slices_follow_services(control_plane: ControlPlane) -> None:
    """The controller-manager runs."""
    control_plane.apply(service("followed"))
    label = "kubernetes.io/service-name=followed"
    eventually(lambda: control_plane.get("endpointslices", "-l", label)["items"])
    control_plane.kubectl("delete", "service", "followed")
    eventually(lambda: not control_plane.get("endpointslices", "-l", label)["items"])


def test_it_is_told_that_kubectl_fails(control_plane: ControlPlane) -> None:
    """With kubectl's own words."""
    with pytest.raises(KubernetesError, match='"absent" not found'):
        control_plane.kubectl("get", "service", "absent")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_api_server_is_started_again(
    control_plane: ControlPlane, number: signal.Signals
) -> None:
    """With what it knew."""
    control_plane.apply(service("kept"))
    control_plane.stop("apiserver", number=number)
    assert not control_plane.ready()
    control_plane.start("apiserver")
    assert "kept" in services(control_plane)
    control_plane.kubectl("delete", "service", "kept")


def test_etcd_is_put_back(control_plane: ControlPlane, tmp_path: Path) -> None:
    """What was written since the snapshot is gone once the API server was restarted."""
    control_plane.apply(service("before"))
    control_plane.snapshot(tmp_path / "snapshot")
    control_plane.apply(service("after"))
    control_plane.restore(tmp_path / "snapshot")
    control_plane.stop("apiserver", number=signal.SIGKILL)
    control_plane.start("apiserver")
    assert services(control_plane) == {"kubernetes", "before"}


def test_etcd_begins_anew(control_plane: ControlPlane) -> None:
    """It is another cluster then: its first namespace has another identity."""
    identity = control_plane.get("namespace", "kube-system")["metadata"]["uid"]
    control_plane.apply(service("lost"))
    control_plane.stop("apiserver", number=signal.SIGKILL)
    control_plane.empty()
    control_plane.start("apiserver")
    eventually(lambda: services(control_plane) == {"kubernetes"})
    assert control_plane.get("namespace", "kube-system")["metadata"]["uid"] != identity


def test_a_run_that_was_killed_leaves_nothing_for_good() -> None:
    """The next one removes its directory; those of runs that live stay."""
    state.PARENT.mkdir(exist_ok=True)
    dead = state.PARENT / f"{state._PREFIX}dead"
    dead.mkdir()
    (dead / "lock").touch()
    with state.directory() as first, state.directory() as second:
        assert not dead.exists()
        assert first.exists()
        assert second.exists()
    assert not first.exists()
    assert not second.exists()
