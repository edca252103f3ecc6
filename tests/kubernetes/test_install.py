# SPDX-License-Identifier: Apache-2.0
"""Installed by Helm, upgraded and uninstalled, with clients outside: in the order of the file."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from tests.kubernetes.harness_daemonset import PATIENCE, agents
from tests.kubernetes.harness_install import (
    KINDS,
    OUTSIDE_PORT,
    Helm,
    cleanup,
    import_images,
    node_ports,
    server_outside,
    values,
    ways,
)
from tests.kubernetes.harness_load import load
from tests.kubernetes.harness_services import OUTSIDE, Services, make_pods
from tools.kubernetes import image
from tools.kubernetes.cluster import is_ready

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tools.kubernetes.cluster import Cluster

pytestmark = pytest.mark.thorough

WORKS = {"a", "b"}
UPGRADES = int(os.environ.get("TOWPATH_UPGRADES", "1"))
NOTHING = "/run/towpath:\n\n/var/lib/towpath:\n"


@pytest.fixture(scope="module")
def helm(cluster: Cluster) -> Helm:
    """With values for devices, source NAT and masquerade."""
    import_images(cluster)
    return Helm(cluster.plane, values(cluster.plane))


@pytest.fixture(scope="module")
def services(cluster: Cluster) -> Iterator[Services]:
    """A service with node ports, and a server outside."""
    make_pods(cluster)
    made = Services(cluster, "towpath")
    made.make("web", type="NodePort")
    made.seconds = PATIENCE
    with server_outside():
        yield made


def test_it_serves_what_comes_from_outside(services: Services, helm: Helm) -> None:
    """Node ports of both nodes, TCP and UDP, in both families: one configuration for all nodes.

    An endpoint on the node that was asked sees the client, one on the other node that node.
    """
    helm.install()
    assert [is_ready(each) for each in agents(services.plane)] == [True, True]
    for kind, address, port in node_ports(services, "web"):
        services.until(WORKS, "outside", kind, address, port)
        one = services.cluster.nodes[0]
        here = "a" if address in {one.address, one.address6} else "b"
        for got in services.ask("outside", kind, address, port, 12):
            assert got["source"] == (got["own"] if got["name"] == here else address)


def test_pods_leave_by_their_nodes_address(services: Services) -> None:
    """Masquerade, of the prefixes that each Node was given."""
    for client, node in zip(("client-one", "client-two"), services.cluster.nodes, strict=True):
        for kind in KINDS:
            for outside, own in zip(OUTSIDE, (node.address, node.address6), strict=True):
                (got,) = services.ask(client, kind, outside, OUTSIDE_PORT)
                assert (got["name"], got["source"]) == ("outside", own)


def test_pods_are_limited(services: Services) -> None:
    """By their annotations, as is told: an agent needs no more rights for it than it has."""
    plane, wish = services.plane, "kubernetes.io/egress-bandwidth"
    name = next(e for e in agents(plane) if e["spec"]["nodeName"] == "one")["metadata"]["name"]

    def limits() -> dict[str, Any]:
        command = ("towpath", "bandwidth", "list", "-o", "json")
        told = json.loads(services.cluster.run_in_pod(name, *command, namespace="kube-system"))
        return {each["name"]: each["egress"] for each in told["aggregates"]}

    plane.kubectl("annotate", "pod", "client-one", f"{wish}=50M")
    services.eventually(lambda: limits().get("default:client-one") == 50_000_000)
    plane.kubectl("annotate", "pod", "client-one", f"{wish}-")
    services.eventually(lambda: not limits().get("default:client-one"))


def test_an_upgrade_loses_nothing(services: Services, helm: Helm) -> None:
    """To another image, node by node: no packet of UDP, no request, no connection that is kept.

    TOWPATH_UPGRADES in the environment: so many, to and fro.
    """
    tags = [f"{2 - number % 2}" for number in range(UPGRADES)]
    with load(services.cluster, ways(services, "web")) as asked:
        time.sleep(1)
        for tag in tags:
            before = {each["metadata"]["name"] for each in agents(services.plane)}
            helm.upgrade("--set-string", f"image.tag={tag}")
            now = agents(services.plane)
            assert before.isdisjoint(each["metadata"]["name"] for each in now)
            tagged = f"{image.NAME.rpartition(':')[0]}:{tag}"
            assert {each["spec"]["containers"][0]["image"] for each in now} == {tagged}
        time.sleep(2)
    sys.stderr.write(f"{asked.done} requests\n")
    assert asked.failed == {}
    assert asked.done > 10_000


def test_services_go_on_when_it_is_uninstalled(services: Services, helm: Helm) -> None:
    """All that is in the kernel stays."""
    with load(services.cluster, ways(services, "web")) as asked:
        time.sleep(1)
        helm.uninstall()
        services.eventually(lambda: agents(services.plane) == [])
        time.sleep(2)
    assert asked.failed == {}
    assert asked.done > 1_000


def test_what_is_left_is_named_and_taken_out(services: Services, helm: Helm) -> None:
    """By a pod on each node, with nothing of Towpath on the host: kernel and files."""
    helm.install("--set", "agents=false", "--set", "cleanup.enabled=true")
    nodes = services.cluster.nodes
    left = {"/sys/fs/bpf/towpath/links", "/sys/fs/bpf/towpath/maps", "/var/lib/towpath/state.db"}
    for node in nodes:
        assert left <= {*cleanup(services.plane, node.name, "towpath", "-o", "json")["left"]}
        assert "xdp" in node.run("ip", "-details", "link", "show", "eth0")
        cleanup(services.plane, node.name, "towpath", "--remove")
    for node in nodes:
        assert cleanup(services.plane, node.name, "towpath", "-o", "json")["left"] == []
        assert "xdp" not in node.run("ip", "-details", "link", "show", "eth0")
        assert node.run("ls", "-A", "/var/lib/towpath", "/run/towpath") == NOTHING
        assert "towpath" not in node.run("ls", "-A", "/sys/fs/bpf")
    kind, address, port = node_ports(services, "web")[0]
    assert services.names("outside", kind, address, port, 2, 1.0) <= {"ConnectionRefusedError"}
    helm.uninstall()
