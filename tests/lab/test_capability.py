# SPDX-License-Identifier: Apache-2.0
"""A capability that is not Towpath's: docs/design/capabilities.md's example in a real agent."""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING, Any

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from tests.lab.harness_agent import DEVICE, LIMITS, PEER, PINS, WEB, Agent, device, names
from tests.lab.harness_examples import EXAMPLES, PACKETS, with_line
from tests.unit.kernel.harness_clang import kept

from towpath.api.client import ApiError, Client
from towpath.kernel.bpf.maps import Map
from towpath.lab.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SECTION = {"device": DEVICE, "first": 9000, "last": 9009}
BALANCER = {"devices": [DEVICE], "limits": LIMITS, "services": [WEB]}


@pytest.fixture
def towpath(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is started finds a Towpath with the example's line, and says what it imports."""
    compiled = tmp_path / "packets.bpf.o"
    compiled.symlink_to(kept(EXAMPLES / "packets" / "packets.bpf.c"))
    monkeypatch.setenv("PYTHONPATH", with_line(tmp_path / "overlay", PACKETS, compiled))


@pytest.fixture
def agent(tmp_path: Path, towpath: None) -> Iterator[Agent]:
    """An agent's files, with neither devices nor services, and a device."""
    del towpath
    made = Agent(tmp_path)
    configure(made)
    with device():
        try:
            yield made
        finally:
            if made.process is not None and made.process.poll() is None:
                made.kill()


def configure(agent: Agent, **sections: Any) -> None:
    """Write a configuration of nothing but these."""
    agent.config = {key: agent.config[key] for key in ("api", "state")}
    agent.write(**sections)


def send(*ports: int) -> None:
    """Have UDP packets to these ports come in on the device."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
        sender.bind((PEER, 0))
        for port in ports:
            ip = IP(src="192.0.2.99", dst="192.0.2.1") / UDP(sport=1, dport=port) / b"x"
            sender.send(bytes(Ether(src="02:00:00:00:00:01", dst="ff:ff:ff:ff:ff:ff") / ip))


def counted(agent: Agent) -> int:
    """How many the API says there were."""
    with Client(agent.socket) as client:
        return int(client.get("packets")["packets"])


def metric(agent: Agent) -> float:
    """How many the metrics say there were."""
    with Client(agent.socket) as client:
        (line,) = [
            x for x in client.metrics().splitlines() if x.startswith("towpath_packets_total")
        ]
    return float(line.split()[1])


def test_one_line_and_its_modules_are_a_capability(agent: Agent) -> None:
    """It counts, and says so in status, metrics, API, and by a command of its own."""
    configure(agent, packets=SECTION)
    agent.start()
    send(9000, 9009, 9010, 8999, 9005)
    wait_until(lambda: counted(agent) == 3, seconds=5, what="three packets")
    assert metric(agent) == 3
    ran = agent.command("packets")
    assert (ran.stdout, ran.returncode) == ("3 packets\n", 0)
    assert json.loads(agent.command("packets", "-o", "json").stdout) == {"packets": 3}
    assert "Packets counted at tc ingress." in agent.command("--help").stdout
    with Client(agent.socket) as client:
        status = client.status()
        client.health()
    assert status.capabilities == {"packets": f"3 packets on {DEVICE}"}
    assert f"3 packets on {DEVICE}" in agent.command("status").stdout


def test_it_counts_on_whatever_becomes_of_the_agent(agent: Agent) -> None:
    """Between two agents, too: after an end and after a kill."""
    configure(agent, packets=SECTION)
    agent.start()
    send(9000)
    agent.end()
    send(9001)
    agent.start()
    send(9002)
    agent.kill()
    send(9003)
    agent.start()
    wait_until(lambda: counted(agent) == 4, seconds=5, what="four packets")


def test_without_its_section_nothing_of_it_is_there(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not imported; and where no device is configured, nothing of the load balancer is either."""
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")
    agent.start()
    with Client(agent.socket) as client:
        assert client.status().capabilities == {}
        with pytest.raises(ApiError, match=r"not configured here: devices, .*, packets$"):
            client.get("packets")
    agent.end()
    assert "towpath.agent.agent" in agent.log
    assert "examples.packets" not in agent.log
    for module in ("towpath.agent.lb", "towpath.datapath.lb", "towpath.datapath.program", "numpy"):
        assert module not in agent.log, module
    configure(agent, packets=SECTION)
    agent.start()
    assert "tests.examples.packets.datapath" in agent.log


def test_a_section_that_is_gone_is_gone_from_the_kernel(agent: Agent) -> None:
    """With the next agent: the program, and what was pinned."""
    configure(agent, packets=SECTION)
    agent.start()
    agent.end()
    with Map.from_pin(PINS / "packets" / "counted") as packets:
        send(9000)
        wait_until(lambda: packets.lookup(0).sum() == 1, seconds=5, what="a packet")
        configure(agent)
        agent.start()
        assert not (PINS / "packets").exists()
        send(*[9000] * 10)
        assert packets.lookup(0).sum() == 1


def test_it_goes_with_its_agent_if_that_is_asked_for(agent: Agent) -> None:
    """As the load balancer does."""
    configure(agent, packets=SECTION)
    agent.start("--detach-on-exit")
    agent.end()
    assert not (PINS / "packets").exists()


def test_a_change_is_taken_over(agent: Agent) -> None:
    """Without a restart, where it says so."""
    configure(agent, packets=SECTION)
    agent.start()
    agent.write(packets=SECTION | {"last": 9100})
    wait_for_file(agent, lambda status: status.file.refused is None and sends(agent, 9100))
    before = counted(agent)
    agent.write(packets=SECTION | {"device": PEER})
    wait_for_file(agent, lambda status: status.file.refused is not None)
    assert problems(agent) == ["packets.device"]
    agent.write(packets=SECTION | {"first": 9010})
    wait_for_file(agent, lambda status: status.file.refused is not None)
    wait_until(lambda: problems(agent) == ["packets.last"], seconds=5, what="the other problem")
    assert counted(agent) >= before


def test_what_one_part_refuses_no_part_has(agent: Agent) -> None:
    """A file is in force as a whole, or not at all."""
    configure(agent, **BALANCER, packets=SECTION)
    agent.start()
    assert names(agent) == {"web"}
    other = WEB | {"name": "other", "port": 81}
    agent.write(services=[WEB, other], packets=SECTION | {"device": PEER})
    wait_for_file(agent, lambda status: status.file.refused is not None)
    assert names(agent) == {"web"}
    agent.write(packets=SECTION)
    wait_until(lambda: names(agent) == {"web", "other"}, seconds=5, what="the other service")
    with Client(agent.socket) as client:
        assert set(client.status().capabilities) == {"lb", "neigh", "packets"}
        client.health()


def test_a_section_comes_and_goes_with_a_restart(agent: Agent) -> None:
    """A running agent refuses both, and says which."""
    configure(agent, **BALANCER)
    agent.start()
    agent.write(packets=SECTION)
    wait_for_file(agent, lambda status: status.file.refused is not None)
    assert problems(agent) == ["packets"]


def test_a_wrong_section_is_refused(agent: Agent) -> None:
    """With file, line and field, as everything in the file."""
    configure(agent, packets={"device": DEVICE, "first": 0, "port": 1})
    ran = agent.command("agent", "--config", str(agent.file))
    assert ran.returncode == 1
    assert "packets.first: 0 is out of range; allowed: 1 to 65535" in ran.stderr
    assert "packets.port: unknown key; allowed: device, first, last" in ran.stderr
    configure(agent, packets=SECTION | {"last": 1})
    ran = agent.command("agent", "--config", str(agent.file))
    assert "packets.last: 1 is below first; allowed: 9000 to 65535" in ran.stderr


def test_the_doctor_asks_what_it_needs(agent: Agent) -> None:
    """And nothing of the load balancer is required where there is no device to balance on."""
    configure(agent, packets=SECTION)
    found = doctor(agent)
    assert found["counting at tc ingress"]["required"]
    assert found[f"packets on {DEVICE}"]["state"] == "available"
    assert not found["load balancer program"]["required"]
    configure(agent, packets=SECTION | {"device": "tpnone"})
    assert doctor(agent)["packets on tpnone"]["state"] == "missing"
    configure(agent)
    assert "counting at tc ingress" not in doctor(agent)


def doctor(agent: Agent) -> dict[str, Any]:
    """Its findings by name."""
    ran = agent.command("doctor", "--config", str(agent.file), "-o", "json")
    return {each["name"]: each for each in json.loads(ran.stdout)}


def wait_for_file(agent: Agent, condition: Any) -> None:
    """Wait until the agent has made something of its file."""
    with Client(agent.socket) as client:
        wait_until(lambda: condition(client.status()), seconds=10, what="the file to be read")


def sends(agent: Agent, port: int) -> bool:
    """Whether a packet to a port is counted."""
    before = counted(agent)
    send(port)
    return counted(agent) > before


def problems(agent: Agent) -> list[str]:
    """The fields that the file was refused for."""
    with Client(agent.socket) as client:
        return [problem.field for problem in client.status().file.problems]
