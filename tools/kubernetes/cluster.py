# SPDX-License-Identifier: Apache-2.0
"""A control plane with nodes, whose pods reach each other directly."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tools.kubernetes import control_plane, kept
from tools.kubernetes.errors import KubernetesError
from tools.kubernetes.node import Node, ip
from tools.kubernetes.programs import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from tools.kubernetes.control_plane import ControlPlane
    from tools.kubernetes.node import Layout

_PROBE = {"httpGet": {"path": "/ready", "port": 8099}, "periodSeconds": 1, "failureThreshold": 1}


class Cluster:
    """One that runs."""

    def __init__(self, plane: ControlPlane, nodes: Sequence[Node]) -> None:
        self.plane = plane
        self.nodes = list(nodes)

    def node(self, name: str) -> Node:
        """One of the nodes."""
        return next(each for each in self.nodes if each.name == name)

    def up(self) -> None:
        """Bring up all nodes at once."""
        with ThreadPoolExecutor() as pool:
            try:
                for done in [pool.submit(node.up) for node in self.nodes]:
                    done.result()
            except BaseException:
                # Nobody waits for what is to be taken down.
                for node in self.nodes:
                    node.end()
                raise
        for node in self.nodes:
            for other in self.nodes:
                if node is not other:
                    node.route_to(other)
            for each in node.pod_ranges:
                ip("route", "add", each, "via", node.address6 if ":" in each else node.address)

    def down(self) -> None:
        """End all nodes."""
        with ThreadPoolExecutor() as pool:
            for done in [pool.submit(node.down) for node in self.nodes]:
                done.result()

    def make(self, *objects: Mapping[str, Any]) -> None:
        """Make objects, and wait until the pods among them are ready."""
        self.plane.apply(*objects)
        pods = [each for each in objects if each["kind"] == "Pod"]
        for each in pods:
            namespace = each["metadata"].get("namespace", "default")
            self.wait_for_pod(each["metadata"]["name"], namespace)

    def wait_for_pod(
        self, name: str, namespace: str = "default", seconds: float = PATIENCE
    ) -> None:
        """Return when it is ready. KubernetesError: that takes too long."""
        self.wait(lambda: is_ready(self.pod(name, namespace)), seconds, f"pod {name} ready")

    def pod(self, name: str, namespace: str = "default") -> dict[str, Any]:
        """What the API server knows of a pod; empty: there is none."""
        status, found = self.plane.request("GET", f"/api/v1/namespaces/{namespace}/pods/{name}")
        return found if status == 200 else {}  # noqa: PLR2004

    def run_in_pod(self, name: str, *words: str, namespace: str = "default") -> str:
        """Return what a command in a pod says, as `kubectl exec` runs it."""
        return self.plane.kubectl("-n", namespace, "exec", name, "--", *words)

    @staticmethod
    def wait(done: Callable[[], bool], seconds: float, what: str) -> None:
        """Return when something is so. KubernetesError: that takes too long."""
        limit = time.monotonic() + seconds
        while not done():
            if time.monotonic() > limit:
                raise KubernetesError(f"{what}: not after {seconds:.0f} s")
            time.sleep(0.1)


def is_ready(pod: Mapping[str, Any]) -> bool:
    """Whether a pod is ready, as its status has it."""
    conditions = pod.get("status", {}).get("conditions", [])
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def server_pod(
    name: str,
    node: str,
    ports: Mapping[str, int],
    *,
    labels: Mapping[str, str] | None = None,
    linger: float = 0.0,
    host_network: bool = False,
    namespace: str = "default",
) -> dict[str, Any]:
    """A pod that says its name on TCP and UDP ports, which are named; its readiness is told to it.

    ``linger``: it goes on serving so long when it is told to end.
    """
    environment = [{"name": "NAME", "value": name}, {"name": "LINGER", "value": str(linger)}]
    container = {
        "name": "server",
        "image": kept.TOOLS_IMAGE,
        "imagePullPolicy": "Never",
        "args": ["serve", *map(str, ports.values())],
        "env": environment,
        "readinessProbe": _PROBE,
        "ports": [
            {"name": f"{each}{suffix}", "containerPort": port, "protocol": protocol}
            for each, port in ports.items()
            for suffix, protocol in (("", "TCP"), ("-u", "UDP"))
        ],
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": dict(labels or {"app": name})},
        "spec": {
            "nodeName": node,
            "hostNetwork": host_network,
            "terminationGracePeriodSeconds": int(linger) + 1,
            "automountServiceAccountToken": False,
            "containers": [container],
        },
    }


def asked(said: str) -> list[dict[str, Any]]:
    """What the client of ``pod.py`` has said."""
    found: list[dict[str, Any]] = json.loads(said)
    return found


@contextmanager
def cluster(
    names: Sequence[str] = ("one", "two"),
    layouts: Mapping[str, Layout] | None = None,
    newer: Collection[str] = (),
) -> Iterator[Cluster]:
    """A control plane with nodes of these names; nothing is left of them.

    ``layouts``: of their cgroups, by name, where that isn't the usual one. ``newer``: those that
    have containerd 2.
    """
    with control_plane.control_plane(with_nodes=True) as plane:
        chosen = layouts or {}
        nodes = [
            Node(plane, name, index, chosen.get(name, "unified"), newer=name in newer)
            for index, name in enumerate(names, 1)
        ]
        made = Cluster(plane, nodes)
        try:
            made.up()
            yield made
        finally:
            made.down()
