# SPDX-License-Identifier: Apache-2.0
r"""Records what watches of a real control plane tell, and when: for tests that replay it.

    unshare --net --mount --pid --fork --kill-child --mount-proc \
        python -m tools.kubernetes.record [NAME...]

Each kind has a watch of its own, as an agent has: what they tell isn't in one order. Nodes and Pods
are objects and nothing else; slices have up to 20 endpoints, not 100, so that files stay small.
"""

from __future__ import annotations

import argparse
import http.client
import json
import ssl
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tools.kubernetes import control_plane as control
from tools.kubernetes.errors import KubernetesError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from tools.kubernetes.control_plane import ControlPlane

RECORDED = (
    Path(__file__).resolve().parents[2] / "tests" / "unit" / "core" / "kubernetes" / "recorded"
)
NODES = ("n1", "n2")
PODS = 50
MADE = 20
"""Services that are made and deleted, one after another."""
_PATHS = {
    "Service": "/api/v1/namespaces/default/services",
    "EndpointSlice": "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices",
    "Pod": "/api/v1/namespaces/default/pods",
    "Node": "/api/v1/nodes",
}
_SECONDS = 60.0
_QUIET_SECONDS = 2.0
"""So long after the last event a controller is taken to be done."""
_MERGE = "application/merge-patch+json"
_KEPT = {
    "metadata": (
        *("name", "namespace", "uid", "resourceVersion", "labels", "ownerReferences"),
        *("creationTimestamp", "deletionTimestamp"),
    ),
    "Service": ("spec",),
    "EndpointSlice": ("addressType", "endpoints", "ports"),
    "Pod": ("status",),
    "Node": ("status",),
}
_STATUS = ("phase", "podIPs", "addresses")


class Told(NamedTuple):
    """An event."""

    at: float
    type: str
    object: dict[str, Any]


class Recorder:
    """Watches all kinds, each by a thread of its own."""

    def __init__(self, plane: ControlPlane) -> None:
        self.plane = plane
        self.told: list[Told] = []
        self._begun = time.monotonic()
        self._open: list[http.client.HTTPSConnection] = []
        self._threads = [
            threading.Thread(target=self._watch, args=each, daemon=True) for each in _PATHS.items()
        ]

    def start(self) -> None:
        """Have all watches open."""
        for each in self._threads:
            each.start()
        wait(lambda: len(self._open) == len(_PATHS), "watches")

    def _watch(self, kind: str, path: str) -> None:
        context = ssl.create_default_context(cafile=str(self.plane.authority))
        connection = http.client.HTTPSConnection("127.0.0.1", self.plane.port, context=context)
        headers = {"Authorization": f"Bearer {self.plane.token}"}
        connection.request("GET", f"{path}?watch=1&resourceVersion=0", headers=headers)
        answer = connection.getresponse()
        self._open.append(connection)
        with suppress(OSError, ValueError, AttributeError, http.client.HTTPException):
            while line := answer.readline():
                at = time.monotonic() - self._begun
                event = json.loads(line)
                self.told.append(Told(at, event["type"], event["object"] | {"kind": kind}))

    def wait_until_quiet(self) -> None:
        """Wait until nothing has been told for a while."""
        now = time.monotonic()
        wait(lambda: time.monotonic() > max(now, self._last()) + _QUIET_SECONDS, "quiet")

    def _last(self) -> float:
        return self._begun + (self.told[-1].at if self.told else 0.0)

    def write(self, path: Path) -> None:
        """Keep what matters of what was told."""
        lines = [json.dumps(_cut(each), separators=(",", ":")) for each in self._of_interest()]
        path.write_text("".join(f"{each}\n" for each in lines))

    def _of_interest(self) -> Iterable[Told]:
        return (each for each in self.told if each.object["metadata"]["name"] != "kubernetes")


def _cut(told: Told) -> dict[str, Any]:
    found, kind = told.object, told.object["kind"]
    made = {name: found[name] for name in _KEPT[kind] if name in found}
    if "status" in made:
        made["status"] = {name: made["status"][name] for name in _STATUS if name in made["status"]}
        for each in found["status"].get("conditions") or ():
            if each["type"] == "Ready":
                made["status"]["ready"] = each["status"] == "True"
    for each in made.get("endpoints") or ():
        each["targetRef"] = {name: each["targetRef"][name] for name in ("kind", "name", "uid")}
    meta = {
        name: found["metadata"][name] for name in _KEPT["metadata"] if name in found["metadata"]
    }
    object_ = {"kind": kind, "metadata": meta} | made
    return {"at": round(told.at, 4), "type": told.type, "object": object_}


class World:
    """Objects that a scenario makes and changes."""

    def __init__(self, plane: ControlPlane) -> None:
        self.plane = plane

    def make(self, kind: str, found: dict[str, Any]) -> None:
        """Make one."""
        self._ask("POST", _PATHS[kind], found)

    def change(self, kind: str, name: str, patch: dict[str, Any], of: str = "") -> None:
        """Change one, or its status."""
        self._ask("PATCH", f"{_PATHS[kind]}/{name}{of}", patch, _MERGE)

    def delete(self, kind: str, name: str, **options: Any) -> None:
        """Delete one."""
        self._ask("DELETE", f"{_PATHS[kind]}/{name}", options)

    def _ask(self, *words: Any) -> None:
        status, answer = self.plane.request(*words)
        if status >= http.client.BAD_REQUEST:
            raise KubernetesError(f"{words[0]} {words[1]}: {status}: {answer}")

    def node(self, name: str) -> None:
        """Make a Node, which is an object and nothing else."""
        self.make("Node", {"metadata": {"name": name}})

    def pod(self, name: str, address: str, number: int = 0) -> None:
        """Make a Pod that is ready."""
        container = {
            "name": "web",
            "image": "web",
            "ports": [{"containerPort": 8080, "name": "old"}, {"containerPort": 9090}],
        }
        spec = {
            "nodeName": NODES[number % len(NODES)],
            "containers": [container],
            "automountServiceAccountToken": False,
        }
        self.make("Pod", {"metadata": {"name": name, "labels": {"app": "web"}}, "spec": spec})
        status = {
            "phase": "Running",
            "podIP": address,
            "podIPs": [{"ip": address}],
            "conditions": [{"type": "Ready", "status": "True"}],
        }
        self.change("Pod", name, {"status": status}, "/status")

    def service(self, name: str) -> None:
        """Make a Service of these pods."""
        ports = [{"name": "http", "port": 80, "targetPort": 8080}]
        spec = {"selector": {"app": "web"}, "ports": ports}
        self.make("Service", {"metadata": {"name": name}, "spec": spec})


def _pods(world: World, number: int) -> None:
    for each in range(number):
        world.pod(f"web-{each}", f"10.244.0.{each + 1}", each)


def ports(world: World, recorder: Recorder) -> None:
    """A target port changes: endpoints are dealt anew over slices."""
    _pods(world, PODS)
    world.service("web")
    recorder.wait_until_quiet()
    changed = [{"name": "http", "port": 80, "targetPort": 9090}]
    world.change("Service", "web", {"spec": {"ports": changed}})


def selector(world: World, recorder: Recorder) -> None:
    """The selector is taken away: slices freeze, are mirrored, and pods die."""
    _pods(world, PODS)
    world.service("web")
    recorder.wait_until_quiet()
    world.change("Service", "web", {"spec": {"selector": None}})
    recorder.wait_until_quiet()
    world.delete("Pod", "web-0", gracePeriodSeconds=0)


def reuse(world: World, recorder: Recorder) -> None:
    """Pods terminate, and others have their addresses before they are gone."""
    _pods(world, 22)
    world.service("web")
    recorder.wait_until_quiet()
    for each in range(6):
        world.delete("Pod", f"web-{each}", gracePeriodSeconds=30)
        world.pod(f"again-{each}", f"10.244.0.{each + 1}", each)
    recorder.wait_until_quiet()
    for each in range(6):
        world.delete("Pod", f"web-{each}", gracePeriodSeconds=0)


def order(world: World, recorder: Recorder) -> None:
    """Services come, go, and are made anew under their names."""
    _pods(world, 3)
    recorder.wait_until_quiet()
    for number in range(MADE):
        world.service(f"made-{number}")
    recorder.wait_until_quiet()
    for number in range(MADE):
        world.delete("Service", f"made-{number}")
        if number % 2:
            world.service(f"made-{number}")


SCENARIOS: dict[str, Callable[[World, Recorder], None]] = {
    "ports": ports,
    "selector": selector,
    "reuse": reuse,
    "order": order,
}


def main() -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m tools.kubernetes.record")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(SCENARIOS))
    parser.add_argument("--to", type=Path, default=RECORDED, help="a directory")
    options = parser.parse_args()
    if unknown := set(options.names) - SCENARIOS.keys():
        parser.error(f"{', '.join(sorted(unknown))}: allowed are {', '.join(SCENARIOS)}")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    for name in options.names or SCENARIOS:
        path = options.to / f"{name}.jsonl"
        with _recording() as (world, recorder):
            SCENARIOS[name](world, recorder)
            recorder.wait_until_quiet()
            recorder.write(path)
        print(f"{path}: {path.stat().st_size} bytes", file=sys.stderr)
    return 0


@contextmanager
def _recording() -> Iterator[tuple[World, Recorder]]:
    more = {"controller-manager": ("--max-endpoints-per-slice=20",)}
    with control.control_plane(options=more) as plane:
        world, recorder = World(plane), Recorder(plane)
        # Without this account no Pod can be made.
        path = "/api/v1/namespaces/default/serviceaccounts/default"
        wait(lambda: plane.request("GET", path)[0] == http.client.OK, "an account")
        for each in NODES:
            world.node(each)
        recorder.start()
        yield world, recorder


def wait(done: Callable[[], Any], what: str) -> None:
    """Wait until something is so."""
    limit = time.monotonic() + _SECONDS
    while not done():
        if time.monotonic() > limit:
            raise KubernetesError(f"no {what} after {_SECONDS:.0f} s")
        time.sleep(0.02)


if __name__ == "__main__":
    sys.exit(main())
