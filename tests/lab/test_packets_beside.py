# SPDX-License-Identifier: Apache-2.0
"""Services in packets beside masquerade and limits of bandwidth, at one pod's device."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any

import pytest
from tests.lab.harness_agent import PINS, Agent
from tests.lab.harness_masquerade import FAR, NEAR, NEAR6, Lab, ip, lab, transfer, wait
from tests.listed import needs_lists
from tests.prog.kernel.harness_cgroups import new_cgroup

from towpath.api.client import Client
from towpath.datapath.host import detach_pinned
from towpath.datapath.masquerade.node import detach as detach_masquerade
from towpath.datapath.socket.balancer import detach
from towpath.kernel.bpf.hooks import Tc

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

VIP, VIP6, PORT = "203.0.113.10", "2001:db8:77::10", 80
RULE = {"devices": ["veth*"], "prefixes": ["10.244.0.0/24", "fd00:1::/64"]}
MASQUERADE: dict[str, Any] = {"rules": [RULE], "flows": 8192}
PACKETS: dict[str, Any] = {"devices": ["veth*"], "flows": 1024}


def offer(name: str, vip: str, *addresses: str) -> dict[str, Any]:
    """A service whose backends are outside of the node."""
    backends = [{"address": each} for each in addresses]
    return {"name": name, "vip": vip, "port": PORT, "table_size": 251, "backends": backends}


@pytest.fixture
def net() -> Iterator[Lab]:
    """A pod, a node, a world."""
    with lab() as made:
        yield made


@pytest.fixture
def agent(net: Lab, tmp_path: Path) -> Iterator[Agent]:
    """One on the node, not started."""
    assert net
    with new_cgroup() as cgroup:
        made = Agent(
            tmp_path,
            {
                "socket": {"cgroup": str(cgroup), "packets": PACKETS},
                "masquerade": MASQUERADE,
                "services": [offer("web", VIP, NEAR, FAR), offer("web6", VIP6, NEAR6)],
            },
        )
        del made.config["devices"]
        made.write()
        yield made
        made.end()
        detach(PINS / "socket")
        detach_masquerade(PINS / "masquerade")
        detach_pinned(PINS)


def order(device: str = "veth1") -> list[str]:
    """Who is at the ingress of a pod's device, in the order of running."""
    return [each.name for each in Tc(socket.if_nametoindex(device), "ingress").programs()]


@needs_lists
def test_a_flow_to_a_service_outside_leaves_masqueraded(net: Lab, agent: Agent) -> None:
    """And what is answered gets the pod's address, and then the service's."""
    agent.start()
    near, far, near6 = (net.listening(each, 80) for each in (NEAR, FAR, NEAR6))
    seen = set()
    for _ in range(8):
        ours = net.socket(net.pod, socket.SOCK_STREAM, "10.244.0.2")
        ours.connect((VIP, PORT))
        with Client(agent.socket) as client:
            flows = client.socket_flows(service="web").packets
        (flow,) = (each for each in flows if each.client_port == ours.getsockname()[1])
        listener = near if str(flow.backend) == NEAR else far
        theirs, peer = listener.accept()
        net.undo.enter_context(theirs)
        seen.add(peer[0])
        transfer(ours, theirs, 1 << 18)
        transfer(theirs, ours, 1 << 18)
    assert seen == {"192.168.0.1", "10.0.0.1"}
    ours, theirs, peer6 = net.connect(VIP6, PORT, near6)
    assert peer6 == "2001:db8:1::1"
    transfer(ours, theirs, 1 << 20)
    with Client(agent.socket) as client:
        found = client.masquerade()
        assert {each.name: each.direct for each in found.devices}["veth1"] is False
        assert found.counters.verdicts["from_pod"]["sent"] > 0


@pytest.mark.parametrize("later", [False, True])
def test_services_come_before_limits_and_those_before_masquerade(
    net: Lab, agent: Agent, *, later: bool
) -> None:
    """Whichever is configured first, and on devices that come while they run."""
    bandwidth = {"devices": ["eth0"], "pods": [{"name": "web", "device": "veth1", "egress": "1G"}]}
    if later:
        section = agent.config.pop("socket")
        services = agent.config.pop("services")
        agent.write(services=[])
        agent.start()
        assert order() == ["masq_from_pod"]
        agent.end()
        agent.write(socket=section, services=services)
    agent.write(bandwidth=bandwidth)
    agent.start()
    wanted = ["socket_from_pod", "bw_tag", "masq_from_pod"]
    wait(lambda: order() == wanted, "all programs")
    ip(f"link add veth9 type veth peer name eth9 netns /proc/{os.getpid()}/fd/{net.pod}")
    wait(lambda: order("veth9") == ["socket_from_pod", "masq_from_pod"], "a new device's")
