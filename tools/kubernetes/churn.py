# SPDX-License-Identifier: Apache-2.0
"""How many requests fail while endpoints and ports of a service change, beside kube-proxy.

    unshare --net --mount --pid --fork --mount-proc python -m tools.kubernetes.churn --proxy towpath

A real API server and controller-manager, a node with the proxy, and pods that are objects of the
API and servers on addresses: half of them on the node, half elsewhere. A pod serves for a while
after it has gone from the API, as one that is told to end does. Clients are on the node, at the
ClusterIP, and outside, at a node port. Prints JSON. With ``--check`` both proxies are measured,
and it fails if requests of Towpath's fail, or something is above its limit (`checks`).
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.kubernetes.harness_proxies import proxies
from tools.kubernetes import checks, load
from tools.kubernetes import control_plane as control
from tools.kubernetes.asker import Asker
from tools.kubernetes.churn_endpoints import MERGE, Pods, Slices
from tools.kubernetes.churn_faults import FAULTS
from tools.kubernetes.churn_late import Listed, Syn, Syns, lateness, reached
from tools.kubernetes.cluster import Cluster
from tools.kubernetes.errors import KubernetesError
from tools.kubernetes.node import Node, ip
from tools.kubernetes.scale_world import cpu

from towpath.lab import network

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tools.kubernetes.churn_endpoints import Endpoints
    from tools.kubernetes.control_plane import ControlPlane
    from tools.kubernetes.programs import Program

PORTS = (8080, 8081)
NODE_PORT = 30080
PARTS = ("nothing", "ports", "endpoints", *FAULTS)
PROXIES = ("kube-proxy", "towpath")
DEFAULT_PARTS = ("nothing", "ports", "endpoints", "ports+endpoints")
HERE, ELSEWHERE = "10.244.1", "10.244.2"
WORKERS = 8
_PROGRAM = str(Path(load.__file__))
SLICES = (
    "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"
    "?labelSelector=kubernetes.io/service-name=web"
)


def main() -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m tools.kubernetes.churn")
    parser.add_argument("--proxy", choices=PROXIES, help="or, to check, both in turn")
    parser.add_argument("--check", action="store_true", help="fail above limits")
    parser.add_argument("--pods", type=int, default=250)
    parser.add_argument("--seconds", type=float, default=30, help="of each part")
    parser.add_argument("--rate", type=float, default=200, help="requests a second, of each client")
    parser.add_argument("--changes", type=float, default=100, help="of endpoints, a second")
    parser.add_argument("--grace", type=float, default=5, help="seconds that a pod goes on serving")
    parser.add_argument("--slices", action="store_true", help="write them, and have no pods")
    parser.add_argument(
        "--parts", nargs="+", default=DEFAULT_PARTS, help=f"of {', '.join(PARTS)}, or some by +"
    )
    options = parser.parse_args()
    asked = {one for part in options.parts for one in part.split("+")}
    if options.check == bool(options.proxy):
        parser.error("one of --proxy and --check; limits are ratios of both proxies' figures")
    if unknown := asked - {*PARTS}:
        parser.error(f"no part {', '.join(sorted(unknown))}; there are: {', '.join(PARTS)}")
    if options.slices and "ports" in asked:
        parser.error("ports: pods have two of them; slices that are written here have one")
    if options.proxy != "towpath" and "takeover" in asked:
        parser.error("takeover: it is Towpath that takes over")
    subprocess.run(["mount", "-t", "tmpfs", "none", "/run"], check=True)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    if not options.check:
        found = measure(options)
        print(json.dumps(vars(options) | {"parts": found}, indent=2))
        return 0
    both = {}
    for options.proxy in PROXIES:
        print(options.proxy, file=sys.stderr, flush=True)
        both[options.proxy] = measure(options)
    print(json.dumps(vars(options) | {"proxies": both}, indent=2))
    return checks.told(checks.churn(both))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All parts, with a control plane and a node of their own."""
    with control.control_plane() as plane, rig(plane, options) as made:
        return made.measure()


class Rig:
    """A node, its service, and the pods of it."""

    def __init__(self, node: Node, options: argparse.Namespace) -> None:
        self.plane = node.plane
        self.ask = Asker(node.plane).ask
        self.node = node
        self.options = options
        half = options.pods // 2
        self.addresses = [f"{HERE}.{n}" for n in range(1, half + 1)]
        self.addresses += [f"{ELSEWHERE}.{n}" for n in range(1, options.pods - half + 1)]
        self.pods: Endpoints
        self.servers: dict[str, subprocess.Popen[str]] = {}
        self.proxy: Program
        self.changes = Counter[str]()
        """And how many pods ended before slices were without them."""
        self.listed = Listed()
        self._telling = {range_: threading.Lock() for range_ in (HERE, ELSEWHERE)}
        self._leaving: deque[tuple[float, str]] = deque()
        """Addresses whose pods are gone and serve on, and until when."""
        self._free: deque[str] = deque()

    # ---- What is there ---------------------------------------------------------------------------

    def serve(self, netns: str, range_: str) -> None:
        """Servers on the addresses of a range."""
        mine = [each for each in self.addresses if each.startswith(f"{range_}.")]
        command = ["ip", "netns", "exec", netns, sys.executable, _PROGRAM, "serve"]
        command += [",".join(map(str, PORTS)), *mine]
        made = subprocess.Popen(command, stdin=-1, stdout=-1, text=True)
        self.servers[range_] = made
        assert made.stdout  # noqa: S101 - it was asked for
        if made.stdout.readline().strip() != "ready":
            raise KubernetesError(f"no servers in {netns}")

    def tell(self, verb: str, address: str) -> str:
        """Have a server be ``up`` or ``down``, and wait until it is; or what it has seen."""
        range_ = address.rpartition(".")[0]
        server = self.servers[range_]
        assert server.stdin  # noqa: S101 - it was asked for
        assert server.stdout  # noqa: S101 - it was asked for
        with self._telling[range_]:
            server.stdin.write(f"{verb} {address}\n")
            server.stdin.flush()
            return server.stdout.readline()

    def ready(self) -> int:
        """How many addresses slices have."""
        return len(self.listed.now)

    def make(self) -> None:
        """Nodes, pods, the Service."""
        for name, address in ((self.node.name, self.node.address), ("elsewhere", "192.0.2.1")):
            self.ask("POST", "/api/v1/nodes", {"kind": "Node", "metadata": {"name": name}})
            status = {"addresses": [{"type": "InternalIP", "address": address}]}
            self.ask("PATCH", f"/api/v1/nodes/{name}/status", {"status": status}, MERGE)
        wait(self._has_account, "an account for pods")
        if self.options.slices:
            self.pods = Slices(self.ask, self._where, PORTS[0], self.addresses)
        else:
            self.pods = Pods(self.ask, self._where)
        with ThreadPoolExecutor(WORKERS) as pool:
            list(pool.map(self.pods.make, self.addresses))
        port = {"name": "web", "port": 80, "targetPort": PORTS[0], "nodePort": NODE_PORT}
        spec = {"type": "NodePort", "selector": self.pods.selector, "ports": [port]}
        body = {"kind": "Service", "metadata": {"name": "web"}, "spec": spec}
        self.ask("POST", "/api/v1/namespaces/default/services", body)
        wait(lambda: self.ready() == len(self.addresses), "all pods in slices")

    def answers(self) -> bool:
        """Whether the node port answers."""
        words = [sys.executable, _PROGRAM, "ask", self.node.address, str(NODE_PORT), "0.1", "10"]
        return not json.loads(subprocess.check_output(words, text=True))["failed"]

    def _where(self, address: str) -> str:
        return self.node.name if address.startswith(f"{HERE}.") else "elsewhere"

    def _has_account(self) -> bool:
        path = "/api/v1/namespaces/default/serviceaccounts/default"
        return self.plane.request("GET", path)[0] == 200  # noqa: PLR2004

    # ---- What changes ----------------------------------------------------------------------------

    def change_ports(self, ended: threading.Event) -> None:
        """Have the Service name the other port of its pods, again and again."""
        path, number = "/api/v1/namespaces/default/services/web", 0
        while not ended.wait(2):
            number += 1
            change = {
                "op": "replace",
                "path": "/spec/ports/0/targetPort",
                "value": PORTS[number % 2],
            }
            self.ask("PATCH", path, [change], "application/json-patch+json")
            self.changes["ports"] += 1

    def change_endpoints(self, ended: threading.Event) -> None:
        """Delete pods, which serve on for a while, and make others at addresses that are free."""
        random_ = random.Random(1)  # noqa: S311
        began, done, all_ = time.monotonic(), 0, len(self.addresses)
        with ThreadPoolExecutor(WORKERS) as pool:
            while not ended.is_set():
                now = time.monotonic()
                while self._leaving and self._leaving[0][0] <= now:
                    pool.submit(self._end, self._leaving.popleft()[1])
                if done >= (now - began) * self.options.changes:
                    ended.wait(0.002)
                    continue
                done += 1
                # So that most are there.
                if self._free and (all_ - len(self.pods.named)) * 5 > all_:
                    pool.submit(self.begin_pod, self._free.popleft())
                elif (all_ - len(self.pods.named)) * 3 < all_:
                    address = random_.choice(sorted(self.pods.named))
                    pool.submit(self._delete, address, self.pods.named.pop(address))
        for _, address in self._leaving:
            self._free.append(address)
        self._leaving.clear()
        while self._free:
            self.begin_pod(self._free.popleft())
        wait(lambda: self.ready() == all_, "all pods in slices")

    def begin_pod(self, address: str) -> None:
        """Serve at an address, and have a pod there."""
        self.tell("up", address)
        self.listed.made(address)
        self.pods.make(address)
        self.changes["endpoints"] += 1

    def _delete(self, address: str, name: str) -> None:
        self.pods.delete(address, name)
        self._leaving.append((time.monotonic() + self.options.grace, address))
        self.changes["endpoints"] += 1

    def _end(self, address: str) -> None:
        self.changes["late"] += address in self.listed.now
        self.tell("down", address)
        self._free.append(address)

    def end_pods(self, addresses: Sequence[str]) -> None:
        """Delete pods, and serve no more when their time is over since slices are without them."""
        for address in addresses:
            self._delete(address, self.pods.named.pop(address))
        wait(lambda: self.listed.now.isdisjoint(addresses), "slices to be without them")
        time.sleep(self.options.grace)
        self._leaving.clear()
        for address in addresses:
            self._end(address)
        self._free.clear()

    def replace_pods(self, addresses: Sequence[str]) -> None:
        """Have other pods at the same addresses."""
        self.end_pods(addresses)
        for address in addresses:
            self.begin_pod(address)
        wait(lambda: self.ready() == len(self.addresses), "all pods in slices")

    # ---- What is measured ------------------------------------------------------------------------

    def measure(self) -> dict[str, Any]:
        """Load while nothing changes, and while things do."""
        known: dict[str, Callable[[threading.Event], None]] = {
            "ports": self.change_ports,
            "endpoints": self.change_endpoints,
        }
        known |= {name: partial(fault, self) for name, fault in FAULTS.items()}
        return {
            part: self._part([known[one] for one in part.split("+") if one != "nothing"])
            for part in self.options.parts
        }

    def _part(self, changes: Sequence[Callable[[threading.Event], None]]) -> dict[str, Any]:
        vip = self.ask("GET", "/api/v1/namespaces/default/services/web")["spec"]["clusterIP"]
        ended, before, pid = threading.Event(), Counter(self.changes), self.proxy.pid
        spent = cpu(pid)
        began, writes = time.monotonic(), self.listed.writes
        self._asked()
        words = [str(self.options.seconds), str(self.options.rate)]
        inside = [sys.executable, _PROGRAM, "ask", vip, "80", *words]
        outside = [sys.executable, _PROGRAM, "ask", self.node.address, str(NODE_PORT), *words]
        with ThreadPoolExecutor() as pool:
            running = [pool.submit(each, ended) for each in changes]
            asked = {
                "node": pool.submit(self.node.run, *inside),
                "outside": pool.submit(subprocess.check_output, outside, text=True),
            }
            try:
                found = {name: json.loads(each.result()) for name, each in asked.items()}
            finally:
                ended.set()
            for each in running:
                each.result()
        syns, late = self._asked()
        for each in found.values():
            each["which"] = list(reached(self.listed, syns, each["which"]))
            each["slow"] = list(reached(self.listed, syns, each["slow"], sure=True))
        changed, lives = self.changes - before, pid == self.proxy.pid
        used, number = cpu(pid) - spent if lives else 0.0, changed["endpoints"]
        return found | {
            "changes": changed,
            "writes_of_slices": self.listed.writes - writes,
            "reached_after_removal": lateness(self.listed, syns, began),
            "servers_late_ms": round(1000 * late, 1),
            "cpu_seconds": round(used, 1) if lives else None,
            "cpu_ms_each_change": round(1000 * used / number, 2) if lives and number else None,
        }

    def _asked(self) -> tuple[Syns, float]:
        """What servers have seen since they were last asked, and how late they looked at it."""
        told = [json.loads(self.tell("report", f"{each}.-")) for each in self.servers]
        asked = {
            address: [Syn(*each) for each in times]
            for of in told
            for address, times in of["asked"].items()
        }
        return asked, max(each["late"] for each in told)


def wait(done: Callable[[], bool], what: str) -> None:
    """Return when something is so."""
    Cluster.wait(done, 120, what)


def _join(netns: str, device: str, *addresses: str) -> None:
    """Give a namespace's device addresses, and checksums as on a wire."""
    network.switch_off(netns, device, *network.SENDERS_OFFLOADS)
    ip("-n", netns, "link", "set", "lo", "up")
    ip("-n", netns, "link", "set", device, "up")
    for each in addresses:
        ip("-n", netns, "addr", "add", each, "dev", device)


@contextmanager
def rig(plane: ControlPlane, options: argparse.Namespace) -> Iterator[Rig]:
    """A node with a proxy, namespaces with the pods' addresses on it and elsewhere."""
    node = Node(plane, "one", 1)
    made = Rig(node, options)
    ended = threading.Event()
    watching = threading.Thread(
        target=Asker(plane).watch, args=(SLICES, made.listed.told, ended), daemon=True
    )
    watching.start()
    try:
        node.begin()
        for netns in ("here", "elsewhere"):
            ip("netns", "add", netns)
        mine, others = (
            [f"{each}/24" for each in made.addresses if each.startswith(f"{start}.")]
            for start in (HERE, ELSEWHERE)
        )
        ip("-n", "one", "link", "add", "pods", "type", "veth", "peer", "eth0", "netns", "here")
        _join("one", "pods", f"{HERE}.254/24")
        _join("here", "eth0", *mine)
        ip("-n", "here", "route", "add", "default", "via", f"{HERE}.254")
        ip("link", "add", "other-up", "type", "veth", "peer", "eth0", "netns", "elsewhere")
        ip("link", "set", "other-up", "master", control.BRIDGE, "up")
        _join("elsewhere", "eth0", "192.168.88.50/24", *others)
        for each in ("one", "elsewhere"):
            at = ("-n", each, "route")
            to, via = (ELSEWHERE, "192.168.88.50") if each == "one" else (HERE, node.address)
            ip(*at, "replace", f"{to}.0/24", "via", via)
        ip("route", "add", f"{ELSEWHERE}.0/24", "via", "192.168.88.50")
        ip("route", "add", f"{HERE}.0/24", "via", node.address)
        made.serve("here", HERE)
        made.serve("elsewhere", ELSEWHERE)
        made.make()
        with proxies(Cluster(plane, [node]), options.proxy) as running:
            made.proxy = running[0]
            # Either begins with all of it.
            wait(made.answers, "the service to answer")
            yield made
    finally:
        ended.set()
        for server in made.servers.values():
            server.kill()
        node.down()
        for netns in ("here", "elsewhere"):
            ip("netns", "del", netns)


if __name__ == "__main__":
    sys.exit(main())
