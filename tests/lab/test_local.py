# SPDX-License-Identifier: Apache-2.0
"""A node that balances and is a backend itself, or has one in a pod, with real clients."""

from __future__ import annotations

import json
import socket
from collections import Counter
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from tests.lab.harness_agent import PINS, Agent
from tests.lab.harness_balancer import SMALL
from tests.lab.harness_local import (
    BACKEND_PORT,
    CLIENT,
    HOST,
    OURS,
    POD,
    PODS,
    PORT,
    REMOTE,
    VIPS,
    Lab,
    lab,
    service,
    snat,
)
from tests.lab.harness_masquerade import ip

from towpath import LoadBalancer
from towpath.api.client import Client
from towpath.datapath.host import detach_pinned
from towpath.datapath.masquerade.node import detach as detach_masquerade
from towpath.kernel.bpf.hooks import Tc
from towpath.kernel.net.netns import in_netns
from towpath.lab.waiting import wait_until
from towpath.model import parse_service

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from towpath.kernel.net.clsact import Side

DEVICES = ("eth0", "eth1")
FLOWS = 120


@pytest.fixture
def net() -> Iterator[Lab]:
    """A client, the node, its pod, a backend elsewhere."""
    with lab() as made:
        yield made


@pytest.fixture
def balancer(net: Lab) -> Iterator[LoadBalancer]:
    """On the node."""
    assert net
    with LoadBalancer(*DEVICES, limits=SMALL, snat=snat(), local=PODS) as made:
        yield made


def drops(balancer: LoadBalancer) -> dict[str, int]:
    """Packets that were dropped, by XDP or at tc."""
    counted = {"xdp": balancer.counters().verdicts}
    if balancer._balancer.local.path is not None:
        counted |= balancer._balancer.local.path.counts()
    return {
        f"{where}.{verdict}": number
        for where, verdicts in counted.items()
        for verdict, number in verdicts.items()
        if number and verdict.startswith("drop")
    }


@pytest.mark.parametrize("version", [4, 6])
def test_shares_and_who_is_seen(net: Lab, balancer: LoadBalancer, version: int) -> None:
    """Each backend gets flows by its weight; those here see the client, the other the balancer."""
    weighted = ((HOST, 1), (POD, 2), (REMOTE, 1))
    for protocol in ("tcp", "udp"):
        backends = [{"address": at[version], "weight": n} for at, n in weighted]
        balancer.add_service(**service(version, *backends, protocol=protocol))
    seen = {"host": CLIENT, "pod": CLIENT, "remote": OURS}
    counted: Counter[str] = Counter()
    for _ in range(FLOWS):
        with closing(net.connect(version)) as talk:
            counted[talk.who] += 1
            assert talk.said["peer"] == seen[talk.who][version]
            assert talk.ask() == talk.said
        with closing(net.datagrams(version)) as asked:
            asked.send(b"who?")
            said = json.loads(asked.recv(1000))
            counted[said["who"]] += 1
            assert said["peer"] == seen[said["who"]][version]
    # Some standard deviations of what FLOWS * 2 draws come to.
    for who, share in {"host": 0.25, "pod": 0.5, "remote": 0.25}.items():
        assert abs(counted[who] / FLOWS / 2 - share) < 0.15, counted
    assert drops(balancer) == {}
    of = balancer.counters().service(balancer.service(f"tcp{version}").key)
    assert of.flows == FLOWS
    assert {str(each.address) for each in of.backends if each.packets} == {
        at[version] for at, _ in weighted
    }


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("there", [HOST, POD], ids=["host", "pod"])
def test_much_both_ways(
    net: Lab, balancer: LoadBalancer, version: int, there: dict[int, str]
) -> None:
    """Segments that are still to be divided, fragments both ways, and another port."""
    backend = {"address": there[version], "port": BACKEND_PORT}
    for protocol in ("tcp", "udp"):
        balancer.add_service(**service(version, backend, protocol=protocol))
    with closing(net.connect(version)) as talk:
        assert talk.said["port"] == BACKEND_PORT
        talk.ask(2_000_000, upload=2_000_000)
    with closing(net.datagrams(version)) as asked:
        large = b"y" * 5000
        asked.send(large)
        assert asked.recv(65535) == large
    assert drops(balancer) == {}


@pytest.mark.parametrize("version", [4, 6])
def test_errors_both_ways(net: Lab, balancer: LoadBalancer, version: int) -> None:
    """A port where nobody listens is told to the client, a narrow way to either side."""
    closed = service(version, POD[version], protocol="udp", port=PORT + 1)
    balancer.add_service(**closed | {"name": "closed"})
    balancer.add_service(**service(version, POD[version], protocol="udp"))
    with closing(net.datagrams(version, PORT + 1)) as asked:
        asked.send(b"who?")
        with pytest.raises(ConnectionRefusedError):
            asked.recv(100)
    net.on(net.pod, "link set eth0 mtu 1300")
    ip("link set pod1 mtu 1300")
    with closing(net.datagrams(version)) as asked:
        asked.setsockopt(*_DISCOVER[version])
        asked.send(b"y" * 1400)
        wait_until(lambda: _told(asked, version), seconds=10, what="the client to be told")
    assert drops(balancer) == {}


_DISCOVER = {
    4: (socket.IPPROTO_IP, 10, 2),  # IP_MTU_DISCOVER, IP_PMTUDISC_DO
    6: (socket.IPPROTO_IPV6, 23, 2),
}


def _told(asked: socket.socket, version: int) -> bool:
    """Whether what the client knows of its path is what the way to the pod has."""
    level, option = ((socket.IPPROTO_IP, 14), (socket.IPPROTO_IPV6, 24))[version == 6]
    try:
        return asked.getsockopt(level, option) == 1300
    except OSError:  # what it was told, at first
        return False


@pytest.mark.parametrize("forwarding", ["dsr", "l2"])
@pytest.mark.parametrize("version", [4, 6])
def test_untranslated(net: Lab, balancer: LoadBalancer, version: int, forwarding: str) -> None:
    """The node has the VIP, and gets its packets as they came; others' leave as ever."""
    length = {4: 32, 6: 128}[version]
    ip(f"addr add {VIPS[version]}/{length} dev lo")
    made = service(version, HOST[version], forwarding=forwarding)
    balancer.add_service(**made)
    with closing(net.connect(version)) as talk:
        assert (talk.who, talk.said["peer"]) == ("host", CLIENT[version])
    assert drops(balancer) == {}
    assert balancer.counters().verdicts["local"] > 0
    assert balancer._balancer.local.path is None


def test_a_pod_by_l2(net: Lab, balancer: LoadBalancer) -> None:
    """A pod that has the VIP is reached by its device, as any host on a link."""
    net.on(net.pod, f"addr add {VIPS[4]}/32 dev lo")
    balancer.add_service(**service(4, POD[4], forwarding="l2"))
    with closing(net.connect(4)) as talk:
        assert (talk.who, talk.said["peer"]) == ("pod", CLIENT[4])
    assert balancer.counters().verdicts["local"] == 0


@pytest.mark.parametrize("version", [4, 6])
def test_answers_by_another_device(net: Lab, balancer: LoadBalancer, version: int) -> None:
    """A flow's first packet tells where answers leave; from the next look on they are right."""
    net.second_way()
    balancer.add_service(**service(version, POD[version]))
    with pytest.raises(TimeoutError), in_netns(net.client):
        socket.create_connection((VIPS[version], PORT), timeout=0.5)
    assert set(drops(balancer)) == {"in.drop_device"}
    balancer.follow()
    with closing(net.connect(version)) as talk:
        assert (talk.who, talk.said["peer"]) == ("pod", CLIENT[version])


@pytest.mark.parametrize("version", [4, 6])
def test_a_backend_moves(net: Lab, balancer: LoadBalancer, version: int) -> None:
    """A pod's address is here, then behind a gateway elsewhere, then here again."""
    balancer.add_service(**service(version, POD[version]))
    with closing(net.connect(version)) as talk:
        assert (talk.who, talk.said["peer"]) == ("pod", CLIENT[version])
    # It is the remote one's by now.
    length = {4: 32, 6: 128}[version]
    nodad = " nodad" if version == 6 else ""
    net.on(net.pod, "link set eth0 down")
    net.on(net.remote, f"addr add {POD[version]}/{length} dev lo{nodad}")
    ip(f"route replace {POD[version]}/{length} via {REMOTE[version]} dev eth1")
    balancer.follow()
    with closing(net.connect(version)) as talk:
        assert (talk.who, talk.said["peer"]) == ("remote", OURS[version])
    ip(f"route del {POD[version]}/{length} via {REMOTE[version]} dev eth1")
    net.on(net.pod, "link set eth0 up")
    if version == 6:
        net.on(net.pod, f"addr replace {POD[6]}/64 dev eth0 nodad")
    gateway = {4: "10.244.0.1", 6: "fd00:1::1"}[version]
    net.on(net.pod, f"route replace default via {gateway}")
    balancer.follow()
    with closing(net.connect(version)) as talk:
        assert (talk.who, talk.said["peer"]) == ("pod", CLIENT[version])


def test_flows_stay(net: Lab, balancer: LoadBalancer) -> None:
    """Connections of a backend that drains go on, new ones go elsewhere."""
    balancer.add_service(**service(4, POD[4]))
    with closing(net.connect(4)) as talk:
        made = service(4, {"address": POD[4], "state": "draining"}, REMOTE[4])
        balancer.put_service(parse_service(made))
        for _ in range(5):
            with closing(net.connect(4)) as other:
                assert other.who == "remote"
        assert talk.ask(1000) == talk.said
        assert talk.who == "pod"
        counts = balancer.count_flows()
        assert {str(each.backend): each.flows for each in counts.backends}[POD[4]] == 1
    assert drops(balancer) == {}


def test_what_was_attached_is_gone(net: Lab) -> None:
    """Nothing is left at tc of any device."""
    assert net
    with LoadBalancer(*DEVICES, limits=SMALL, snat=snat(), local=PODS) as made:
        made.add_service(**service(4, POD[4]))
        assert attached() == {"local_in", "local_out"}
    assert attached() == set()


def attached() -> set[str]:
    """Our programs for backends here, at tc of the first device."""
    index = socket.if_nametoindex("eth0")
    found = (each for side in _SIDES for each in Tc(index, side).programs())
    return {each.name for each in found if each.name.startswith("local_")}


_SIDES: tuple[Side, ...] = ("ingress", "egress")


@pytest.fixture
def agent(net: Lab, tmp_path: Path) -> Iterator[Agent]:
    """One on the node, which has the VIP of what it doesn't translate. It is told of the pod."""
    ip(f"addr add {VIPS[4]}/32 dev lo")
    check = {"type": "tcp", "port": PORT, "interval": 0.2, "timeout": 5}
    backends = (HOST[4], {"address": POD[4], "local": True}, REMOTE[4])
    made = Agent(
        tmp_path,
        {
            "devices": list(DEVICES),
            "local": {"flows": 1024},
            "snat": {"ipv4": [OURS[4]]},
            # What pods answer is not to be masqueraded.
            "masquerade": {"rules": [{"devices": ["pod*"], "prefixes": ["10.244.0.0/24"]}]},
            "services": [
                service(4, *backends, health=check),
                service(4, HOST[4], port=PORT + 2, name="own", forwarding="dsr", health=check),
            ],
        },
    )
    made.start()
    yield made
    if made.process is not None and made.process.poll() is None:
        made.end()
    detach_masquerade(PINS / "masquerade")
    detach_pinned(PINS)
    assert attached() == set()
    assert net


def test_an_agent_that_is_killed(net: Lab, agent: Agent) -> None:
    """Connections to all go on, new ones begin, and the next agent has it all."""
    talks = [net.connect(4) for _ in range(20)]
    assert {talk.who for talk in talks} == {"host", "pod", "remote"}
    agent.kill()
    talks += [net.connect(4) for _ in range(10)]
    agent.start()
    for talk in talks:
        assert talk.ask(1000, upload=1000) == talk.said
        talk.close()
    with Client(agent.socket) as client:
        status = {str(each.address): each for each in client.backend_status("tcp4")}
        assert {name for name, each in status.items() if each.local} == {HOST[4], POD[4]}
        assert not any(each.trouble for each in status.values())
        counters = client.counters()
        assert counters.local["in"]["begun"] >= 10
        assert not any(n for name, n in counters.verdicts.items() if name.startswith("drop"))
        wait_until(
            lambda: len(client.checks()) == 4 and all(each.passed for each in client.checks()),
            seconds=30,
            what="all checks to pass",
        )
        assert 'towpath_local_packets_total{program="in"' in client.metrics()
        assert client.status().trouble is None
    traced = agent.command("trace", f"{CLIENT[4]}:1 -> {VIPS[4]}:{PORT + 2}")
    assert "on this node: the packet as it came" in traced.stdout
    listed = agent.command("backend", "list", "tcp4").stdout
    assert "local" in listed
