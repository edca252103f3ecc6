# SPDX-License-Identifier: Apache-2.0
"""A connection goes on while its backend drains or leaves; commands tell when it has ended."""

from __future__ import annotations

import json
import subprocess
from http.client import HTTPConnection
from typing import TYPE_CHECKING, Any
from unittest.mock import ANY

import pytest
from tests.lab.harness_lab import TOWPATH, assert_nothing_left, towpath

from towpath.kernel.net.netns import in_netns
from towpath.lab import Lab
from towpath.lab.agent import WEB6, Agent, backend_addresses
from towpath.lab.topology import BALANCER, CLIENT, VIP6
from towpath.lab.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from towpath.lab.traffic import Address

PATIENCE = 120  # seconds; a flow is counted for ten after its client has ended it


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A lab with a few backends."""
    with Lab.up(3) as up:
        yield up
    assert_nothing_left()


@pytest.fixture(scope="module")
def agent(lab: Lab) -> Iterator[Agent]:
    """The real agent in it."""
    made = Agent(lab)
    yield made
    made.client.close()


class Connection:
    """A client's connection to the IPv6 VIP, over which it asks when it is told to."""

    def __init__(self) -> None:
        with in_netns(CLIENT):
            self._http = HTTPConnection(str(VIP6), 80, timeout=60)
            self._http.connect()
        self.backend = self.ask()

    def ask(self) -> str:
        """Ask for a page: who answered."""
        self._http.request("GET", "/")
        return self._http.getresponse().read().decode()

    def close(self) -> None:
        """End it, as clients do."""
        self._http.close()


@pytest.fixture
def connection(agent: Agent) -> Iterator[Connection]:
    """One that has had an answer."""
    del agent
    made = Connection()
    yield made
    made.close()


def address_of(agent: Agent, connection: Connection) -> Address:
    """The backend at the other end."""
    return backend_addresses(agent.topology, WEB6)[connection.backend]


def backend_row(agent: Agent, address: Address) -> dict[str, Any] | None:
    """What ``backend list`` says of a backend, None if it isn't there."""
    rows = json.loads(agent.run("backend", "list", WEB6, "-o", "json"))
    return next((row for row in rows if row["address"] == str(address)), None)


def test_a_drain_waits_for_a_connection(agent: Agent, connection: Connection) -> None:
    """In vain if the time is too short, and the connection goes on all the same."""
    address = address_of(agent, connection)
    options = ("--socket", str(agent.socket), "--wait", "--timeout")
    hasty = towpath("backend", "drain", WEB6, str(address), *options, "0.5")
    assert hasty.returncode == 1
    assert hasty.stderr == f"Error: 1 flows of {address} remain after 0.5 s; they go on\n"
    assert connection.ask() == connection.backend
    row = backend_row(agent, address)
    assert row is not None
    assert (row["state"], row["flows"], row["share"]) == ("draining", 1, 0.0)
    drain = ("backend", "drain", WEB6, str(address), *options, str(PATIENCE))
    with subprocess.Popen([*TOWPATH, *drain], stdout=subprocess.PIPE, text=True) as patient:
        assert patient.stdout is not None
        # Only when it has seen the flow may that end.
        assert [patient.stdout.readline() for _ in range(2)] == ["No change.\n", "1 flows remain\n"]
        connection.close()
        assert patient.stdout.read() == "no flows remain\n"
    agent.run("backend", "undrain", WEB6, str(address))
    row = backend_row(agent, address)
    assert row is not None
    assert (row["state"], row["flows"]) == ("active", 0)


def test_a_removed_backend_keeps_its_connection(
    lab: Lab, agent: Agent, connection: Connection
) -> None:
    """Although the agent is killed meanwhile: the next one waits for the same end."""
    address = address_of(agent, connection)
    agent.run("backend", "remove", WEB6, str(address))
    before = backend_row(agent, address)
    assert before is not None
    assert (before["leaving"], before["flows"], before["weight"]) == (True, 1, 0)
    assert address not in {each.address for each in agent.client.backends(WEB6)}
    agent._process.kill()
    agent._process.wait()
    assert connection.ask() == connection.backend
    command = [*TOWPATH, "agent", "--config", str(agent.config)]
    agent._process = lab.spawn(BALANCER, command, log_to="agent-2.log")
    agent._wait_until_serving()
    assert backend_row(agent, address) == before | {"packets": ANY, "bytes": ANY}
    assert connection.ask() == connection.backend
    connection.close()
    wait_until(
        lambda: backend_row(agent, address) is None,
        seconds=PATIENCE,
        what="the backend to be gone",
    )
    flows = {each.address for each in agent.client.backend_status(WEB6)}
    assert flows == set(backend_addresses(agent.topology, WEB6).values()) - {address}


def test_force_ends_connections(agent: Agent, connection: Connection) -> None:
    """Those of the backend that is removed, also when it was terminating."""
    address = address_of(agent, connection)
    agent.run("backend", "remove", WEB6, str(address))
    assert connection.ask() == connection.backend
    agent.run("backend", "remove", WEB6, str(address), "--force")
    assert backend_row(agent, address) is None
    with pytest.raises(ConnectionError):
        connection.ask()
