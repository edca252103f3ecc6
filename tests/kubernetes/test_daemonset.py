# SPDX-License-Identifier: Apache-2.0
"""Agents of Towpath's image on real nodes, by the manifests that users apply."""

from __future__ import annotations

import sys
import time
from functools import partial
from typing import TYPE_CHECKING

import pytest
from tests.kubernetes.harness_daemonset import MANIFESTS, PATIENCE, agents, manifests
from tests.kubernetes.harness_load import at, load
from tests.kubernetes.harness_services import Services, make_pods
from tools.kubernetes import image
from tools.kubernetes.cluster import is_ready
from tools.kubernetes.errors import KubernetesError

if TYPE_CHECKING:
    from tools.kubernetes.cluster import Cluster

pytestmark = pytest.mark.thorough


@pytest.fixture(scope="module")
def services(cluster: Cluster) -> Services:
    """Agents from the image, on both nodes."""
    archive = image.kept_image()
    for node in cluster.nodes:
        node.import_image(archive)
    make_pods(cluster)
    cluster.plane.kubectl("apply", "-f", str(MANIFESTS / "rbac.yaml"))
    cluster.plane.apply(*manifests(cluster.plane))
    made = Services(cluster, "towpath")
    made.seconds = PATIENCE
    made.eventually(lambda: [is_ready(each) for each in agents(cluster.plane)] == [True, True])
    return made


def python(services: Services, name: str, code: str) -> str:
    """What a line of Python in an agent's pod says."""
    return services.cluster.run_in_pod(name, "python3", "-c", code, namespace="kube-system")


def test_it_has_no_more_than_it_says(services: Services) -> None:
    """Not privileged; four capabilities; a root that it can't write."""
    name = agents(services.plane)[0]["metadata"]["name"]
    with pytest.raises(KubernetesError, match="Read-only file system"):
        python(services, name, "open('/x', 'w')")
    said = python(services, name, "print(open('/proc/1/status').read())")
    (line,) = (each for each in said.splitlines() if each.startswith("CapEff:"))
    # CAP_DAC_OVERRIDE, CAP_NET_ADMIN, CAP_PERFMON, CAP_BPF of <linux/capability.h>
    assert int(line.split()[1], 16) == sum(1 << each for each in (1, 12, 38, 39))


def test_a_rolling_update_fails_no_request(services: Services) -> None:
    """Of 10,000 through a ClusterIP and a node port, from pods and nodes, TCP and UDP."""
    service = services.make("web", type="NodePort")
    port = service["spec"]["ports"][0]["nodePort"]
    one = services.cluster.nodes[0]
    for address in services.addresses("web"):
        services.until({"a", "b"}, "client-one", "tcp", address, 80)
    kinds = ("tcp", "udp")
    clusters = [at(kind, each, 80) for kind in kinds for each in services.addresses("web")]
    ports = [at(kind, each, port) for kind in kinds for each in (one.address, one.address6)]
    before = {each["metadata"]["name"] for each in agents(services.plane)}
    with load(services.cluster, {"client-one": [*clusters, *ports], "node two": clusters}) as asked:
        kubectl = partial(services.plane.kubectl, "-n", "kube-system", "rollout")
        kubectl("restart", "daemonset/towpath")
        kubectl("status", "daemonset/towpath", f"--timeout={PATIENCE}s")
        time.sleep(2)
    assert before.isdisjoint(each["metadata"]["name"] for each in agents(services.plane))
    assert asked.failed == {}
    assert asked.done > 10_000


def test_what_somebody_detaches_is_put_back(services: Services) -> None:
    """A hook of the node's cgroup, ended by whoever is root on the node: within seconds."""
    services.make("web")
    address = services.addresses("web")[0]
    node = services.cluster.node("one")
    for client in ("client-one", "node one"):
        services.until({"a", "b"}, client, "tcp", address, 80)
    code = (
        "from pathlib import Path\n"
        "from towpath.kernel.bpf.links import Link\n"
        "(pin,) = Path('/sys/fs/bpf/towpath/socket').rglob('*connect4*')\n"
        "Link.from_pin(pin).detach()\n"
    )
    node.run(sys.executable, "-c", code)
    for client in ("client-one", "node one"):
        services.until({"a", "b"}, client, "tcp", address, 80)


def test_services_go_on_without_the_agents(services: Services) -> None:
    """They are served when agents are ready, and still are when their pods are gone."""
    services.make("web")
    for address in services.addresses("web"):
        services.until({"a", "b"}, "client-one", "tcp", address, 80)
    services.plane.kubectl("-n", "kube-system", "delete", "daemonset", "towpath", "--wait=false")
    services.eventually(lambda: agents(services.plane) == [])
    for address in services.addresses("web"):
        for client in ("client-one", "client-two"):
            assert services.names(client, "tcp", address, 80) == {"a", "b"}
