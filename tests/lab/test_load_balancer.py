# SPDX-License-Identifier: Apache-2.0
"""A script's own load balancer, with real clients, real servers and real decapsulation."""

from __future__ import annotations

import socket
import sys
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

import pytest
from tests.lab.harness_balancer import SMALL, assert_gone, programs
from tests.lab.harness_echo import PORT, Conversation, echo_servers, who_answers

from towpath import LoadBalancer
from towpath.kernel.net.netns import in_netns
from towpath.lab import Lab
from towpath.lab.topology import BALANCER, CLIENT, DEVICE, VIP4, VIP6
from towpath.lab.traffic import Answers, request
from towpath.lab.waiting import wait_until
from towpath.model import Backend, Service

if TYPE_CHECKING:
    from collections.abc import Iterator
    from ipaddress import IPv4Address, IPv6Address

REQUESTS = 48
"""To three backends: that one gets none of them happens once in 100 million runs."""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Three web servers behind a router, whose VIPs lead to the load balancer's host."""
    with Lab.up(3) as lab, echo_servers(lab):
        yield lab


@pytest.fixture
def balancer(lab: Lab) -> Iterator[LoadBalancer]:
    """A load balancer for both VIPs, on its host's only device."""
    with in_netns(BALANCER), LoadBalancer(DEVICE, limits=SMALL) as balancer:
        balancer.add_service("web4", vip=VIP4, port=80, backends=ipv4(lab), table_size=251)
        balancer.add_service("echo", vip=VIP4, port=PORT, backends=ipv4(lab), table_size=251)
        balancer.add_service("web6", vip=VIP6, port=80, backends=ipv6(lab), table_size=251)
        yield balancer


def ipv4(lab: Lab) -> list[IPv4Address]:
    """The backends' addresses: be1, be2, be3."""
    return [link.node4[0].ip for link in lab.topology.backend_links]


def ipv6(lab: Lab) -> list[IPv6Address]:
    """The backends' addresses: be1, be2, be3."""
    return [link.node6[0].ip for link in lab.topology.backend_links]


def ask(lab: Lab, vip: IPv4Address | IPv6Address = VIP4) -> set[str]:
    """Ask often; who answered. Every request has to be."""
    answers: Answers = request(lab.topology, vip, REQUESTS)
    assert answers.answers == REQUESTS
    return set(answers.by_backend)


def test_clients_of_both_families_reach_every_backend(lab: Lab, balancer: LoadBalancer) -> None:
    """Every request is answered, and every packet is counted once and none dropped."""
    assert ask(lab, VIP4) == ask(lab, VIP6) == {"be1", "be2", "be3"}
    counters = balancer.counters()
    for name in ("web4", "web6"):
        counted = counters.service(balancer.service(name).key)
        assert counted.flows >= REQUESTS
        assert counted.packets > 4 * REQUESTS
        assert sum(each.packets for each in counted.backends) == counted.packets
        assert all(each.packets for each in counted.backends)
        assert counted.drops == 0
    assert not any(n for verdict, n in counters.verdicts.items() if verdict.startswith("drop"))


def test_ipv4_clients_reach_backends_over_ipv6(lab: Lab, balancer: LoadBalancer) -> None:
    """One service may have backends of both families (4in6 for one, IPIP for the other)."""
    balancer.set_backends("web4", [ipv4(lab)[0], str(ipv6(lab)[1])])
    assert ask(lab) == {"be1", "be2"}
    tunnels = {
        balancer.trace(f"198.51.100.2:{port} -> {VIP4}:80").encapsulation
        for port in range(40000, 40032)
    }
    assert tunnels == {"ipip", "4in6"}


def test_backends_come_and_go(lab: Lab, balancer: LoadBalancer) -> None:
    """Each change holds for the next connection."""
    first, second, third = ipv4(lab)
    balancer.set_backends("web4", [first])
    assert ask(lab) == {"be1"}
    balancer.set_backend("web4", second, 2)
    assert ask(lab) == {"be1", "be2"}
    balancer.set_backend("web4", str(first), 0)
    assert ask(lab) == {"be2"}
    balancer.set_backends("web4", [Backend(third, 2)])
    assert ask(lab) == {"be3"}
    balancer.set_backend("web4", first)
    balancer.remove_backend("web4", third)
    assert ask(lab) == {"be1"}
    assert balancer.service("web4").backends == (Backend(first, 1),)
    assert ask(lab, VIP6) == {"be1", "be2", "be3"}


def test_a_drained_backend_gets_no_new_flows_in_the_block(lab: Lab, balancer: LoadBalancer) -> None:
    """What goes on goes on. Afterwards it has its weight back."""
    balancer.set_backend("echo", ipv4(lab)[0], 2)
    before = set(balancer.services())
    with Conversation() as conversation:
        busy = ipv4(lab)[int(conversation.backend.removeprefix("be")) - 1]
        with balancer.drained("echo", busy) as plan:
            assert 0 < plan.moved < 1
            assert who_answers(REQUESTS) == {"be1", "be2", "be3"} - {conversation.backend}
            assert conversation.goes_on()
        assert conversation.goes_on()
    assert {unordered(service) for service in balancer.services()} == set(map(unordered, before))


def unordered(service: Service) -> tuple[str, frozenset[Backend]]:
    """A service's backends, whose order means nothing."""
    return service.name, frozenset(service.backends)


def test_a_removed_backend_loses_its_flows_and_no_others(lab: Lab, balancer: LoadBalancer) -> None:
    """Connections to those that stay don't notice."""
    with ExitStack() as stack:
        talks = [stack.enter_context(Conversation()) for _ in range(REQUESTS)]
        assert {talk.backend for talk in talks} == {"be1", "be2", "be3"}
        balancer.remove_backend("echo", ipv4(lab)[1], force=True)
        balancer.set_backend("echo", ipv4(lab)[0], 7)
        assert all(talk.goes_on() for talk in talks if talk.backend != "be2")


def test_a_temporary_service_is_there_in_the_block(lab: Lab, balancer: LoadBalancer) -> None:
    """It may stand in for one of its name, which is back afterwards."""
    only = Service("web4", VIP4, 80, backends=(Backend(ipv4(lab)[2]),), table_size=251)
    before = set(balancer.services())
    with balancer.temporary(only):
        assert ask(lab) == {"be3"}
    assert ask(lab) == {"be1", "be2", "be3"}
    assert set(balancer.services()) == before


def test_packets_of_a_service_that_is_removed_pass_to_the_kernel(
    lab: Lab, balancer: LoadBalancer
) -> None:
    """Where they are like any other packet."""
    assert ask(lab)
    balancer.remove_service("web4")
    passed = balancer.counters().verdicts["pass_no_vip"]
    with in_netns(CLIENT), closing(socket.socket(type=socket.SOCK_STREAM)) as client:
        client.settimeout(0)
        client.connect_ex((str(VIP4), 80))
        wait_until(
            lambda: balancer.counters().verdicts["pass_no_vip"] > passed,
            seconds=120,
            what="a packet that passes",
        )
    assert ask(lab, VIP6) == {"be1", "be2", "be3"}


KILLED = """
import sys
from pathlib import Path
from tests.lab.harness_balancer import SMALL
from towpath import LoadBalancer
pins, vip, port, *backends = sys.argv[1:]
with LoadBalancer("eth0", limits=SMALL, pins=Path(pins)) as balancer:
    balancer.add_service("echo", vip=vip, port=int(port), backends=backends, table_size=251)
    print("ready", flush=True)
    balancer.run()
"""


def test_traffic_goes_on_when_the_script_is_killed_and_another_takes_over(lab: Lab) -> None:
    """A connection that was made before lasts through all of it."""
    pins, backends = lab.bpffs / "script", list(map(str, ipv4(lab)))
    command = [sys.executable, "-c", KILLED, str(pins), str(VIP4), str(PORT), *backends]
    killed = lab.spawn("lb", command, log_to="script.log")
    log = lab.directory / "script.log"
    wait_until(lambda: log.read_text() == "ready\n", seconds=120, what="the script")
    with Conversation() as conversation:
        killed.kill()
        killed.wait()
        assert conversation.goes_on()
        assert who_answers(REQUESTS) == {"be1", "be2", "be3"}
        with in_netns(BALANCER), LoadBalancer(DEVICE, limits=SMALL, pins=pins) as heir:
            (service,) = heir.services()
            assert {str(backend.address) for backend in service.backends} == set(backends)
            assert heir.counters().service(service.key).flows > REQUESTS
            assert conversation.goes_on()
            heir.set_backends(
                service.name, [backends[int(conversation.backend[2:]) - 1]], force=True
            )
            assert who_answers(REQUESTS) == {conversation.backend}
            assert conversation.goes_on()
            numbers = programs(heir)
            heir.detach()
            assert_gone(numbers)
    assert not pins.exists()
