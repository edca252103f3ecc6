# SPDX-License-Identifier: Apache-2.0
"""Agents of Towpath's image on real nodes, by the manifests that users apply."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from tests.kubernetes.harness_services import Services, make_pods
from tools.kubernetes import image
from tools.kubernetes.cluster import is_ready
from tools.kubernetes.errors import KubernetesError

if TYPE_CHECKING:
    from tools.kubernetes.cluster import Cluster

MANIFESTS = Path("deploy/kubernetes")
PATIENCE = 120

pytestmark = pytest.mark.thorough


def manifests(cluster: Cluster) -> list[dict[str, Any]]:
    """What is applied, for this cluster's API server and for tables that a test needs."""
    text = (MANIFESTS / "towpath.yaml").read_text()
    found = list(yaml.safe_load_all(text.replace("https://192.0.2.1:6443", cluster.plane.node_url)))
    (settings,) = (each for each in found if each["kind"] == "ConfigMap")
    configuration = yaml.safe_load(settings["data"]["towpath.yaml"])
    configuration["limits"] = {"services": 1024, "backends": 4096, "table_slots": 1_000_000}
    settings["data"]["towpath.yaml"] = yaml.safe_dump(configuration)
    return found


@pytest.fixture(scope="module")
def services(cluster: Cluster) -> Services:
    """Agents from the image, on both nodes."""
    archive = image.kept_image()
    for node in cluster.nodes:
        node.import_image(archive)
    make_pods(cluster)
    cluster.plane.kubectl("apply", "-f", str(MANIFESTS / "rbac.yaml"))
    cluster.plane.apply(*manifests(cluster))
    made = Services(cluster, "towpath")
    made.seconds = PATIENCE
    made.eventually(lambda: [is_ready(each) for each in agents(made)] == [True, True])
    return made


def agents(services: Services) -> list[dict[str, Any]]:
    """The agents' pods."""
    label = "app.kubernetes.io/name=towpath"
    found: list[dict[str, Any]] = services.plane.get("pods", "-n", "kube-system", "-l", label)[
        "items"
    ]
    return found


def python(services: Services, name: str, code: str) -> str:
    """What a line of Python in an agent's pod says."""
    return services.cluster.run_in_pod(name, "python3", "-c", code, namespace="kube-system")


def test_it_has_no_more_than_it_says(services: Services) -> None:
    """Not privileged; four capabilities; a root that it can't write."""
    name = agents(services)[0]["metadata"]["name"]
    with pytest.raises(KubernetesError, match="Read-only file system"):
        python(services, name, "open('/x', 'w')")
    said = python(services, name, "print(open('/proc/1/status').read())")
    (line,) = (each for each in said.splitlines() if each.startswith("CapEff:"))
    # CAP_DAC_OVERRIDE, CAP_NET_ADMIN, CAP_PERFMON, CAP_BPF of <linux/capability.h>
    assert int(line.split()[1], 16) == sum(1 << each for each in (1, 12, 38, 39))


def test_services_go_on_without_the_agents(services: Services) -> None:
    """They are served when agents are ready, and still are when their pods are gone."""
    services.make("web")
    for address in services.addresses("web"):
        services.until({"a", "b"}, "client-one", "tcp", address, 80)
    services.plane.kubectl("-n", "kube-system", "delete", "daemonset", "towpath", "--wait=false")
    services.eventually(lambda: agents(services) == [])
    for address in services.addresses("web"):
        for client in ("client-one", "client-two"):
            assert services.names(client, "tcp", address, 80) == {"a", "b"}
