# SPDX-License-Identifier: Apache-2.0
"""Each layout of a node's cgroups: where its pods' connections are balanced, and what is told.

A node of each, and one with containerd 2; agents by the manifests, privileged and not, with
``socket.packets`` for pods' devices. docs/kubernetes.md has the table.
"""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import pytest
from tests.kubernetes.harness_daemonset import (
    MANIFESTS,
    PATIENCE,
    agent_of,
    agents,
    manifests,
    pod_of,
)
from tests.kubernetes.harness_services import Services
from tools.kubernetes import image
from tools.kubernetes.cluster import cluster as clusters
from tools.kubernetes.cluster import server_pod
from tools.kubernetes.node import Layout

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

LAYOUTS: tuple[Layout, ...] = get_args(Layout)
NEWER = "newer"
NODES = (*LAYOUTS, NEWER)
"""Called as their layouts are, and ``newer``: with version 2 alone, by containerd 2."""
PRIVATE = "a private mount"
CGROUPS = {
    False: {
        "unified": "/sys/fs/cgroup/unified",
        "elsewhere": "",
        "nowhere": "",
        "pure": "/sys/fs/cgroup",
        "kind": "/sys/fs/cgroup",
        "newer": "/sys/fs/cgroup",
    },
    True: {
        "unified": "/sys/fs/cgroup/unified",
        "elsewhere": PRIVATE,
        "nowhere": PRIVATE,
        "pure": "/sys/fs/cgroup",
        "kind": "/sys/fs/cgroup",
        "newer": "/sys/fs/cgroup",
    },
}
"""Where an agent has its programs, by whether its pod is privileged; empty: at no socket."""
KUBEPODS = {
    "unified": "a process in /sys/fs/cgroup/unified/kubepods connected, and the program ran",
    "elsewhere": "pods are in / of version 2, which is mounted at /run/cgroup2;",
    "nowhere": "pods are in / of version 2, which is mounted at nowhere;",
    "pure": "a process in /sys/fs/cgroup/kubepods connected, and the program ran",
    "kind": "a process in /sys/fs/cgroup/kubelet/kubepods connected, and the program ran",
    "newer": "a process in /sys/fs/cgroup/kubepods connected, and the program ran",
}
"""What doctor says on the node of where pods are."""
RUN = "programs run for processes that connect"
PODS = "pods in cgroups of their own"
ASKED = 12

pytestmark = pytest.mark.thorough


class Counted(NamedTuple):
    """Connections and packets that went to a backend."""

    connects: int
    packets: int


class Agents:
    """Those of the DaemonSet, on nodes with the layouts' names."""

    def __init__(self, services: Services, *, privileged: bool) -> None:
        self.services, self.privileged = services, privileged

    def python(self, layout: str, code: str) -> str:
        """What Python says in the agent's pod."""
        name = agent_of(self.services.plane, layout)["metadata"]["name"]
        run = self.services.cluster.run_in_pod
        return run(name, "python3", "-P", "-c", code, namespace="kube-system")

    def socket(self, layout: str) -> dict[str, Any]:
        """What the agent says of sockets."""
        code = (
            "import json; from towpath.api.client import Client\n"
            "with Client() as client: print(json.dumps(client.get('socket')))"
        )
        found: dict[str, Any] = json.loads(self.python(layout, code))
        return found

    def counted(self, layout: str) -> Counted:
        """So far."""
        found = self.socket(layout)
        connects = found["counters"]["verdicts"]["connect"]["balanced"]
        return Counted(connects, found["packets"]["verdicts"]["from_pod"]["balanced"])

    def doctor(self, layout: str) -> dict[str, dict[str, Any]]:
        """What doctor says in the agent's pod, by capability."""
        code = (
            "import subprocess, sys\n"
            "words = ['doctor', '--config', '/etc/towpath/towpath.yaml', '-o', 'json']\n"
            "subprocess.run([sys.executable, '-P', '-m', 'towpath', *words], stderr=-3)"
        )
        return {each["name"]: each for each in json.loads(self.python(layout, code))}


def show(where: str, found: Mapping[str, Mapping[str, Any]]) -> None:
    """What docs/kubernetes.md has in its table."""
    sys.stdout.write(f"\n{where}:\n")
    for name in (RUN, "cgroups of version 2", PODS):
        sys.stdout.write(f"  {name}: {found[name]['state']}: {found[name]['found']}\n")


@pytest.fixture(scope="module")
def services() -> Iterator[Services]:
    """A node of each layout; two pods that serve, and one on each node that asks."""
    layouts: dict[str, Layout] = {each: each for each in LAYOUTS}
    with clusters(NODES, layouts | {NEWER: "pure"}, newer=[NEWER]) as made:
        archive = image.kept_image()
        for node in made.nodes:
            node.import_image(archive)
        web = {"app": "web"}
        made.make(
            server_pod("a", "unified", {"web": 8080}, labels=web),
            server_pod("b", "pure", {"web": 8080}, labels=web),
            *(server_pod(f"on-{each}", each, {"idle": 9}) for each in NODES),
        )
        made.plane.kubectl("apply", "-f", str(MANIFESTS / "rbac.yaml"))
        found = Services(made, "towpath")
        found.make("web")
        yield found


@contextmanager
def applied(
    services: Services, objects: list[dict[str, Any]], *nodes: str, privileged: bool = False
) -> Iterator[Agents]:
    """Agents on these nodes; what they do in the kernel ends with them."""
    (container,) = pod_of(objects)["containers"]
    container["args"].append("--detach-on-exit")
    if privileged:
        container["securityContext"] = {"privileged": True}
    services.plane.apply(*objects)
    services.seconds = PATIENCE
    services.eventually(lambda: all(agent_of(services.plane, each) for each in nodes))
    yield Agents(services, privileged=privileged)
    services.plane.kubectl("-n", "kube-system", "delete", "daemonset", "towpath", "--wait=false")
    services.eventually(lambda: agents(services.plane) == [])


@pytest.mark.parametrize("layout", NODES)
def test_doctor_tells_on_the_node(
    services: Services, layout: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whether pods can be told apart from the node, by a pod's process and a proof."""
    node = services.cluster.node(layout)
    path = node.directory / "doctor.yaml"
    kubeconfig = str(node.plane.node_kubeconfig)
    path.write_text(
        json.dumps({"socket": {}, "kubernetes": {"kubeconfig": kubeconfig, "node": layout}})
    )
    script = '"$@"; true'
    words = [sys.executable, "-m", "towpath", "doctor", "--config", str(path), "-o", "json"]
    said = json.loads(node.run("sh", "-c", script, "sh", *words))
    found = {each["name"]: each for each in said}
    with capsys.disabled():
        show(f"{layout}, on the node", found)
    assert found[PODS]["found"].startswith(KUBEPODS[layout])
    apart = layout in {"elsewhere", "nowhere"}
    assert found[PODS]["state"] == ("missing" if apart else "available")
    assert found[RUN]["state"] == "available"


def test_where_it_is_mounted_can_be_named(services: Services) -> None:
    """By `hostPaths.cgroup` of the chart: an agent that isn't privileged is at the sockets then."""
    objects = manifests(services.plane)
    spec = pod_of(objects)
    spec["nodeSelector"] = {"kubernetes.io/hostname": "elsewhere"}
    (volume,) = (each for each in spec["volumes"] if each["name"] == "cgroup")
    volume["hostPath"]["path"] = "/run/cgroup2"
    with applied(services, objects, "elsewhere") as daemons:
        for client in ("on-elsewhere", "node elsewhere"):
            services.until({"a", "b"}, client, "tcp", services.addresses("web")[0], 80)
        found = daemons.socket("elsewhere")
        assert (found["cgroup"], found["proven"]) == ("/sys/fs/cgroup", True), found["proof"]


@pytest.fixture(scope="module", params=[False, True], ids=["unprivileged", "privileged"])
def daemons(services: Services, request: pytest.FixtureRequest) -> Iterator[Agents]:
    """Agents on all nodes."""
    packets = {"packets": {"devices": ["veth*"], "flows": 1024}}
    objects = manifests(services.plane, socket=packets)
    with applied(services, objects, *NODES, privileged=request.param) as made:
        yield made


@pytest.mark.parametrize("layout", NODES)
def test_a_pod_is_served(daemons: Agents, layout: str) -> None:
    """At its socket, or else by its packets, and not by both; and so is the node, or it isn't."""
    services, client = daemons.services, f"on-{layout}"
    addresses = services.addresses("web")
    for address in addresses:
        services.until({"a", "b"}, client, "tcp", address, 80)
    cgroup = CGROUPS[daemons.privileged][layout]
    before = daemons.counted(layout)
    for address in addresses:
        got = services.ask(client, "tcp", address, 80, ASKED)
        assert {each.get("source") for each in got} <= set(services.pod_addresses(client)), got
    after = daemons.counted(layout)
    found = daemons.socket(layout)
    assert (found["cgroup"], found["proven"]) == (cgroup, bool(cgroup)), found["proof"]
    if cgroup:
        assert after == Counted(before.connects + len(addresses) * ASKED, before.packets)
    else:
        assert after.connects == before.connects == 0
        assert after.packets > before.packets
    (asked,) = services.ask(f"node {layout}", "tcp", addresses[0], 80, 1, 2.0)
    assert ("name" in asked) == bool(cgroup), asked


@pytest.mark.parametrize("layout", NODES)
def test_doctor_tells_in_the_agents_pod(
    daemons: Agents, layout: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whether programs run for sockets; if not why, and what is served all the same."""
    cgroup = CGROUPS[daemons.privileged][layout]
    found = daemons.doctor(layout)
    with capsys.disabled():
        show(f"{layout}, privileged: {daemons.privileged}", found)
    run = found[RUN]
    if cgroup:
        assert (run["state"], run["loses"]) == ("available", "")
        assert run["found"].startswith(f"{cgroup}: ")
    else:
        assert run["state"] == "fallback"
        assert run["found"].startswith("packets are translated at tc (find the cgroups of version")
        assert "CAP_SYS_ADMIN" in run["found"]
        assert run["loses"].startswith("only packets of `packets.devices` are balanced")
