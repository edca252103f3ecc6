# SPDX-License-Identifier: Apache-2.0
"""Services of a real API server are reached by connect(), and follow what it says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.kubernetes.harness_source import (
    NODE_ADDRESSES,
    PORT,
    Follower,
    cluster_ip,
    endpoints,
    following,
    service,
    slice_of,
    told,
)
from tests.prog.socket.harness import BACKENDS, BACKENDS6, Child

from towpath.api.client import Client
from towpath.lab.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tools.kubernetes.control_plane import ControlPlane

Both = tuple[Follower, Child]


@pytest.fixture(scope="module")
def both(control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    """An agent that follows it, and a process that connects."""
    with following(control_plane, tmp_path_factory.mktemp("agent")) as made:
        made[0].until_synced()
        yield made


def reached(child: Child, vip: str, port: int = 80) -> str:
    """Whom connect() reaches, or why nobody."""
    family = "AF_INET6" if ":" in vip else "AF_INET"
    found = child.run(f"tcp('{vip}', {port}, {family})")
    return str(found["errno"] if isinstance(found, dict) else found[0])


def test_a_service_is_reached(both: Both) -> None:
    """At its port, though its endpoints have another one; its peer is the service."""
    agent, child = both
    control_plane = agent.control_plane
    control_plane.apply(service("web"), slice_of("web", endpoints(*BACKENDS[:2])))
    vip = cluster_ip(control_plane, "web")
    agent.until_served(f"default:web:web:cluster:{vip}", *BACKENDS[:2])
    assert {reached(child, vip) for _ in range(40)} == set(BACKENDS[:2])
    assert child.run(f"tcp('{vip}', 80)")[1] == [vip, 80]


def test_a_change_of_a_slice_is_obeyed(both: Both) -> None:
    """Another endpoint; none; one that is terminating and serves."""
    agent, child = both
    control_plane = agent.control_plane
    control_plane.apply(service("moves"), slice_of("moves", endpoints(BACKENDS[0])))
    vip = cluster_ip(control_plane, "moves")
    name = f"default:moves:web:cluster:{vip}"
    agent.until_served(name, BACKENDS[0])
    control_plane.apply(slice_of("moves", endpoints(BACKENDS[2])))
    agent.until_served(name, BACKENDS[2])
    assert reached(child, vip) == BACKENDS[2]
    control_plane.apply(slice_of("moves", []))
    agent.until_served(name)
    assert reached(child, vip) == "ECONNREFUSED"
    serving = {"conditions": {"ready": False, "serving": True, "terminating": True}}
    control_plane.apply(slice_of("moves", endpoints(BACKENDS[3], **serving)))
    agent.until_served(name, BACKENDS[3])
    assert reached(child, vip) == BACKENDS[3]


def test_both_families(both: Both) -> None:
    """Each has its own slices."""
    agent, child = both
    control_plane = agent.control_plane
    control_plane.apply(
        service("dual", ipFamilyPolicy="RequireDualStack"),
        slice_of("dual", endpoints(BACKENDS[0])),
        slice_of("dual", endpoints(BACKENDS6[0]), "b", family="IPv6"),
    )
    v4, v6 = control_plane.get("service", "dual")["spec"]["clusterIPs"]
    agent.until_served(f"default:dual:web:cluster:{v4}", BACKENDS[0])
    agent.until_served(f"default:dual:web:cluster:{v6}", BACKENDS6[0])
    assert (reached(child, v4), reached(child, v6)) == (BACKENDS[0], BACKENDS6[0])


def test_a_node_port_and_an_external_address(both: Both) -> None:
    """At the node's own address; an external one only if it is allowed, and else told."""
    agent, child = both
    control_plane = agent.control_plane
    control_plane.apply(
        service("outer", type="NodePort", externalIPs=["198.51.100.7", "203.0.113.7"]),
        slice_of("outer", endpoints(BACKENDS[1])),
    )
    port = control_plane.get("service", "outer")["spec"]["ports"][0]["nodePort"]
    agent.until_served(f"default:outer:web:node:{NODE_ADDRESSES[0]}:node", BACKENDS[1])
    assert reached(child, NODE_ADDRESSES[0], port) == BACKENDS[1]
    assert reached(child, "198.51.100.7") == BACKENDS[1]
    assert not any("203.0.113.7" in name for name in agent.services())
    agent.until(lambda found: "203.0.113.7 isn't served" in told(found), "it to be told")
    wait_until(
        lambda: any(
            "203.0.113.7" in each["message"]
            for each in control_plane.get("events")["items"]
            if each["reason"] == "ExternalIPNotAllowed"
        ),
        seconds=60,
        what="an Event",
    )


def test_a_load_balancer(both: Both) -> None:
    """The address that its controller has given it, once it is there."""
    agent, child = both
    control_plane = agent.control_plane
    control_plane.apply(
        service("edge", type="LoadBalancer", loadBalancerClass="example.org/any"),
        slice_of("edge", endpoints(BACKENDS[0])),
    )
    status = {"status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.77"}]}}}
    path = "/api/v1/namespaces/default/services/edge/status"
    assert control_plane.request("PATCH", path, status, "application/merge-patch+json")[0] == 200
    agent.until_served("default:edge:web:lb:192.0.2.77:node", BACKENDS[0])
    assert reached(child, "192.0.2.77") == BACKENDS[0]
    status["status"]["loadBalancer"]["ingress"][0]["ipMode"] = "Proxy"
    control_plane.request("PATCH", path, status, "application/merge-patch+json")
    wait_until(
        lambda: "default:edge:web:lb:192.0.2.77:node" not in agent.services(),
        seconds=60,
        what="an address of mode Proxy not to be served",
    )


def test_sctp_is_refused_and_the_rest_served(both: Both) -> None:
    """By an Event that says so, and in the status."""
    agent, _ = both
    control_plane = agent.control_plane
    ports = [
        {"name": "web", "port": 80, "targetPort": PORT},
        {"name": "tel", "port": 80, "protocol": "SCTP"},
    ]
    control_plane.apply(service("mixed", ports=ports), slice_of("mixed", endpoints(BACKENDS[0])))
    vip = cluster_ip(control_plane, "mixed")
    agent.until_served(f"default:mixed:web:cluster:{vip}", BACKENDS[0])
    agent.until(lambda found: "80/SCTP isn't served" in told(found), "SCTP to be told")

    def events() -> list[str]:
        said = control_plane.get("events")["items"]
        return [each["reason"] for each in said if each["involvedObject"]["name"] == "mixed"]

    wait_until(lambda: "ProtocolNotSupported" in events(), seconds=60, what="an Event")


def test_a_deleted_service_goes(both: Both) -> None:
    """With its slices in force or not."""
    agent, child = both
    control_plane = agent.control_plane
    control_plane.apply(service("gone"), slice_of("gone", endpoints(BACKENDS[0])))
    vip = cluster_ip(control_plane, "gone")
    name = f"default:gone:web:cluster:{vip}"
    agent.until_served(name, BACKENDS[0])
    control_plane.kubectl("delete", "service", "gone")
    wait_until(lambda: name not in agent.services(), seconds=60, what="it to be gone")
    assert reached(child, vip) != BACKENDS[0]


def test_its_state_is_told(both: Both) -> None:
    """Of each kind; in status, at /v1/health, in the list of services."""
    agent, _ = both
    found = agent.status()
    assert {each.name for each in found.kinds} == {"services", "endpointslices", "nodes"}
    assert all(each.age is not None and each.version for each in found.kinds)
    assert "kubernetes" in agent.agent.command("status").stdout
    with Client(agent.agent.socket) as client:
        client.health()
    table = agent.agent.command("service", "list").stdout
    assert "namespace" in table.splitlines()[0]
    assert any(line.startswith("default ") for line in table.splitlines())
