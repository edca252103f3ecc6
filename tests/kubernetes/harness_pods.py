# SPDX-License-Identifier: Apache-2.0
"""Pods that send as soon as they run, and who notes when what arrives of it."""

from __future__ import annotations

import json
import select
import signal
import socket
import struct
import sys
import time
from collections import defaultdict
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from tools.kubernetes import control_plane, kept
from tools.kubernetes.errors import KubernetesError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tools.kubernetes.cluster import Cluster
    from tools.kubernetes.node import Node
    from tools.kubernetes.programs import Program

EGRESS, INGRESS = "kubernetes.io/egress-bandwidth", "kubernetes.io/ingress-bandwidth"
SIZE, OVERHEAD = 1400, 42
BUCKET = 131_072
"""Bytes at once where the kernel has no fq: two of the longest packets."""
PORT = 9000
_SO_TIMESTAMPNS, _SO_RCVBUFFORCE = 35, 33
_STAMP = struct.Struct("=qq")
_SEND = f"""
import socket, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
end = time.monotonic() + float(sys.argv[1])
data = bytes({SIZE})
while time.monotonic() < end:
    for _ in range(32):
        try:
            s.sendto(data, ("{control_plane.ADDRESS}", {PORT}))
        except OSError:
            time.sleep(0.0001)
time.sleep(3600)
"""


class Arrival(NamedTuple):
    """A packet."""

    seconds: float
    """By the kernel's clock."""
    source: str


class Receiver:
    """Notes when packets of pods arrive, on this machine."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 1 << 26)
        self._socket.bind((control_plane.ADDRESS, PORT))
        self._socket.setblocking(False)  # noqa: FBT003 -- its only argument
        self.arrivals: list[Arrival] = []

    def listen(self, seconds: float) -> None:
        """Note all that arrives for so long."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if select.select([self._socket], [], [], left)[0]:
                self._drain()

    def _drain(self) -> None:
        while True:
            try:
                _, more, _, source = self._socket.recvmsg(SIZE, 128)
            except BlockingIOError:
                return
            stamp = next(data for _, kind, data in more if kind == _SO_TIMESTAMPNS)
            whole, part = _STAMP.unpack(stamp)
            self.arrivals.append(Arrival(whole + part / 1e9, source[0]))

    def rates(self, seconds: float = 2.0) -> dict[str, float]:
        """Bits a second on the wire that arrive from each pod, from now on."""
        self._drain()
        self.arrivals.clear()
        self.listen(seconds)
        return {
            source: (len(times) - 1) * (SIZE + OVERHEAD) * 8 / (times[-1] - times[0])
            for source, times in self.by_source().items()
            if len(times) > 1
        }

    def by_source(self) -> dict[str, list[float]]:
        """When packets of each pod have arrived."""
        found: defaultdict[str, list[float]] = defaultdict(list)
        for each in sorted(self.arrivals):
            found[each.source].append(each.seconds)
        return dict(found)

    def close(self) -> None:
        """End it."""
        self._socket.close()


def excess(times: list[float], rate: int) -> float:
    """The most bytes that had arrived at any time beyond what a rate gives since the first."""
    per_second = rate / 8
    return max(
        (number + 1) * (SIZE + OVERHEAD) - (at - times[0]) * per_second
        for number, at in enumerate(times)
    )


def bits_a_second(times: list[float], begin: float, end: float) -> float:
    """What has arrived in a span after the first, on the wire."""
    number = sum(begin <= at - times[0] < end for at in times)
    return number * (SIZE + OVERHEAD) * 8 / (end - begin)


def sender(
    name: str, node: str, annotations: dict[str, str], seconds: float = 3.0, **more: Any
) -> dict[str, Any]:
    """A pod whose first act is to send all it can."""
    container = {
        "name": "sender",
        "image": kept.TOOLS_IMAGE,
        "imagePullPolicy": "Never",
        "command": ["python3", "-c", _SEND, str(seconds)],
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "annotations": annotations} | more,
        "spec": {
            "nodeName": node,
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": False,
            "containers": [container],
        },
    }


def without_plugin(node: Node, *, plugin: bool = False) -> None:
    """Have new pods of a node go without the CNI bandwidth plugin, or with it again."""
    path = node.directory / "networks/10-pods.conflist"
    whole = json.loads(path.read_text())
    others = [each for each in whole["plugins"] if each["type"] != "bandwidth"]
    own = [{"type": "bandwidth", "capabilities": {"bandwidth": True}}] if plugin else []
    new = path.with_name(".new")
    new.write_text(json.dumps(whole | {"plugins": others + own}))
    new.rename(path)


@contextmanager
def limiting(node: Node, more: dict[str, Any], **sections: Any) -> Iterator[Program]:
    """An agent on a node that limits pods, and does what ``more`` of Kubernetes asks for."""
    configuration = {
        "bandwidth": {"devices": ["eth0"], "aggregates": 512},
        "kubernetes": {
            "kubeconfig": str(node.plane.node_kubeconfig),
            "node": node.name,
            "pod_limits": True,
        }
        | more,
    } | sections
    path = node.directory / "towpath.yaml"
    path.write_text(json.dumps(configuration))
    agent = node.program("towpath", sys.executable, "-m", "towpath", "agent", "--config", path)
    agent.start()
    try:
        agent.wait_for(lambda: knows_pods(node))
        yield agent
    finally:
        agent.stop(signal.SIGTERM)


def _asked(node: Node, question: str) -> Any:
    code = (
        "import json; from dataclasses import asdict; from towpath.api.client import Client\n"
        f"with Client() as c: print(json.dumps(asdict(c.{question}), default=str))"
    )
    return json.loads(node.run(sys.executable, "-c", code))


def status(node: Node) -> dict[str, Any]:
    """What the agent says of the source."""
    found: dict[str, Any] = _asked(node, "status().sources['kubernetes']")
    return found


def knows_pods(node: Node) -> bool:
    """Whether its Pods and Namespaces are followed."""
    try:
        kinds = {each["name"]: each for each in status(node)["kinds"]}
    except KubernetesError:
        return False
    wanted = ("pods", "namespaces")
    return all(kinds.get(each, {}).get("synced") for each in wanted)


def neighbours(node: Node) -> dict[str, str]:
    """Next hops that are kept resolved, and their states."""
    return {each["address"]: each["state"] for each in _asked(node, "next_hops()")["next_hops"]}


def rules(node: Node) -> list[dict[str, Any]]:
    """What masquerade goes by."""
    found: list[dict[str, Any]] = _asked(node, "masquerade()")["rules"]
    return found


def limits(node: Node) -> dict[str, dict[str, Any]]:
    """Aggregates by name."""
    return {each["name"]: each for each in _asked(node, "bandwidth()")["aggregates"]}


def troubles(node: Node) -> str:
    """What isn't as it should be, in one text."""
    return "\n".join(_asked(node, "bandwidth()")["troubles"])


def until(done: Any, what: str, seconds: float = 60.0) -> Any:
    """Wait until something is true, and return it."""
    end = time.monotonic() + seconds
    while not (found := done()):
        assert time.monotonic() < end, what
        time.sleep(0.1)
    return found


def address(cluster: Cluster, name: str) -> str:
    """A pod's IPv4 address, once the API server has one."""

    def found() -> str:
        status = cluster.pod(name).get("status", {})
        told = [each["ip"] for each in status.get("podIPs", ())]
        return next((each for each in told if ":" not in each), "")

    given: str = until(found, f"pod {name} to have an address")
    return given


def annotate(cluster: Cluster, what: str, name: str, **annotations: str) -> None:
    """Give an object annotations; "": without it."""
    words = [f"{key}={each}" if each else f"{key}-" for key, each in annotations.items()]
    cluster.plane.kubectl("annotate", "--overwrite", what, name, *words)


def events(cluster: Cluster, name: str) -> list[str]:
    """Reasons of Events about an object."""
    found = cluster.plane.get("events")["items"]
    return [each["reason"] for each in found if each["involvedObject"]["name"] == name]
