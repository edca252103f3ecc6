# SPDX-License-Identifier: Apache-2.0
"""Bandwidth as a part of an agent: configured, set, asked, killed, changed, removed.

Without fq in the kernel what pods send is policed; the guests' tests have it paced.
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
from tests.lab.harness_agent import PINS, Agent
from tests.lab.harness_masquerade import NEAR, POD, Lab, ip, lab, transfer, wait
from tests.lab.test_masquerade_agent import made

from towpath.api.client import Client
from towpath.api.errors import ApiError
from towpath.datapath.bandwidth.node import detach
from towpath.kernel.bpf.hooks import Tc
from towpath.kernel.net import qdiscs
from towpath.kernel.net.netns import in_netns

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

WEB: dict[str, Any] = {"name": "web", "device": "veth1", "egress": "10M", "ingress": "20M"}
SECTION: dict[str, Any] = {"devices": ["eth*"], "pods": [WEB], "aggregates": 16}
SIZE, OVERHEAD = 1000, 42


@pytest.fixture
def net() -> Iterator[Lab]:
    """A pod with a process in it, a node, a world."""
    with lab() as made_:
        ip("route add 10.244.0.0/24 via 192.168.0.1", made_.world)
        with in_netns(made_.pod):
            process = subprocess.Popen(["sleep", "infinity"])
        made_.undo.callback(process.wait)
        made_.undo.callback(process.kill)
        yield made_


@pytest.fixture
def agent(net: Lab, tmp_path: Path) -> Iterator[Agent]:
    """One on the node that does nothing else."""
    assert net
    agent = made(tmp_path, bandwidth=SECTION)
    agent.start()
    yield agent
    agent.end()
    detach(PINS / "bandwidth")


def flood(net: Lab, number: int) -> None:
    """Datagrams from the pod to the world, as fast as can be."""
    ours = net.socket(net.pod, socket.SOCK_DGRAM, POD)
    for _ in range(number):
        ours.sendto(bytes(SIZE), (NEAR, 5000))


def in_pod(net: Lab, path: str) -> str:
    """What a setting of the pod's namespace is."""
    with in_netns(net.pod), open(path, encoding="ascii") as file:  # noqa: PTH123 -- in a namespace
        return file.read().strip()


def longest(net: Lab) -> int:
    """Bytes of a packet that the pod's device takes."""
    with in_netns(net.pod):
        shown = subprocess.run(
            ["ip", "-d", "-j", "link", "show", "eth0"], capture_output=True, check=True
        )
    return int(json.loads(shown.stdout)[0]["gso_max_size"])


def test_what_a_pod_sends_and_receives_is_told(net: Lab, agent: Agent) -> None:
    """By the API, by commands, and by metrics. A flood is limited."""
    listener = net.listening(NEAR, 80)
    ours, theirs, _ = net.connect(NEAR, 80, listener)
    transfer(ours, theirs, 1 << 16)
    transfer(theirs, ours, 1 << 16)
    flood(net, 1000)
    with Client(agent.socket) as client:
        found = client.bandwidth()
        (web,) = found.aggregates
        assert (web.name, web.kind, web.devices, web.egress) == ("web", "pod", ("veth1",), 10**7)
        # However they are kept, they hold: it is ready.
        client.health()
        assert web.egress_bytes > 1 << 16
        assert web.ingress_bytes > 1 << 16
        if qdiscs.has_fq():
            assert [each.paces for each in found.devices] == [True, True]
        else:
            assert {each.why for each in found.devices} == {"this kernel has no fq"}
            # A bucket of two of the longest packets is less than that.
            assert 0 < web.verdicts["drop_policed"] < 1000
        text = client.metrics()
        assert 'towpath_bandwidth_limit_bits{aggregate="web",direction="egress",kind="pod"}' in text
        assert "1 limit" in str(client.status())
    listed = agent.command("bandwidth", "list").stdout
    assert "web" in listed
    assert "10M" in listed
    assert "survive the way out of pods" in listed
    told = json.loads(agent.command("bandwidth", "list", "-o", "json").stdout)
    assert told["aggregates"][0]["ingress"] == 2 * 10**7
    watched = agent.command("bandwidth", "watch", "--count", "1", "--seconds", "0.1").stdout
    assert "sends" in watched


def test_limits_are_set_and_taken_back(net: Lab, agent: Agent) -> None:
    """Of a configured pod, of a device, of an address; also when the agent is another."""
    assert net
    agent.command("bandwidth", "set", "web", "--egress", "50M", "--priority", "3")
    agent.command("bandwidth", "set", POD, "--ingress", "1Gi")
    with Client(agent.socket) as client:
        found = {each.name: each for each in client.bandwidth().aggregates}
        assert (found["web"].egress, found["web"].ingress, found["web"].priority) == (
            50_000_000,
            20_000_000,
            3,
        )
        assert (found[POD].ingress, found[POD].devices) == (1 << 30, ("veth1",))
        assert found["web"].origin == "configuration, changed"
    agent.end()
    agent.start()
    with Client(agent.socket) as client:
        assert {each.name: each.egress for each in client.bandwidth().aggregates} == {
            "web": 50_000_000,
            POD: None,
        }
        client.delete_bandwidth("web")
        client.delete_bandwidth(POD)
        (web,) = client.bandwidth().aggregates
        assert (web.egress, web.origin) == (10_000_000, "configuration")
        with pytest.raises(ApiError, match="nothing was set"):
            client.delete_bandwidth("web")


@pytest.mark.parametrize(
    ("target", "limit", "told"),
    [
        ("nobody", {"egress": "10M"}, "is no pod, group or device of this node; pods: web"),
        ("web", {"egress": "10K"}, "K is written k"),
        ("web", {"egress": 0}, "out of range"),
        ("web", {"egress": "99k"}, "from 100k to 1T"),
        ("web", {"ingress": "ten"}, "is not a number of bits a second"),
        ("web", {"burst": 100}, "a full frame must fit"),
        ("web", {}, "no limit is given"),
        ("eth0", {"egress": "10M"}, "and no pod's"),
        ("10.9.9.9", {"packets": 100}, "has no rate"),
    ],
)
def test_what_cant_be_is_refused(
    net: Lab, agent: Agent, target: str, limit: dict[str, Any], told: str
) -> None:
    """And changes nothing."""
    assert net
    with Client(agent.socket) as client:
        before = client.bandwidth().aggregates
        with pytest.raises(ApiError, match=told):
            client.set_bandwidth(target, **limit)
        (after,) = client.bandwidth().aggregates
        assert (after.egress, after.ingress) == (before[0].egress, before[0].ingress)


def test_a_device_of_one_pod_isnt_anothers(net: Lab, agent: Agent) -> None:
    """Its own limit within its group's is another matter."""
    assert net
    with Client(agent.socket) as client, pytest.raises(ApiError, match="is in web already"):
        client.set_bandwidth("veth1", egress="10M")


def test_limits_go_on_without_an_agent(net: Lab, agent: Agent) -> None:
    """While there is none, and with the next one: the same number, and what was counted."""
    flood(net, 10)
    with Client(agent.socket) as client:
        before = client.bandwidth().aggregates[0].egress_bytes
    assert before >= 10 * (SIZE + OVERHEAD)
    assert agent.process
    agent.process.send_signal(signal.SIGKILL)
    agent.process.wait()
    flood(net, 10)
    agent.start()
    flood(net, 10)
    with Client(agent.socket) as client:
        found = client.bandwidth().aggregates[0]
        assert found.egress_bytes >= before + 20 * (SIZE + OVERHEAD)


def test_limits_change_with_the_file(net: Lab, agent: Agent) -> None:
    """Groups and pods do; devices don't, and are refused."""
    assert net
    pods = [
        {"name": "web", "addresses": [POD], "egress": "1M", "group": "team"},
        {"name": "gone", "device": "veth77", "egress": "1M"},
    ]
    section = SECTION | {"pods": pods, "groups": [{"name": "team", "egress": "2M"}]}
    agent.write(bandwidth=section)

    def names() -> list[str]:
        with Client(agent.socket) as client:
            return [each.name for each in client.bandwidth().aggregates]

    wait(lambda: names() == ["team", "web", "gone"], "the change")
    flood(net, 10)
    with Client(agent.socket) as client:
        found = client.bandwidth()
        assert found.aggregates[1].egress_bytes >= 10 * (SIZE + OVERHEAD)
        assert any("gone: there is no device veth77" in each for each in found.troubles)
        ip("link add veth77 type veth peer name other77")
        wait(lambda: client.bandwidth().aggregates[2].devices == ("veth77",), "the device")
        ip("link del veth77")
        wait(lambda: client.bandwidth().aggregates[2].devices == (), "it to go")
    agent.write(bandwidth=section | {"devices": ["eth0"]})
    wait(lambda: "can change while the agent runs" in agent.log, "a refusal")


def test_more_than_there_is_room_for_is_refused(net: Lab, agent: Agent) -> None:
    """And what is there goes on."""
    assert net
    pods = [{"name": f"p{n}", "device": f"v{n}", "egress": "1M"} for n in range(17)]
    agent.write(bandwidth=SECTION | {"pods": pods})
    wait(lambda: "bandwidth.aggregates is 16" in agent.log, "a refusal")
    with Client(agent.socket) as client:
        assert [each.name for each in client.bandwidth().aggregates] == ["web"]


def test_what_is_set_inside_a_pod_is_put_back(net: Lab, agent: Agent) -> None:
    """Congestion control, and how long the packets of a slow pod are."""
    before = in_pod(net, "/proc/sys/net/ipv4/tcp_congestion_control")
    assert longest(net) == 3028  # 2 ms of 10 Mbit/s would be less
    agent.command("bandwidth", "set", "web", "--egress", "100M")
    wait(lambda: longest(net) == 25_000, "2 ms of it")
    other, expected = ("off", "cubic") if before != "cubic" else ("on", "bbr")
    agent.command("bandwidth", "bbr", other)
    with Client(agent.socket) as client:
        # A namespace that isn't the first takes what everybody may have; the node is none, either.
        allowed = not any("congestion control in " in each for each in client.bandwidth().troubles)
    control = "/proc/sys/net/ipv4/tcp_congestion_control"
    assert in_pod(net, control) == (expected if allowed else before)
    agent.command("bandwidth", "bbr", "host")
    assert in_pod(net, control) == before
    agent.end()
    detach(PINS / "bandwidth")
    assert longest(net) == 65536


def test_its_programs_go_with_its_section(net: Lab, agent: Agent) -> None:
    """The next agent, which hasn't it, removes them."""
    assert net
    index = socket.if_nametoindex("veth1")
    assert len(Tc(index, "egress").programs()) == len(Tc(index, "ingress").programs()) == 1
    agent.end()
    assert Tc(index, "egress").programs()
    agent.config.pop("bandwidth")
    agent.write()
    agent.start()
    wait(lambda: not Tc(index, "egress").programs(), "them to go")
    assert not (PINS / "bandwidth").exists()


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({"pods": [WEB]}, "devices: is missing"),
        ({"devices": "eth0", "pods": [WEB, WEB]}, "web is pods[0]'s already"),
        ({"devices": "eth0", "pods": [WEB | {"egress": "1"}]}, "from 100k to 1T"),
        ({"devices": "eth0", "pods": [{"name": "a", "egress": "1M"}]}, "has none; allowed: one of"),
        ({"devices": "eth0", "pods": [WEB | {"group": "x"}]}, "x is no group"),
        ({"devices": "eth0", "pods": [{"name": "a", "device": "b"}]}, "has no limit"),
        (
            {"devices": "eth0", "pods": [WEB, WEB | {"name": "b"}]},
            "veth1 is web's already",
        ),
    ],
)
def test_what_is_wrong_is_told(
    net: Lab, tmp_path: Path, section: dict[str, Any], told: str
) -> None:
    """Where, and what is allowed; the agent doesn't start."""
    assert net
    assert told in made(tmp_path, bandwidth=section).start_in_vain()


def test_ten_thousand_limits(net: Lab, tmp_path: Path) -> None:
    """There is room, they are put in place, and one more packet costs what it did."""
    pods = [{"name": f"p{n}", "device": f"v{n}", "egress": "1M"} for n in range(10_000)]
    with ExitStack() as undo:
        agent = made(tmp_path, bandwidth=SECTION | {"pods": [WEB, *pods], "aggregates": 16383})
        undo.callback(detach, PINS / "bandwidth")
        undo.callback(agent.end)
        agent.start()
        flood(net, 10)
        with Client(agent.socket) as client:
            found = client.bandwidth()
            assert len(found.aggregates) == 10_001
            assert found.aggregates[0].egress_bytes >= 10 * (SIZE + OVERHEAD)
