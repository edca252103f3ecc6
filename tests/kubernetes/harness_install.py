# SPDX-License-Identifier: Apache-2.0
"""Towpath as an operator installs it: by Helm, on real nodes, for what comes from outside too."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.kubernetes.harness_daemonset import LIMITS, PATIENCE
from tests.kubernetes.harness_load import at
from tools.kubernetes import binaries, chart, image, kept
from tools.kubernetes import pod as program
from tools.kubernetes.cluster import is_ready
from tools.kubernetes.control_plane import ADDRESS, ADDRESS6
from tools.kubernetes.errors import KubernetesError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.kubernetes.harness_services import Services
    from tools.kubernetes.cluster import Cluster
from tools.kubernetes.control_plane import ControlPlane

OUTSIDE_PORT = 7070
"""Of the server outside, which pods ask."""
_CTR = ("/usr/bin/ctr", "--address", "/run/containerd/containerd.sock", "-n", "k8s.io")


class Helm:
    """Helm, for one cluster. ``values``: those of the first installation."""

    def __init__(self, plane: ControlPlane, values: dict[str, Any] | None = None) -> None:
        self._plane = plane
        self._values = plane.directory / "values.json"
        self._values.write_text(json.dumps(values or {}))

    def install(self, *words: str) -> None:
        """Install, and wait until all is ready."""
        self._run("install", "towpath", str(chart.CHART), "-f", str(self._values), *_WAIT, *words)

    def upgrade(self, *words: str) -> None:
        """Upgrade to other values besides those that there are, node by node."""
        self._run("upgrade", "towpath", str(chart.CHART), "--reuse-values", *_WAIT, *words)

    def uninstall(self) -> None:
        """Uninstall, and wait until nothing of it is in the cluster."""
        self._run("uninstall", "towpath", *_WAIT)

    def _run(self, *words: str) -> None:
        command = [str(binaries.program("helm")), "--namespace", chart.NAMESPACE, *words]
        environment = os.environ | {"KUBECONFIG": str(self._plane.kubeconfig)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise KubernetesError(f"helm {words[0]}: {(done.stderr + done.stdout).strip()}")


_WAIT = ("--wait", f"--timeout={PATIENCE}s")


def values(plane: ControlPlane) -> dict[str, Any]:
    """For balancing what comes from outside, masquerade and limits: the same for all nodes."""
    return {
        "kubernetes": {
            "server": plane.node_url,
            "masquerade_devices": ["cni0"],
            "pod_limits": True,
        },
        "config": {
            "devices": [{"name": "eth0", "mode": "generic"}],
            "snat": {"ipv4": "0.0.0.0", "ipv6": "::", "ports": "10000-29999"},
            "masquerade": {"rules": []},
            "bandwidth": {"devices": ["eth0"]},
        },
        "limits": LIMITS,
    }


def import_images(cluster: Cluster) -> None:
    """Give all nodes the image by two names: 1, and 2, which is what there is to upgrade to."""
    archive = image.kept_image()
    for node in cluster.nodes:
        node.import_image(archive)
        other = image.NAME.rpartition(":")[0] + ":2"
        node.run(
            f"{kept.RUNTIME.path}{_CTR[0]}",
            *_CTR[1:],
            "images",
            "tag",
            "--force",
            image.NAME,
            other,
        )


@contextmanager
def server_outside() -> Iterator[None]:
    """A server that pods reach by their node's own address."""
    command = [sys.executable, str(Path(program.__file__)), "serve", str(OUTSIDE_PORT)]
    server = subprocess.Popen(command, env=os.environ | {"NAME": "outside"})
    try:
        yield
    finally:
        server.kill()
        server.wait()


def ways(services: Services, name: str, *, outside: bool = True) -> dict[str, list[str]]:
    """All ways: from outside to node ports, in the cluster to ClusterIPs.

    ``outside``: also from pods to the server outside, which has to be there.
    """
    clusters = [at(kind, each, 80) for kind in KINDS for each in services.addresses(name)]
    leaving = [at(kind, each, OUTSIDE_PORT) for kind in KINDS for each in (ADDRESS, ADDRESS6)]
    return {
        "outside": [at(kind, each, port) for kind, each, port in node_ports(services, name)],
        "client-one": [*clusters, *(leaving if outside else ())],
        "client-two": leaving if outside else clusters,
        "node two": clusters,
    }


def cleanup_pod(plane: ControlPlane, node: str) -> str:
    """The pod on a node in which clean-ups work, once it runs."""
    label = "app.kubernetes.io/name=towpath-cleanup"
    for each in plane.get("pods", "-n", chart.NAMESPACE, "-l", label)["items"]:
        going = "deletionTimestamp" in each["metadata"]
        if each["spec"].get("nodeName") == node and is_ready(each) and not going:
            return str(each["metadata"]["name"])
    raise KubernetesError(f"no pod for clean-ups runs on {node}")


def cleanup(plane: ControlPlane, node: str, *words: str) -> Any:
    """What `towpath cleanup` says in that pod; of JSON what it means."""
    name = cleanup_pod(plane, node)
    command = ("-n", chart.NAMESPACE, "exec", name, "--", "towpath", "cleanup", *words)
    said = plane.kubectl(*command)
    return json.loads(said) if "json" in words else said


KINDS = ("tcp", "udp")


def node_ports(services: Services, name: str) -> list[tuple[str, str, int]]:
    """Protocol, address and port of each, on both nodes and in both families."""
    port = services.plane.get("service", name)["spec"]["ports"][0]["nodePort"]
    return [
        (kind, address, port)
        for kind in KINDS
        for node in services.cluster.nodes
        for address in (node.address, node.address6)
    ]
