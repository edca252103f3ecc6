# SPDX-License-Identifier: Apache-2.0
"""Masquerade as a part of an agent: configured, asked, killed, changed, removed."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from tests.lab import harness_masquerade as harness
from tests.lab.harness_agent import PINS, Agent
from tests.lab.harness_masquerade import FAR, NEAR, POD, Lab, ip, lab, transfer, wait

from towpath.api.client import Client
from towpath.datapath.masquerade.node import detach
from towpath.doctor import masquerade as doctor
from towpath.doctor.probes import ask
from towpath.kernel.bpf.hooks import Tc
from towpath.model.masquerade import Section

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

RULE: dict[str, Any] = {"devices": ["veth*"], "prefixes": ["10.244.0.0/24", "fd00:1::/64"]}
SECTION: dict[str, Any] = {"rules": [RULE], "flows": 8192}


@pytest.fixture
def net() -> Iterator[Lab]:
    """A pod, a node, a world."""
    with lab() as made:
        yield made


@pytest.fixture
def agent(net: Lab, tmp_path: Path) -> Iterator[Agent]:
    """One on the node that does nothing else."""
    assert net
    agent = made(tmp_path, masquerade=SECTION)
    agent.start()
    yield agent
    agent.end()
    detach(PINS / "masquerade")


def made(directory: Path, **config: Any) -> Agent:
    """An agent without a load balancer, not started."""
    agent = Agent(directory, config)
    for key in ("devices", "services", "limits"):
        del agent.config[key]
    agent.write()
    return agent


def test_flows_are_told(net: Lab, agent: Agent) -> None:
    """By the API, and by the command."""
    listener = net.listening(FAR, 80)
    ours, theirs, seen = net.connect(FAR, 80, listener)
    assert seen == "10.0.0.1"
    transfer(ours, theirs, 1 << 20)
    port = theirs.getpeername()[1]
    with Client(agent.socket) as client:
        (flow,) = client.masqueraded_flows(client=POD, protocol="tcp").flows
        assert (str(flow.client), flow.client_port) == ours.getsockname()
        assert (str(flow.source), flow.port) == ("10.0.0.1", port)
        assert (str(flow.remote), flow.remote_port, flow.state) == (FAR, 80, "established")
        assert client.masqueraded_flows(client="10.244.0.9").flows == ()
        found = client.masquerade()
        assert found.counters.bound == found.flows == 1
        assert {each.name: each.role for each in found.devices} == {
            "veth1": "pods",
            "eth0": "out",
            "eth1": "out",
        }
        assert "towpath_masquerade_packets_total" in client.metrics()
        assert "1 flows, 5 addresses" in str(client.status())
    shown = agent.command("masquerade", "show").stdout
    assert "rule 0: 10.244.0.0/24, fd00:1::/64 by veth*" in shown
    listed = json.loads(agent.command("masquerade", "flows", "-o", "json").stdout)
    assert listed["flows"][0]["port"] == port
    assert f"10.0.0.1:{port}" in agent.command("masquerade", "flows").stdout


def test_connections_outlive_an_agent_that_is_killed(net: Lab, agent: Agent) -> None:
    """While there is none, and with the next one."""
    listener = net.listening(FAR, 80)
    ours, theirs, _ = net.connect(FAR, 80, listener)
    assert agent.process
    agent.process.send_signal(signal.SIGKILL)
    agent.process.wait()
    transfer(ours, theirs, 1 << 20)
    again, other, seen = net.connect(FAR, 80, listener)
    assert seen == "10.0.0.1"
    agent.start()
    transfer(theirs, ours, 1 << 20)
    with Client(agent.socket) as client:
        assert again
        ports = [theirs.getpeername()[1] for theirs in (theirs, other)]
        flows = client.masqueraded_flows(protocol="tcp").flows
        assert sorted(each.port for each in flows) == sorted(ports), flows
        assert len(client.masqueraded_flows().flows) == 2, client.masqueraded_flows().flows


def test_rules_change_with_the_file(net: Lab, agent: Agent) -> None:
    """Other things don't, and are refused."""
    ip("route add 10.244.0.0/24 via 10.0.0.1", net.world)
    listener = net.listening(FAR, 80)
    agent.write(masquerade=SECTION | {"rules": [RULE | {"exclude": ["10.0.0.0/24"]}]})
    wait(lambda: net.connect(FAR, 80, listener)[2] == POD, "the exclusion")
    agent.write(masquerade=SECTION | {"flows": 4096})
    wait(lambda: "only its rules can change" in agent.log, "a refusal")


def test_its_programs_go_with_its_section(net: Lab, agent: Agent) -> None:
    """The next agent, which hasn't it, removes them."""
    index = socket.if_nametoindex("eth0")
    assert Tc(index, "egress").programs()
    agent.end()
    assert Tc(index, "egress").programs()
    agent.config.pop("masquerade")
    agent.write()
    agent.start()
    wait(lambda: not Tc(index, "egress").programs(), "them to go")
    assert not (PINS / "masquerade").exists()
    assert net


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({"rules": []}, "there is none; allowed: at least one rule"),
        ({"rules": [RULE, RULE]}, "10.244.0.0/24 is in a rule for veth* already"),
        ({"rules": [RULE | {"devices": ["ve*th"]}]}, "has a * before its end"),
        ({"rules": [RULE], "ports": "60000-60003"}, "ports are too few"),
        ({"rules": [RULE], "mapping": "symmetric"}, "endpoint-independent"),
    ],
)
def test_what_is_wrong_is_told(
    net: Lab, tmp_path: Path, section: dict[str, Any], told: str
) -> None:
    """Where, and what is allowed; the agent doesn't start."""
    assert net
    assert told in made(tmp_path, masquerade=section).start_in_vain()


def test_ports_that_services_have_are_told(net: Lab, tmp_path: Path) -> None:
    """Of source NAT."""
    snat = {"ipv4": ["192.168.0.9"], "ports": "62000-63000"}
    agent = made(tmp_path, masquerade=SECTION, snat=snat)
    assert "have ports in common" in agent.start_in_vain()
    assert net


def test_netfilters_rules_that_see_nothing_are_named(net: Lab, agent: Agent) -> None:
    """What goes the short way doesn't pass them."""
    rules = """table ip mine {
        chain forward { type filter hook forward priority 0; policy accept; ip daddr 1.2.3.4 drop; }
        chain leave { type nat hook postrouting priority srcnat; ip saddr 10.9.0.0/16 masquerade; }
    }"""
    subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=True)
    with Client(agent.socket) as client:
        bypassed, shared = client.masquerade().troubles
    assert "ip mine forward (forward, 1 rule), ip mine leave" in bypassed
    assert "ip mine leave (postrouting, 1 rule) may translate to ports of 61000-65535" in shared
    assert net.connect(NEAR, 81, net.listening(NEAR, 81))[2] == "192.168.0.1"


def test_policies_of_ipsec_that_see_nothing_are_named(net: Lab, agent: Agent) -> None:
    """By status and by the doctor; those for others aren't."""
    tunnel = "tmpl src 192.168.0.1 dst 192.168.0.100 proto esp mode tunnel"
    ip(
        f"xfrm policy add src 10.244.0.0/16 dst 10.5.0.0/16 dir out {tunnel}\n"
        f"xfrm policy add src 10.9.0.0/16 dst 10.5.0.0/16 dir out {tunnel}"
    )
    with Client(agent.socket) as client:
        (told,) = client.masquerade().troubles
    assert "IPsec's policies (out 10.244.0.0/16 to 10.5.0.0/16): they leave unencrypted" in told
    section = Section(rules=(harness.RULE,))
    (rule,) = (each for each in doctor.rules(section) if "IPsec" in each.name)
    answer = ask(rule.ways[0].probe, doctor.PROBES)
    assert (answer.works, answer.found) == (False, "out 10.244.0.0/16 to 10.5.0.0/16")
    through = doctor.rules(replace(section, through_stack=True))
    assert not any("IPsec" in each.name for each in through)
    assert net
