# SPDX-License-Identifier: Apache-2.0
"""What kube-proxy has left, taken out by a pod on each node, where Towpath came by Helm."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from tests.kubernetes.harness_daemonset import PATIENCE, agents
from tests.kubernetes.harness_install import (
    Helm,
    cleanup,
    cleanup_pod,
    import_images,
    values,
)
from tests.kubernetes.harness_kube_proxies import KubeProxies
from tests.kubernetes.harness_services import Services, make_pods
from tools.kubernetes import binaries
from tools.kubernetes.errors import KubernetesError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tools.kubernetes.cluster import Cluster
    from tools.kubernetes.control_plane import ControlPlane

pytestmark = pytest.mark.thorough

WORKS = {"a", "b"}


def beside(plane: ControlPlane) -> dict[str, Any]:
    """Values for nodes where kube-proxy masquerades as well, by whatever port of the node."""
    made = values(plane)
    made["config"]["masquerade"]["unsolicited"] = "pass"
    return made | {"detachOnExit": True}


MODES = ("nftables", "iptables-legacy", "iptables-nft")


@pytest.fixture(scope="module")
def services(cluster: Cluster) -> Services:
    """A service, and agents and pods for clean-ups on both nodes, by Helm."""
    make_pods(cluster)
    import_images(cluster)
    made = Services(cluster, "towpath")
    made.seconds = PATIENCE
    made.make("web", type="NodePort")
    return made


@pytest.fixture
def proxies(services: Services, request: pytest.FixtureRequest) -> Iterator[KubeProxies]:
    """kube-proxy, which was there before Towpath is installed."""
    made = KubeProxies(services.cluster, request.param)
    made.start()
    for address in services.addresses("web"):
        services.until(WORKS, "client-one", "tcp", address, 80)
    helm = Helm(services.plane, beside(services.plane))
    yield made
    for node in services.cluster.nodes:
        made.end(node)
        node.run(*made.path[node.name], binaries.program("kube-proxy"), "--cleanup")
        node.run("nft", "flush", "ruleset")
    helm.uninstall()


@pytest.mark.parametrize("proxies", MODES, indirect=True)
def test_it_is_taken_out_by_a_pod(services: Services, proxies: KubeProxies) -> None:
    """It sees that kube-proxy runs; puts back what isn't confirmed, whatever becomes of the pod.

    What the steps do to connections test_takeover.py looks at.
    """
    plane, nodes = services.plane, services.cluster.nodes
    Helm(plane, beside(plane)).install("--set", "cleanup.enabled=true")
    for node in nodes:
        found = cleanup(plane, node.name, "kube-proxy", "-o", "json")
        assert (found["unserved"], len(found["processes"])) == ([], 1)
        assert found["removed"] != []
        with pytest.raises(KubernetesError, match="kube-proxy runs"):
            cleanup(plane, node.name, "kube-proxy", "--remove")
        proxies.end(node)
    one = nodes[0].name
    before = _hooked(services, proxies)
    assert before
    cleanup(plane, one, "kube-proxy", "--remove", "--within", "5")
    assert _hooked(services, proxies) != before
    services.eventually(lambda: _hooked(services, proxies) == before)
    cleanup(plane, one, "kube-proxy", "--remove")
    assert _hooked(services, proxies) != before
    plane.kubectl("-n", "kube-system", "delete", "pod", cleanup_pod(plane, one))
    assert _hooked(services, proxies) == before
    services.eventually(lambda: _has_pod(services, one))
    for node in nodes:
        cleanup(plane, node.name, "kube-proxy", "--remove")
        cleanup(plane, node.name, "kube-proxy", "--confirm")
        assert proxies.found(node)["removed"] == []


@pytest.mark.parametrize("proxies", MODES[:1], indirect=True)
def test_the_agents_pod_takes_nothing_out(services: Services, proxies: KubeProxies) -> None:
    """It doesn't see whether kube-proxy runs."""
    Helm(services.plane, beside(services.plane)).install()
    name = agents(services.plane)[0]["metadata"]["name"]
    command = ("towpath", "cleanup", "kube-proxy", "--remove")
    with pytest.raises(KubernetesError, match="in this pod the node's processes can't be seen"):
        services.cluster.run_in_pod(name, *command, namespace="kube-system")
    assert _hooked(services, proxies)


def _hooked(services: Services, proxies: KubeProxies) -> list[str]:
    """What of kube-proxy's packets pass on the first node."""
    found = proxies.found(services.cluster.nodes[0])["removed"]
    return [each for each in found if "asleep" not in each and ("table" in each or " -j " in each)]


def _has_pod(services: Services, node: str) -> bool:
    try:
        return bool(cleanup_pod(services.plane, node))
    except KubernetesError:
        return False
