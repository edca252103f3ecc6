# SPDX-License-Identifier: Apache-2.0
"""Services of a real cluster, asked by real clients: in pods, on nodes, and outside."""

from __future__ import annotations

import http
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tools.kubernetes import pod as program
from tools.kubernetes.cluster import asked, server_pod
from tools.kubernetes.control_plane import ADDRESS, ADDRESS6
from tools.kubernetes.node import ip

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from tools.kubernetes.cluster import Cluster

_PROGRAM = str(Path(program.__file__))
OUTSIDE = (ADDRESS, ADDRESS6)
"""Who asks from outside."""
PORTS = {"web": 8080, "more": 8081}
SECONDS = 120.0
"""How long a change may take to be obeyed: it ends what hangs, and measures nothing."""


class Services:
    """A cluster whose nodes serve Services, with what tests ask of it.

    Pods ``a`` (node one) and ``b`` (node two) are labelled app=web; ``client-one`` and
    ``client-two`` are nobody's.
    """

    def __init__(self, cluster: Cluster, proxy: str) -> None:
        self.cluster = cluster
        self.plane = cluster.plane
        self.proxy = proxy
        self.seconds = SECONDS

    def make(self, name: str, **spec: Any) -> dict[str, Any]:
        """Make a service; return it as the API has it."""
        self.plane.apply(service(name, **spec))
        found: dict[str, Any] = self.plane.get("service", name)
        return found

    def change(self, name: str, **spec: Any) -> dict[str, Any]:
        """Change fields of a service, and leave the others; None takes one away."""
        return self._patch(name, {"spec": spec})

    def give(self, name: str, *ingress: Mapping[str, str]) -> None:
        """Give a service addresses, as a load balancer's controller does."""
        self._patch(name, {"status": {"loadBalancer": {"ingress": list(ingress)}}}, "/status")

    def _patch(self, name: str, what: Mapping[str, Any], at: str = "") -> dict[str, Any]:
        path = f"/api/v1/namespaces/default/services/{name}{at}"
        answered, found = self.plane.request("PATCH", path, what, "application/merge-patch+json")
        assert answered == http.HTTPStatus.OK, found
        changed: dict[str, Any] = found
        return changed

    @contextmanager
    def routed(self, *addresses: str) -> Iterator[None]:
        """Whoever is outside reaches these by the first node."""
        node = self.cluster.nodes[0]
        ways = {each: node.address6 if ":" in each else node.address for each in addresses}
        for each, via in ways.items():
            ip("route", "add", each, "via", via)
        try:
            yield
        finally:
            for each in ways:
                ip("route", "del", each)

    def addresses(self, name: str) -> list[str]:
        """Its ClusterIPs."""
        found: list[str] = self.plane.get("service", name)["spec"]["clusterIPs"]
        return found

    def ask(
        self, client: str, kind: str, address: str, port: int, count: int = 1, seconds: float = 10.0
    ) -> list[dict[str, Any]]:
        """What a client got: ``outside``, ``node NAME``, or a pod's name."""
        words = [kind, address, str(port), str(count), str(seconds)]
        if client == "outside":
            command = [sys.executable, _PROGRAM, "ask", *words]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            return asked(done.stdout)
        if client.startswith("node "):
            node = self.cluster.node(client.removeprefix("node "))
            return asked(node.run(sys.executable, _PROGRAM, "ask", *words))
        return asked(self.cluster.run_in_pod(client, "python3", "/pod.py", "ask", *words))

    def names(
        self,
        client: str,
        kind: str,
        address: str,
        port: int,
        count: int = 12,
        seconds: float = 10.0,
    ) -> set[str]:
        """Who has answered, or which error there was."""
        got = self.ask(client, kind, address, port, count, seconds)
        return {each.get("name") or each["error"] for each in got}

    def until(
        self,
        wanted: Collection[str],
        client: str,
        kind: str,
        address: str,
        port: int,
        count: int = 12,
        seconds: float = 10.0,
    ) -> None:
        """Ask until just these have answered, and then once more: so it stays.

        Then each has ``seconds`` to answer, since others may have the CPU; and no other does, but
        by chance not all of them.
        """
        seen: list[set[str]] = []

        def done() -> bool:
            seen.append(self.names(client, kind, address, port, count, min(3.0, seconds)))
            return seen[-1] == set(wanted)

        what = f"{client} at {kind} {address}:{port} to get {set(wanted)}"
        self.eventually(done, lambda: f"{what}; it got {seen[-1]}")
        found = self.names(client, kind, address, port, count, seconds)
        assert found <= set(wanted), f"{what}; then it got {found}"

    def until_served(self, address: str) -> None:
        """Ask a service of pods ``a`` and ``b`` at port 80 until one has answered."""
        self.until_answered("client-one", "tcp", address, 80)

    def until_answered(self, client: str, kind: str, address: str, port: int) -> None:
        """Ask until somebody has answered."""
        self.eventually(lambda: "name" in self.ask(client, kind, address, port)[0])

    def eventually(self, done: Callable[[], bool], what: Callable[[], str] = str) -> None:
        """Wait until something is so."""
        limit = time.monotonic() + self.seconds
        while not done():
            assert time.monotonic() < limit, f"not after {self.seconds} s: {what()}"
            time.sleep(0.1)

    def pod_addresses(self, name: str) -> list[str]:
        """A pod's addresses, IPv4 first."""
        return [each["ip"] for each in self.cluster.pod(name)["status"]["podIPs"]]

    def tell(self, name: str, path: str) -> None:
        """Have a pod be ``/ready`` or ``/unready``."""
        code = (
            "import http.client\n"
            f"c = http.client.HTTPConnection('localhost', {program.CONTROL})\n"
            f"c.request('POST', '{path}')\n"
            "assert c.getresponse().status == 200\n"
        )
        self.cluster.run_in_pod(name, "python3", "-c", code)


def make_pods(cluster: Cluster) -> None:
    """The pods that all tests share."""
    web = {"app": "web"}
    cluster.make(
        server_pod("a", "one", PORTS, labels=web | {"only": "a"}),
        server_pod("b", "two", PORTS, labels=web | {"only": "b"}),
        server_pod("client-one", "one", {"idle": 9}),
        server_pod("client-two", "two", {"idle": 9}),
    )


def port(
    number: int = 80, to: int | str = 8080, protocol: str = "TCP", **more: Any
) -> dict[str, Any]:
    """A port of a service, whose name says what it is."""
    named = {"name": f"p{number}-{protocol.lower()}"}
    return named | {"port": number, "targetPort": to, "protocol": protocol} | more


def service(name: str, selector: Mapping[str, str] | None = None, **spec: Any) -> dict[str, Any]:
    """A service in both families; of pods ``a`` and ``b`` unless said otherwise."""
    whole: dict[str, Any] = {
        "selector": dict(selector or {"app": "web"}),
        "ipFamilyPolicy": "RequireDualStack",
        "ports": [port(), port(protocol="UDP")],
    }
    whole |= spec
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {key: value for key, value in whole.items() if value is not None},
    }
