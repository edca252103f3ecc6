# SPDX-License-Identifier: Apache-2.0
"""Beside a kube-proxy that runs: each serves its own Services, told apart by a label.

kube-proxy drops what is for a ClusterIP of others. So all of these are taken before netfilter has
them: at sockets, in packets of pods at tc, and in XDP.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.kubernetes.harness_load import at, load
from tests.kubernetes.harness_proxies import proxies
from tests.kubernetes.harness_services import Services, make_pods
from tools.kubernetes import pod as program
from tools.kubernetes.cluster import asked

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tools.kubernetes.cluster import Cluster

pytestmark = pytest.mark.thorough

ALL = {"a", "b"}
LABEL = "service.kubernetes.io/service-proxy-name"
MANY = 5_000
CLIENTS = ("client-one", "client-two", "node one")


@pytest.fixture(scope="module")
def kube_proxies(cluster: Cluster) -> Iterator[Cluster]:
    """One on each node."""
    make_pods(cluster)
    with proxies(cluster, "kube-proxy"):
        yield cluster


@pytest.fixture(scope="module", params=["sockets", "packets"])
def shared(kube_proxies: Cluster, request: pytest.FixtureRequest) -> Iterator[Services]:
    """And an agent beside it, which has what is labelled ``towpath``; for pods' packets as well."""
    packets = {"packets": {"devices": ["veth*"]}} if request.param == "packets" else {}
    more: dict[str, Any] = {"service_proxy_name": "towpath"}
    with proxies(kube_proxies, "towpath", {"socket": packets}, **more):
        yield Services(kube_proxies, request.param)


@pytest.fixture(autouse=True)
def _no_service_stays(shared: Services) -> Iterator[None]:
    yield
    shared.plane.kubectl("delete", "service", "-l", "component!=apiserver", "--wait=false")


def give_to(services: Services, name: str, proxy: str | None) -> None:
    """Label a service; None: without."""
    words = f"{LABEL}-" if proxy is None else f"{LABEL}={proxy}"
    services.plane.kubectl("label", "--overwrite", "service", name, words)


def served(services: Services, node: str = "one") -> set[str]:
    """Names of the cluster's Services that Towpath has on a node."""
    code = (
        "import json; from towpath.api.client import Client\n"
        "with Client() as client: print(json.dumps([each.name for each in client.services()]))"
    )
    said = services.cluster.node(node).run(sys.executable, "-c", code)
    return {each.split(":")[1] for each in json.loads(said)}


def _have(services: Services, names: set[str]) -> bool:
    return served(services) == served(services, "two") == names


def ports(services: Services, name: str) -> dict[str, int]:
    """Node ports by protocol."""
    listed = services.plane.get("service", name)["spec"]["ports"]
    return {each["protocol"].lower(): each["nodePort"] for each in listed}


def in_packets(services: Services, name: str, address: str, kind: str = "tcp") -> set[str]:
    """Who answers a pod whose connect() no program sees: a process of this machine's in its net."""
    uid = services.cluster.pod(name)["metadata"]["uid"]
    inside = next(
        each.name
        for each in Path("/proc").glob("[0-9]*")
        if uid in _text(each / "cgroup") and "pause" not in _text(each / "cmdline")
    )
    words = [sys.executable, str(Path(program.__file__)), "ask", kind, address, "80", "12", "1"]
    done = subprocess.run(
        ["nsenter", "-t", inside, "-n", *words], capture_output=True, text=True, check=True
    )
    return {each.get("name") or each["error"] for each in asked(done.stdout)}


def _in_packets(services: Services, address: str, kind: str) -> bool:
    return in_packets(services, "client-one", address, kind) == ALL


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def everywhere(services: Services, name: str) -> None:
    """It is reached from pods, nodes, and outside; TCP and UDP; both families."""
    for kind, number in ports(services, name).items():
        for address in services.addresses(name):
            for client in CLIENTS:
                services.until(ALL, client, kind, address, 80)
            if services.proxy == "packets":
                services.eventually(partial(_in_packets, services, address, kind))
        for node in services.cluster.nodes:
            for address in (node.address, node.address6):
                services.until(ALL, "outside", kind, address, number)


@pytest.mark.parametrize("shared", ["packets"], indirect=True)
def test_each_serves_its_own(shared: Services) -> None:
    """What has the label is Towpath's, everything else kube-proxy's, whoever asks."""
    for name in ("theirs", "ours", "nobodys"):
        shared.make(name, type="NodePort")
    give_to(shared, "ours", "towpath")
    give_to(shared, "nobodys", "somebody-else")
    everywhere(shared, "theirs")
    everywhere(shared, "ours")
    assert served(shared) == served(shared, "two") == {"ours"}
    for address in shared.addresses("nobodys"):
        assert in_packets(shared, "client-one", address) == {"TimeoutError"}, "it is dropped"


@pytest.mark.parametrize("shared", ["packets"], indirect=True)
def test_an_address_of_a_load_balancer(shared: Services) -> None:
    """From outside by one node, and from inside."""
    shared.make("web", type="LoadBalancer")
    give_to(shared, "web", "towpath")
    vips = ("198.51.100.20", "2001:db8:20::20")
    shared.give("web", *({"ip": each} for each in vips))
    with shared.routed(*vips):
        for address in vips:
            for client in ("outside", "client-one", "node two"):
                shared.until(ALL, client, "tcp", address, 80)


@pytest.mark.parametrize("shared", ["sockets"], indirect=True)
def test_the_label_comes_and_goes_under_load(
    shared: Services, capsys: pytest.CaptureFixture[str]
) -> None:
    """What kube-proxy has begun goes on when the label comes; what sockets have when it goes.

    kube-proxy drops what it has given up at once: what begins in the moment of the change may be
    lost, and all is well after it. Connections from outside end when the label goes.
    """
    shared.make("web", type="NodePort")
    everywhere(shared, "web")
    clusters = [at(kind, each, 80) for kind in ("tcp", "udp") for each in shared.addresses("web")]
    outside = [
        at(kind, address, number)
        for kind, number in ports(shared, "web").items()
        for node in shared.cluster.nodes
        for address in (node.address, node.address6)
    ]
    ways = {"client-one": clusters, "node one": clusters, "outside": outside}
    for proxy, has in (("towpath", {"web"}), (None, set()), ("towpath", {"web"})):
        with load(shared.cluster, ways) as asking:
            time.sleep(2)  # connections of the one
            give_to(shared, "web", proxy)
            shared.eventually(partial(_have, shared, has))
            time.sleep(4)  # beyond a sync of kube-proxy's, with connections of the other
        failed = asking.failed
        lost = sum(sum(each.values()) for name, each in failed.items() if "fresh" in name)
        with capsys.disabled():
            sys.stdout.write(f"\nto {proxy or 'kube-proxy'}: {asking.done}, {lost} lost\n")
        assert asking.done > MANY
        ended = {name: each for name, each in failed.items() if "held" in name}
        if proxy is None:
            ended = {name: each for name, each in ended.items() if _is_of_tcp_inside(name)}
        assert ended == {}
        everywhere(shared, "web")


def _is_of_tcp_inside(name: str) -> bool:
    """Whether it names what sockets have: connected ones of UDP end with their service."""
    return "tcp" in name and not name.startswith("outside")
