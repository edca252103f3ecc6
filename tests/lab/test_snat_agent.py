# SPDX-License-Identifier: Apache-2.0
"""Source NAT by an agent: killed and started again, with health checks, with ports of backends."""

from __future__ import annotations

import subprocess
import sys
import threading
from contextlib import ExitStack, closing, contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from tests.lab.harness_health import FAST
from tests.lab.harness_snat import (
    CLOSED,
    OTHER,
    PORT,
    VIPS,
    Talk,
    own,
    services,
    snat,
    snat_lab,
)

from towpath import LoadBalancer
from towpath.api.client import Client, ClientError
from towpath.kernel.net.netns import in_netns
from towpath.lab.topology import BALANCER, DEVICE, VIP4
from towpath.lab.waiting import wait_until
from towpath.model import Limits

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from towpath.lab import Lab


REQUESTS = 40
LIMITS = {"services": 16, "backends": 64, "flows": 1024, "table_slots": 65536}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Shared by the tests."""
    with snat_lab() as lab:
        yield lab


class Agents:
    """An agent in the load balancer's namespace, one process after the other."""

    def __init__(self, lab: Lab, directory: Path) -> None:
        self.lab = lab
        self.socket = directory / "agent.sock"
        self.file = directory / "towpath.yaml"
        link = lab.topology.balancer
        config = {
            "devices": [DEVICE],
            "snat": {"ipv4": [str(link.node4[0].ip)], "ipv6": [str(link.node6[0].ip)]},
            "limits": LIMITS,
            "api": {"socket": str(self.socket)},
            "state": {"directory": str(directory / "state"), "pins": str(lab.bpffs / "snat")},
            "services": services(lab),
        }
        self.file.write_text(yaml.safe_dump(config))
        self.process: subprocess.Popen[str] | None = None

    def check(self, **fields: Any) -> None:
        """Have the TCP services' backends checked. For an agent that isn't started yet."""
        config = yaml.safe_load(self.file.read_text())
        for each in config["services"]:
            if each["protocol"] == "tcp":
                each["health"] = FAST | {"type": "tcp"} | fields
        self.file.write_text(yaml.safe_dump(config))

    def states(self) -> dict[str, str]:
        """How the backends are that are checked, by their addresses."""
        with Client(self.socket) as client:
            checks = [each for version in VIPS for each in client.checks(f"tcp{version}")]
        return {str(each.backend): str(each.state) for each in checks}

    def start(self) -> None:
        """Start one, which takes over what the last one left."""
        command = [sys.executable, "-m", "towpath", "agent", "--config", str(self.file)]
        self.process = self.lab.spawn(BALANCER, command, log_to="snat.log")
        wait_until(self._serves, seconds=120, what="the agent to serve")

    def _serves(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.lab.directory / "snat.log").read_text()
        try:
            with Client(self.socket) as client:
                return client.status().pid == self.process.pid
        except ClientError:
            return False

    def kill(self) -> None:
        """SIGKILL."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(20)

    def end(self) -> None:
        """Kill it, and remove what works on without it."""
        self.kill()
        pins = self.lab.bpffs / "snat"
        limits = Limits(**LIMITS)
        with (
            in_netns(BALANCER),
            LoadBalancer(DEVICE, limits=limits, snat=snat(self.lab), pins=pins) as last,
        ):
            last.detach()


def test_the_agent_is_killed_and_comes_back(lab: Lab, tmp_path: Path) -> None:
    """Connections go on all the while, each with its backend, and new ones are made."""
    agents = Agents(lab, tmp_path)
    agents.start()
    with ExitStack() as undo:
        talks = [undo.enter_context(closing(Talk(v))) for v in (4, 6) for _ in range(6)]
        done = threading.Event()
        failed: list[object] = []
        asked = 0

        def talk_on() -> None:
            nonlocal asked
            while not done.is_set():
                for talk in talks:
                    if talk.ask(3000) != talk.said:
                        failed.append(talk.said)
                    asked += 1
                with closing(Talk(4)) as new:
                    new.ask(10)

        thread = threading.Thread(target=talk_on)
        thread.start()
        try:
            for _ in range(4):
                agents.kill()
                before = asked
                agents.start()
                wait_until(lambda: asked > before + 24, seconds=120, what="requests")  # noqa: B023
        finally:
            done.set()
            thread.join()
        assert not failed
        with Client(agents.socket) as client:
            found = client.trace("198.51.100.2:40000 -> 203.0.113.10:7000 tcp")
            assert found.forwarding == "snat"
            verdicts = client.counters().verdicts
        assert not any(n for verdict, n in verdicts.items() if verdict.startswith("drop"))
    agents.end()


def test_backends_at_a_port_of_their_own(lab: Lab, tmp_path: Path) -> None:
    """Clients reach them at the VIP's, and checks at theirs; who doesn't listen is found down."""
    agents = Agents(lab, tmp_path)
    config = yaml.safe_load(agents.file.read_text())
    listening, silent, *_ = (str(each.node4[0].ip) for each in lab.topology.backend_links)
    config["services"] = [
        {
            "name": "own",
            "vip": str(VIP4),
            "port": OTHER,
            "forwarding": "snat",
            "table_size": 251,
            "health": {"type": "tcp", "interval": 0.1, "fall": 1, "rise": 1},
            "backends": [
                {"address": listening, "port": PORT},
                {"address": silent, "port": CLOSED},
            ],
        }
    ]
    agents.file.write_text(yaml.safe_dump(config))
    agents.start()
    try:
        with Client(agents.socket) as client:

            def states() -> dict[str, tuple[str, str]]:
                found = {each.backend: str(each.state) for each in client.checks("own")}
                in_force = {each.address: each.state for each in client.backend_status("own")}
                return {str(a): (found[a], str(in_force[a])) for a in found}

            wait_until(
                lambda: states() == {listening: ("up", "active"), silent: ("down", "quarantined")},
                seconds=120,
                what="the checks to tell them apart",
            )
            for _ in range(REQUESTS // 4):
                with closing(Talk(4, OTHER)) as talk:
                    assert talk.ask(3000)["name"] == "be1"
            ends = {each.translation for each in client.flows(service="own")}
            assert {each.backend_port for each in ends if each} == {PORT}
            assert {each.vip_port for each in ends if each} == {OTHER}
    finally:
        agents.end()


def test_backends_are_checked_at_their_own_address(lab: Lab, tmp_path: Path) -> None:
    """From the address that clients are translated to, and nobody else need be let in."""
    agents = Agents(lab, tmp_path)
    agents.check()
    links = lab.topology.backend_links
    everyone = [str(at[0].ip) for each in links for at in (each.node4, each.node6)]
    first = links[0]
    agents.start()
    wait_until(lambda: states(agents, everyone) == {"up"}, seconds=120, what="all to be up")
    with unanswered(lab, first.node, 4):
        gone = str(first.node4[0].ip)
        others = [each for each in everyone if each != gone]
        wait_until(lambda: states(agents, [gone]) == {"down"}, seconds=120, what="it to be down")
        assert states(agents, others) == {"up"}
        for _ in range(REQUESTS):
            with closing(Talk(4)) as talk:
                assert talk.said["name"] != first.port
    wait_until(lambda: states(agents, everyone) == {"up"}, seconds=120, what="all to be up again")
    agents.end()


def states(agents: Agents, backends: list[str]) -> set[str]:
    """The states of some backends."""
    found = agents.states()
    return {found.get(each, "unknown") for each in backends}


@contextmanager
def unanswered(lab: Lab, node: str, version: int) -> Iterator[None]:
    """A backend has no way back to the address that clients are translated to."""
    what = ["blackhole", str(own(lab, version))]
    subprocess.run(["ip", "-n", node, "route", "add", *what], check=True)
    try:
        yield
    finally:
        subprocess.run(["ip", "-n", node, "route", "del", *what], check=True)
