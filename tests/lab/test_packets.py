# SPDX-License-Identifier: Apache-2.0
"""Pods whose connect() never runs on the node, and an agent that translates their packets."""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING, Any

import pytest
from tests.lab.harness_agent import PINS, Agent
from tests.lab.harness_masquerade import ip
from tests.lab.harness_packets import (
    BACKENDS,
    BACKENDS6,
    DNS,
    HTTP,
    LIMIT,
    NEAR,
    POD,
    POD6,
    SOCK_DGRAM,
    SOCK_STREAM,
    VIP,
    VIP6,
    Lab,
    bridged,
    lab,
    serve_http,
)
from tests.listed import needs_lists
from tests.prog.kernel.harness_cgroups import new_cgroup
from tests.prog.socket.harness import Child

from towpath import ConfigError, SocketLoadBalancer
from towpath.api.client import Client
from towpath.datapath.host import detach_pinned
from towpath.datapath.socket.balancer import detach
from towpath.kernel.bpf.hooks import Tc
from towpath.kernel.net.netns import in_netns
from towpath.lab.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from towpath.documents import PacketFlow


OTHER = "192.0.2.11"


def offer(
    name: str, vip: str, port: int, addresses: tuple[str, ...], protocol: str = "tcp"
) -> dict[str, Any]:
    """A service as the file has it."""
    return {
        "name": name,
        "vip": vip,
        "port": port,
        "protocol": protocol,
        "table_size": 251,
        "backends": [{"address": each} for each in addresses],
    }


SERVICES = [
    offer("web", VIP, HTTP, BACKENDS),
    offer("web6", VIP6, HTTP, BACKENDS6),
    offer("dns", VIP, DNS, BACKENDS, "udp"),
    offer("dns6", VIP6, DNS, BACKENDS6, "udp"),
]


@pytest.fixture
def net() -> Iterator[Lab]:
    """A pod, its node, backends."""
    with lab() as made:
        yield made


@pytest.fixture
def agent(net: Lab, tmp_path: Path) -> Iterator[Agent]:
    """One on the node, for processes of a cgroup that has none, and packets of taps."""
    assert net
    with new_cgroup() as cgroup:
        section = {"cgroup": str(cgroup), "packets": {"devices": ["tap*"], "flows": 1024}}
        made = Agent(tmp_path, {"socket": section, "services": SERVICES})
        del made.config["devices"]
        made.write()
        made.start()
        yield made
        made.end()
        detach(PINS / "socket")
        detach_pinned(PINS)


@needs_lists
def test_a_pod_reaches_services(net: Lab, agent: Agent) -> None:
    """TCP and UDP, IPv4 and IPv6; backends see the pod, and the pod sees the service."""
    for vip, backends, pod in ((VIP, BACKENDS, POD), (VIP6, BACKENDS6, POD6)):
        answers = [net.curl(vip) for _ in range(12)]
        assert {client for _, client in answers} == {pod}
        assert {backend for backend, _ in answers} == {*backends}
        told = net.run("dig", f"@{vip}", "+noedns", "+tries=3", "service.example", "A")
        assert "192.0.2.99" in told
        assert f"SERVER: {vip}#53" in told
        asked = net.socket(SOCK_DGRAM, (vip, DNS))
        asked.send(b"ping")
        assert asked.recv(100) == b"ping"
        assert asked.getpeername()[:2] == (vip, DNS)
    with Client(agent.socket) as client:
        found = client.socket()
        assert found.packets
        assert found.packets.devices == ("tap1",)
        balanced = found.packets.verdicts["from_pod"]["balanced"]
        assert balanced > 0
        assert not any(
            number for name, number in found.packets.verdicts["from_pod"].items() if "drop" in name
        )
        flows = client.socket_flows(service="dns").packets
        assert {each.protocol for each in flows} == {"udp"}
        assert {str(each.client) for each in flows} == {POD}
        assert {(str(each.vip), each.port, each.device) for each in flows} == {(VIP, DNS, "tap1")}
        assert {str(each.backend) for each in flows} <= {*BACKENDS}
        assert client.socket_flows(connected=True).packets == ()
        assert "towpath_socket_packets_total" in client.metrics()
        assert "packets of 1 devices" in str(client.status())
    listed = agent.command("socket", "list").stdout
    assert "packets of tap1: " in listed
    assert "restored" in listed
    shown = agent.command("socket", "flows", "--service", "web6").stdout
    assert f"[{VIP6}]:80" in shown
    plain = json.loads(agent.command("socket", "flows", "-o", "json").stdout)
    assert plain["packets"]


def test_large_transfers(net: Lab, agent: Agent) -> None:
    """Packets that are still to be divided, and checksums that are still to be made."""
    assert agent
    for vip in (f"{VIP}", f"[{VIP6}]"):
        size = 8 << 20
        url = f"http://{vip}:{HTTP}/{size}"
        told = ("-o", "/dev/null", "-w", "%{size_download}")
        assert net.run("curl", "-sS", "--max-time", "60", *told, url) == str(size)


@needs_lists
def test_a_killed_agent_costs_nothing(net: Lab, agent: Agent) -> None:
    """Flows go on, and others begin; the next agent takes the programs over as they are."""
    open_ = net.socket(SOCK_STREAM, (VIP, HTTP))
    open_.send(b"GET / HTTP/1.1\r\n")
    datagrams = net.socket(SOCK_DGRAM, (VIP, DNS))
    datagrams.send(b"one")
    assert datagrams.recv(100) == b"one"
    before = programs()
    agent.kill()
    assert net.curl()[1] == POD
    datagrams.send(b"two")
    assert datagrams.recv(100) == b"two"
    agent.start()
    assert len(programs()) == len(before) == 2
    open_.send(b"Host: x\r\n\r\n")
    assert open_.recv(1000).startswith(b"HTTP")
    with Client(agent.socket) as client:
        flows = [each for each in client.socket_flows(protocol="udp").packets if each.vip]
        assert [each.state for each in flows] == ["established"]
        assert client.socket_flows(protocol="tcp").packets


def programs() -> list[str]:
    """Those of ours on the pod's device."""
    index = socket.if_nametoindex("tap1")
    sides = (Tc(index, "ingress"), Tc(index, "egress"))
    return [each.name for side in sides for each in side.programs()]


@needs_lists
def test_a_backend_that_is_removed_is_left(net: Lab, agent: Agent) -> None:
    """A socket of UDP goes on with another one, a connection of TCP ends at once."""
    datagrams, stream = net.socket(SOCK_DGRAM, (VIP, DNS)), net.socket(SOCK_STREAM, (VIP, HTTP))
    datagrams.send(b"one")
    assert datagrams.recv(100) == b"one"
    with Client(agent.socket) as client:
        (of_dns,) = client.socket_flows(service="dns").packets
        (of_web,) = client.socket_flows(service="web").packets
        agent.write(
            services=[
                offer("web", VIP, HTTP, others(of_web), "tcp"),
                offer("dns", VIP, DNS, others(of_dns), "udp"),
            ],
            drain={"timeout": "0s"},
        )
        wait_until(
            lambda: all(len(each.backends) == 1 for each in client.socket().counters.services),
            seconds=LIMIT,
            what="the change",
        )
        datagrams.send(b"two")
        assert datagrams.recv(100) == b"two"
        (now,) = client.socket_flows(service="dns").packets
        assert (str(now.backend),) == others(of_dns)
    stream.send(b"GET / HTTP/1.0\r\n\r\n")
    with pytest.raises(ConnectionResetError):
        stream.recv(100)


def others(flow: PacketFlow) -> tuple[str, ...]:
    """All backends but a flow's."""
    return tuple(each for each in BACKENDS if each != str(flow.backend))


def test_a_device_that_comes_back_is_a_pods_again(net: Lab, agent: Agent) -> None:
    """One that goes takes its programs along."""
    net.curl()
    with Client(agent.socket) as client:
        ip("link set tap1 name spare")
        wait_until(lambda: told_devices(client) == (), seconds=LIMIT, what="it to be left")
        ip("link set spare name tap7")
        wait_until(lambda: told_devices(client) == ("tap7",), seconds=LIMIT, what="it to be found")
        assert net.curl()[1] == POD
        ip("link del tap7")
        wait_until(lambda: told_devices(client) == (), seconds=LIMIT, what="its end")
        assert client.socket().troubles == ()


def test_devices_can_change_while_it_runs(net: Lab, agent: Agent) -> None:
    """Others can't be named otherwise; the room for flows can't change."""
    section = agent.config["socket"]
    with Client(agent.socket) as client:
        agent.write(socket=section | {"packets": {"devices": ["none*"], "flows": 1024}})
        wait_until(lambda: not told_devices(client), seconds=LIMIT, what="the change")
        assert programs() == []
        agent.write(socket=section | {"packets": {"devices": ["tap1"], "flows": 2048}})
        wait_until(lambda: client.status().file.refused is not None, seconds=LIMIT, what="no")
        (problem,) = client.status().file.problems
        assert str(problem).startswith("socket.packets: only its devices can change")
        agent.write(socket=section)
        wait_until(lambda: told_devices(client) == ("tap1",), seconds=LIMIT, what="the change")
    assert net.curl()[1] == POD


def told_devices(client: Client) -> tuple[str, ...]:
    """Those that have the programs."""
    packets = client.socket().packets
    return packets.devices if packets else ()


def test_packets_need_no_cgroup(net: Lab, tmp_path: Path) -> None:
    """They are translated while there is none, which is told; sockets are when there is one."""
    with new_cgroup() as parent:
        cgroup = parent / "later"
        section = {"cgroup": str(cgroup), "packets": {"devices": ["tap*"], "flows": 1024}}
        agent = Agent(tmp_path, {"socket": section, "services": SERVICES})
        del agent.config["devices"]
        agent.write()
        agent.start()
        assert net.curl()[1] == POD
        with Client(agent.socket) as client:
            found, status = client.socket(), client.status()
            assert (found.cgroup, found.proven, found.hooks) == ("", False, ())
            assert found.packets
            assert found.packets.verdicts["from_pod"]["balanced"]
            assert status.capabilities["socket"].startswith("at no socket: ")
            assert "packets of 1 devices" in status.capabilities["socket"]
            assert str(cgroup) in (status.trouble or "")
        assert "for no process: there is no cgroup" in agent.command("socket", "list").stdout
        traced = agent.command("socket", "trace", f"{VIP}:{HTTP}", "--live")
        assert "there is no cgroup whose sockets are balanced" in traced.stderr
        agent.kill()
        assert net.curl()[1] == POD
        agent.start()
        cgroup.mkdir()
        with Client(agent.socket) as client:
            wait_until(lambda: client.socket().proven, seconds=LIMIT, what="it to be attached")
            assert client.socket().cgroup == str(cgroup)
            with Child(cgroup) as child:
                child.run("make('t', AF_INET, SOCK_STREAM)")
                child.run(f"S['t'].connect(('{VIP}', {HTTP}))")
                assert child.run("S['t'].getpeername()") == [VIP, HTTP]
            assert client.socket().counters.verdicts["connect"]["balanced"] == 1
            assert client.status().trouble is None
        assert net.curl()[1] == POD
        agent.end()
        detach(PINS / "socket")
        detach_pinned(PINS)
        cgroup.rmdir()


def test_without_its_section_it_is_taken_out(net: Lab, agent: Agent) -> None:
    """By the next agent."""
    assert net
    agent.end()
    del agent.config["socket"]["packets"]
    agent.write()
    agent.start()
    assert programs() == []
    assert not (PINS / "socket" / "packets").exists()


def test_a_script_does_the_same(net: Lab) -> None:
    """And leaves nothing."""
    with new_cgroup() as cgroup, SocketLoadBalancer(cgroup, packets=["tap*"]) as lb:
        lb.add_service("web", vip=VIP, port=HTTP, backends=BACKENDS)
        backend, client = net.curl()
        assert client == POD
        (flow,) = lb.packet_flows(service="web")
        assert (str(flow.backend), flow.device) == (backend, "tap1")
        assert lb.packet_flows(service="mail") == ()
        with in_netns(net.pod):
            serve_http(POD, net.undo)
        lb.add_service("self", vip=OTHER, port=HTTP, backends=[POD])
        assert net.curl(OTHER) == (POD, OTHER)
        assert len(programs()) == 2
    assert programs() == []
    with pytest.raises(ConfigError, match=r"socket\.packets\.devices: 'ta\*p' has a"):
        SocketLoadBalancer("/sys/fs/cgroup", packets=["ta*p"])


def test_a_pod_and_its_backend_on_one_bridge() -> None:
    """What is answered comes by the bridge and never by the node's stack."""
    with (
        bridged() as net,
        new_cgroup() as cgroup,
        SocketLoadBalancer(cgroup, packets=["tap*"]) as lb,
    ):
        lb.add_service("web", vip=VIP, port=HTTP, backends=[NEAR])
        assert net.curl() == (NEAR, POD)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"devices": []}, "socket.packets.devices: no device is named"),
        ({"devices": ["ta*p"]}, "socket.packets.devices: 'ta*p' has a * before its end"),
        ({"devices": ["tap1"], "flows": 5}, "socket.packets.flows: 5 "),
        ({}, "socket.packets.devices: is missing"),
    ],
)
def test_bad_input_is_told(tmp_path: Path, section: dict[str, Any], message: str) -> None:
    """And nothing is left."""
    agent = Agent(tmp_path, {"socket": {"packets": section}, "services": []})
    del agent.config["devices"]
    agent.write()
    assert message in agent.start_in_vain()
