# SPDX-License-Identifier: Apache-2.0
"""Agents that give addresses to Services of a real API server, with no rights but the chart's."""

from __future__ import annotations

import http.client
import json
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from tests.kubernetes.harness_agents import SECONDS, Following
from tests.prog.kernel.harness_cgroups import new_cgroup
from tools.kubernetes import chart

from towpath.lab.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tools.kubernetes.control_plane import ControlPlane

NAMESPACE = "kube-system"
NAME = "towpath-pools"
PATH = f"/api/v1/namespaces/{NAMESPACE}/configmaps/{NAME}"
LEASE = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/{NAME}"
CLASS = "towpath.alt/load-balancer"


class Giver(Following):
    """An agent of a node that is a name and nothing else."""

    def __init__(self, directory: Path, node: str, kubeconfig: Path, cgroup: Path) -> None:
        directory.mkdir()
        self.node = node
        section = {
            "kubeconfig": str(kubeconfig),
            "node": node,
            "pools": f"{NAMESPACE}/{NAME}",
        }
        super().__init__(directory, cgroup, section, Path(f"/sys/fs/bpf/tppool-{node}"))


class Givers:
    """Two of them, and the API server that they share."""

    def __init__(self, plane: ControlPlane, *agents: Giver) -> None:
        self.plane, self.agents = plane, agents

    def configure(self, text: str | None = None, **pools: Any) -> None:
        """These are the pools: addresses by name, or a mapping."""
        listed = [
            {"name": name} | (each if isinstance(each, dict) else {"addresses": each})
            for name, each in pools.items()
        ]
        made = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": NAME, "namespace": NAMESPACE},
            "data": {"pools.yaml": yaml.safe_dump({"pools": listed}) if text is None else text},
        }
        if self.plane.request("PUT", PATH, made)[0] == 404:
            assert self.plane.request("POST", PATH.rpartition("/")[0], made)[0] == 201

    def make(self, name: str, annotations: dict[str, str] | None = None, **spec: Any) -> None:
        """Make a Service of our class."""
        made = {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name, "annotations": annotations or {}},
            "spec": {
                "type": "LoadBalancer",
                "loadBalancerClass": CLASS,
                "ports": [{"port": 80, "protocol": "TCP"}],
            }
            | spec,
        }
        status, answer = self.ask("POST", "/api/v1/namespaces/default/services", made)
        assert status == 201, answer

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Ask the API server. OSError: it isn't there, or not quite."""
        try:
            status, answer = self.plane.request(method, path, body)
        except http.client.HTTPException as error:
            raise OSError(str(error)) from error
        if status >= http.HTTPStatus.INTERNAL_SERVER_ERROR:
            # Such as "range is full", when it has just started.
            raise OSError(str(answer))
        return status, answer

    def patch(self, name: str, body: dict[str, Any]) -> None:
        """Change a Service."""
        path = f"/api/v1/namespaces/default/services/{name}"
        kind = "application/merge-patch+json"
        status, answer = self.plane.request("PATCH", path, body, kind)
        assert status == 200, answer

    def delete(self, *names: str) -> None:
        """Services go."""
        for name in names:
            path = f"/api/v1/namespaces/default/services/{name}"
            assert self.ask("DELETE", path)[0] in {200, 404}

    def services(self) -> dict[str, dict[str, Any]]:
        """All of them but the API server's own."""
        path = "/api/v1/namespaces/default/services"
        items = self.ask("GET", path)[1]["items"]
        return {e["metadata"]["name"]: e for e in items if e["metadata"]["name"] != "kubernetes"}

    def addresses(self, name: str) -> list[str]:
        """What a Service was given."""
        return addresses(self.services()[name])

    def condition(self, name: str) -> dict[str, Any]:
        """What is said of it."""
        for each in self.services()[name]["status"].get("conditions") or ():
            if each["type"] == "towpath.alt/addresses":
                return dict(each)
        return {}

    def until_given(self, name: str, number: int = 1) -> list[str]:
        """Wait until a Service has so many addresses; return them."""
        self.until(lambda: len(self.addresses(name)) == number, f"{name} to have {number}")
        return self.addresses(name)

    def until_told(self, name: str, reason: str) -> str:
        """Wait until its condition has this reason; return its message."""
        self.until(lambda: self.condition(name).get("reason") == reason, f"{name}: {reason}")
        return str(self.condition(name)["message"])

    def until_event(self, reason: str, name: str) -> None:
        """Wait until there is such an Event of an object."""
        path = "/api/v1/events"

        def is_there() -> bool:
            return any(
                each["reason"] == reason and each["involvedObject"]["name"] == name
                for each in self.plane.request("GET", path)[1]["items"]
            )

        self.until(is_there, f"an Event {reason} of {name}")

    def until(self, done: Any, what: str) -> None:
        """Wait for it."""
        wait_until(done, seconds=SECONDS, what=what)

    def holder(self) -> str:
        """The node whose agent has the Lease."""
        status, lease = self.plane.request("GET", LEASE)
        return "" if status != 200 else str(lease["spec"]["holderIdentity"]).rpartition("_")[0]

    def leader(self) -> Giver:
        """The agent that leads, once there is one that serves."""
        names = {each.node: each for each in self.agents}
        self.until(lambda: self.holder() in names, "a leader")
        return names[self.holder()]


def addresses(service: dict[str, Any]) -> list[str]:
    """What a Service was given."""
    return [e["ip"] for e in service["status"].get("loadBalancer", {}).get("ingress") or ()]


@contextmanager
def givers(plane: ControlPlane, directory: Path) -> Iterator[Givers]:
    """Two agents with the rights that the chart gives them."""
    kubeconfig = directory / "kubeconfig"
    kubeconfig.write_text(json.dumps(plane.kubeconfig_for(plane.url, _token(plane))))
    with new_cgroup() as one, new_cgroup() as two:
        made = Givers(
            plane,
            Giver(directory / "n1", "n1", kubeconfig, one),
            Giver(directory / "n2", "n2", kubeconfig, two),
        )
        try:
            for each in made.agents:
                each.agent.start()
            yield made
        finally:
            for each in made.agents:
                each.end()


def _token(plane: ControlPlane) -> str:
    values = ("kubernetes.server=https://192.0.2.1:6443", f"kubernetes.pools={NAMESPACE}/{NAME}")
    wanted = ("ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding")
    rendered = yaml.safe_load_all(chart.render(*values))
    plane.apply(*(each for each in rendered if each["kind"] in wanted))
    path = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/towpath/token"
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
    status, answer = plane.request("POST", path, body)
    assert status == 201, answer
    return str(answer["status"]["token"])
