# SPDX-License-Identifier: Apache-2.0
"""Services of a real API server are given addresses of pools, by one of two agents."""

from __future__ import annotations

import os
import signal
import threading
import time
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Any, Self

import pytest
from tests.kubernetes.harness_pools import LEASE, PATH, Giver, Givers, addresses, givers

from towpath.api.client import Client

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tools.kubernetes.control_plane import ControlPlane

# Not in CI: it needs no kernel, and elections take their time.
pytestmark = pytest.mark.thorough

FEW, SIX = "192.0.2.0/29", "2001:db8::/125"


@pytest.fixture(scope="module")
def world(
    control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Givers]:
    """Two agents, and nothing else that gives addresses."""
    with givers(control_plane, tmp_path_factory.mktemp("agents")) as made:
        yield made


@pytest.fixture(autouse=True)
def _clean(world: Givers) -> Iterator[None]:
    """Each test has the same pools, and leaves no Service."""
    world.configure(few=[FEW, SIX])
    yield
    world.delete(*world.services())


def served(giver: Giver) -> set[str]:
    """The names of what an agent serves."""
    with Client(giver.agent.socket) as client:
        return {each.service.name for each in client.entries()}


def test_an_address_is_given_and_served(world: Givers) -> None:
    """In both families, without node ports; both agents serve it."""
    world.make("web", ipFamilyPolicy="RequireDualStack", allocateLoadBalancerNodePorts=False)
    four, six = world.until_given("web", 2)
    assert ip_address(four) in ip_network(FEW)
    assert ip_address(six) in ip_network(SIX)
    found = world.services()["web"]
    assert "nodePort" not in found["spec"]["ports"][0]
    assert {each["ipMode"] for each in found["status"]["loadBalancer"]["ingress"]} == {"VIP"}
    assert world.condition("web")["status"] == "True"
    names = {f"default:web:80:lb:{address}:node" for address in (four, six)}
    world.until(lambda: all(names <= served(each) for each in world.agents), "services")
    status = world.agents[0].status()
    world.until(lambda: world.agents[0].status().pools[0].used == 2, "the pool's use")
    assert [(each.name, each.addresses) for each in status.pools] == [("few", 16)]
    assert status.leader == world.holder()
    listed = world.agents[0].agent.command("source", "list").stdout
    assert "pool few" in listed
    assert f"given by {status.leader}" in listed
    assert "2 of 16 are taken" in world.agents[1].agent.command("status").stdout


def test_what_is_wished_for(world: Givers) -> None:
    """Given; refused if another has it, or no pool: an Event says so, and the status."""
    world.make("asks", {"towpath.alt/addresses": "192.0.2.5"})
    assert world.until_given("asks") == ["192.0.2.5"]
    world.make("late", loadBalancerIP="192.0.2.5")
    world.make("far", loadBalancerIP="203.0.113.5")
    assert "default/asks has it" in world.until_told("late", "AddressInUse")
    world.until_told("far", "NotInPool")
    world.until_event("AddressInUse", "late")
    world.until_event("NotInPool", "far")
    world.until(
        lambda: [len(each.status().unserved) for each in world.agents] == [2, 2],
        "both to be told by each agent",
    )
    world.delete("asks")
    assert world.until_given("late") == ["192.0.2.5"]


def test_sharing(world: Givers) -> None:
    """One address for two that ask for it; each has its port."""
    shared = {"towpath.alt/share": "dns"}
    world.make("udp", shared, ports=[{"port": 53, "protocol": "UDP"}])
    first = world.until_given("udp")
    world.make("tcp", shared, ports=[{"port": 53, "protocol": "TCP"}])
    assert world.until_given("tcp") == first
    world.make("other", ports=[{"port": 9, "protocol": "TCP"}])
    assert world.until_given("other") != first


def test_what_is_free_again(world: Givers) -> None:
    """A Service of another type, and one that is gone, leave room."""
    world.configure(one="192.0.2.7")
    world.make("first")
    assert world.until_given("first") == ["192.0.2.7"]
    world.make("second")
    world.until_told("second", "PoolExhausted")
    world.until_event("PoolExhausted", "second")
    world.patch("first", {"spec": {"type": "ClusterIP", "loadBalancerClass": None}})
    assert world.until_given("second") == ["192.0.2.7"]
    world.until(lambda: not world.condition("first"), "the condition to be gone")
    world.make("third")
    world.until_told("third", "PoolExhausted")
    world.delete("second")
    assert world.until_given("third") == ["192.0.2.7"]


def test_pools_change(world: Givers) -> None:
    """Services follow when they have to; what makes no sense changes nothing, and is told."""
    for number in range(3):
        world.make(f"s{number}")
    before = {f"s{n}": world.until_given(f"s{n}") for n in range(3)}
    world.configure(few=[FEW], more="198.51.100.0/30")
    world.make("probe", {"towpath.alt/pool": "more"})
    world.until_given("probe")
    assert {name: world.addresses(name) for name in before} == before
    world.configure(text="pools: [{name: few, addresses: 192.0.2.0/24/7}]")
    world.until_event("InvalidPools", "towpath-pools")
    world.make("during")
    world.until_given("during")
    world.configure(more="198.51.100.0/30", most="203.0.113.0/24")
    new = [ip_network("198.51.100.0/30"), ip_network("203.0.113.0/24")]
    world.until(
        lambda: all(
            any(ip_address(a) in net for net in new) for n in before for a in world.addresses(n)
        ),
        "all to have other addresses",
    )
    moved = {name: world.addresses(name) for name in before}
    assert world.plane.request("DELETE", PATH)[0] == 200
    world.make("waits")
    world.until(lambda: "is missing" in str(world.agents[0].status().unserved), "it to be told")
    assert {name: world.addresses(name) for name in before} == moved
    world.configure(more="198.51.100.0/30", most="203.0.113.0/24")
    world.until_given("waits")
    assert {name: world.addresses(name) for name in before} == moved


def test_what_others_write_stays(world: Givers) -> None:
    """Of another class, or of none; and other conditions of our own Services."""
    world.make("theirs", loadBalancerClass="example.org/other")
    world.make("classless", loadBalancerClass=None)
    given = {"status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.3", "ipMode": "VIP"}]}}}
    for name in ("theirs", "classless"):
        path = f"/api/v1/namespaces/default/services/{name}/status"
        assert world.plane.request("PATCH", path, given, "application/merge-patch+json")[0] == 200
    before = {name: world.services()[name]["status"] for name in ("theirs", "classless")}
    for number in range(7):
        world.make(f"s{number}")
        assert world.until_given(f"s{number}") != ["192.0.2.3"]
    world.make("full")
    world.until_told("full", "PoolExhausted")
    path = "/api/v1/namespaces/default/services/full/status"
    condition = {"type": "example.org/x", "status": "True", "reason": "X", "message": ""}
    condition["lastTransitionTime"] = "2026-01-01T00:00:00Z"
    body = {"status": {"conditions": [condition]}}
    kind = "application/strategic-merge-patch+json"
    assert world.plane.request("PATCH", path, body, kind)[0] == 200
    world.delete("s0")
    world.until_given("full")
    types = {each["type"] for each in world.services()["full"]["status"]["conditions"]}
    assert types == {"example.org/x", "towpath.alt/addresses"}
    assert {name: world.services()[name]["status"] for name in before} == before


class Load:
    """Services that come and go, and all addresses that were seen at any time."""

    def __init__(self, world: Givers) -> None:
        self.world, self.made = world, 0
        self.seen: dict[str, set[str]] = {}
        self.twice: list[Any] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._end.is_set():
            try:
                # One more, also if an answer was lost: its name is taken then.
                self.made += 1
                self.world.make(f"load-{self.made}")
                if self.made % 3 == 0:
                    self.world.delete(f"load-{self.made - 3}")
                self.look()
            except OSError:
                time.sleep(0.1)  # the API server is away

    def look(self) -> None:
        """Note who has what."""
        holders: dict[str, list[str]] = {}
        for name, each in self.world.services().items():
            for address in addresses(each):
                holders.setdefault(address, []).append(name)
                self.seen.setdefault(name, set()).add(address)
        self.twice += [each for each in holders.items() if len(each[1]) > 1]

    def check(self, number: int) -> None:
        """All have one, nobody another's; those that stayed have theirs of before."""
        world = self.world
        world.until(lambda: all(map(addresses, world.services().values())), "all to have one")
        self.look()
        assert not self.twice
        assert [each for each in self.seen.items() if len(each[1]) > 1] == []
        assert self.made > number


@pytest.mark.parametrize("how", ["killed", "stopped", "ended"])
def test_the_leader_is_gone(world: Givers, how: str) -> None:
    """While Services come and go: another leads, none has two addresses, no address is two's."""
    world.configure(many="10.99.0.0/20")
    first = world.leader()
    with Load(world) as load:
        world.until(lambda: load.made > 10, "some load")
        process = first.agent.process
        assert process is not None
        if how == "killed":
            first.agent.kill()
        elif how == "stopped":
            os.kill(process.pid, signal.SIGSTOP)
        else:
            first.agent.end()
        world.until(lambda: world.holder() not in {first.node, ""}, "another leader")
        after = load.made
        world.until(lambda: load.made > after + 10, "more load")
        if how == "stopped":
            os.kill(process.pid, signal.SIGCONT)
            world.until(lambda: load.made > after + 30, "more load")
    load.check(20)
    if how != "stopped":
        first.agent.start()
    assert world.leader() is not first


def test_the_api_server_is_restarted(world: Givers) -> None:
    """Whatever was on its way: all have one address each, and one agent leads."""
    world.configure(many="10.99.0.0/20")
    world.leader()
    with Load(world) as load:
        world.until(lambda: load.made > 10, "some load")
        world.plane.stop("apiserver", number=signal.SIGKILL)
        world.plane.start("apiserver")
        after = load.made
        world.until(lambda: load.made > after + 10, "more load")
    load.check(20)


def test_a_lease_that_another_takes(world: Givers) -> None:
    """The one that led writes no more; when it is over one of ours leads again."""
    world.leader()
    lease = world.plane.request("GET", LEASE)[1]
    lease["spec"] |= {"holderIdentity": "somebody", "leaseDurationSeconds": 4}
    while (status := world.plane.request("PUT", LEASE, lease)[0]) == 409:
        version = world.plane.request("GET", LEASE)[1]["metadata"]["resourceVersion"]
        lease["metadata"]["resourceVersion"] = version
    assert status == 200
    world.make("late")
    world.until_given("late")
    assert world.leader()
    transitions = world.plane.request("GET", LEASE)[1]["spec"]["leaseTransitions"]
    assert transitions > lease["spec"]["leaseTransitions"]
