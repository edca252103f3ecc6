# SPDX-License-Identifier: Apache-2.0
"""An agent that follows a real API server, servers that are endpoints, a process that connects."""

from __future__ import annotations

import json
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from tests.kubernetes.harness_agents import SECONDS, Following
from tests.prog.kernel.harness_cgroups import new_cgroup
from tests.prog.socket.harness import BACKENDS, BACKENDS6, Child, Servers

from towpath.api.client import Client
from towpath.lab.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from tools.kubernetes.control_plane import ControlPlane

    from towpath.api.documents import SourceStatus

NODE = "n1"
NODE_ADDRESSES = ("10.78.0.1", "fd78::1")
PORT = 8080


class Follower(Following):
    """The agent of a node that is an object and nothing else."""

    options: ClassVar[dict[str, Any]] = {}
    """More of the section."""

    def __init__(self, control_plane: ControlPlane, directory: Path, cgroup: Path) -> None:
        self.control_plane = control_plane
        self.section: dict[str, Any] = {
            "kubeconfig": str(control_plane.kubeconfig),
            "node": NODE,
            "external_ips": ["198.51.100.0/24"],
        } | self.options
        super().__init__(directory, cgroup, self.section)

    def until(self, done: Any, what: str) -> None:
        """Wait until something is true of the source's status."""
        wait_until(lambda: done(self.status()), seconds=SECONDS, what=what)

    def until_synced(self) -> None:
        """Wait until all kinds are known and followed."""
        self.until(
            lambda found: (
                found.accepted is not None
                and len(found.kinds) > 2
                and all(each.synced and each.error is None for each in found.kinds)
            ),
            "all kinds to be followed",
        )

    def services(self) -> dict[str, dict[str, int | None]]:
        """Backends' addresses and ports by service, of those that are Kubernetes'."""
        with Client(self.agent.socket) as client:
            return {
                entry.service.name: {
                    str(each.address): each.port for each in entry.service.backends
                }
                for entry in client.entries()
                if entry.owner == "kubernetes"
            }

    def until_served(self, name: str, *addresses: str) -> None:
        """Wait until a service has these backends."""
        wait_until(
            lambda: set(self.services().get(name, {"": None})) == set(addresses),
            seconds=SECONDS,
            what=f"{name} to have {addresses}",
        )


@contextmanager
def following(control_plane: ControlPlane, directory: Path) -> Iterator[tuple[Follower, Child]]:
    """Endpoints on addresses of this namespace, an agent, and a process in its cgroup."""
    addresses = (*BACKENDS, *BACKENDS6, *NODE_ADDRESSES)
    lines = [
        "link set lo up",
        *(f"addr replace {each}/{128 if ':' in each else 32} dev lo" for each in addresses),
    ]
    subprocess.run(["ip", "-batch", "-"], input="\n".join(lines), text=True, check=True)
    control_plane.request("POST", "/api/v1/nodes", node())
    status = {"status": {"addresses": node()["status"]["addresses"]}}
    control_plane.request(
        "PATCH", f"/api/v1/nodes/{NODE}/status", status, "application/merge-patch+json"
    )
    with new_cgroup() as cgroup, Servers((*BACKENDS, *BACKENDS6), (PORT,)), Child(cgroup) as child:
        made = Follower(control_plane, directory, cgroup)
        try:
            made.agent.start()
            yield made, child
        finally:
            if made.agent.process is not None and made.agent.process.poll() is None:
                made.agent.end()
            made.end()


def node(name: str = NODE, zone: str = "a") -> dict[str, Any]:
    """A Node that is an object and nothing else."""
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {"topology.kubernetes.io/zone": zone}},
        "status": {
            "addresses": [{"type": "InternalIP", "address": each} for each in NODE_ADDRESSES]
        },
    }


def service(name: str, namespace: str = "default", **spec: Any) -> dict[str, Any]:
    """A Service without a selector: its slices are made by hand."""
    ports = [{"name": "web", "port": 80, "targetPort": PORT}]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"ports": ports} | spec,
    }


def endpoints(*addresses: str, **more: Any) -> list[dict[str, Any]]:
    """As a slice has them."""
    return [{"addresses": [each], "conditions": {"ready": True}} | more for each in addresses]


def slice_of(
    name: str,
    listed: Iterable[dict[str, Any]],
    suffix: str = "a",
    ports: list[dict[str, Any]] | None = None,
    family: str = "IPv4",
) -> dict[str, Any]:
    """An EndpointSlice."""
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"{name}-{suffix}",
            "namespace": "default",
            "labels": {"kubernetes.io/service-name": name},
        },
        "addressType": family,
        "endpoints": list(listed),
        "ports": ports or [{"name": "web", "port": PORT, "protocol": "TCP"}],
    }


def cluster_ip(control_plane: ControlPlane, name: str) -> str:
    """The address that a Service was given."""
    found: str = control_plane.get("service", name)["spec"]["clusterIP"]
    return found


def told(found: SourceStatus) -> str:
    """What isn't served, in one text."""
    return json.dumps([each.message for each in found.unserved])
