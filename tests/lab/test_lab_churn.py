# SPDX-License-Identifier: Apache-2.0
"""No request fails while backends come and go and the agent is killed, again and again.

TOWPATH_KILLS says how often it is killed; with 20, over 10,000 requests are made.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml
from tests.guests import examples
from tests.lab.harness_lab import assert_nothing_left
from tests.lab.harness_requests import Answers

from towpath.api.client import Client, ClientError
from towpath.lab import Lab, namespaces
from towpath.lab.agent import WEB4, WEB6, backend_addresses, configuration, service
from towpath.lab.topology import BALANCER, CLIENT, VIP4, VIP6
from towpath.lab.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

KILLS = int(os.environ.get("TOWPATH_KILLS") or examples(6, 2))
REQUESTS_PER_KILL = 500
BACKENDS = 5
STATES = ("active", "draining", "quarantined")
PAUSE = "0.01"  # of the machine's two cores others want some
IDLE = 3  # seconds; connections that stay are never so long without a request


class Operator:
    """Changes services by API and by file, and kills the agent meanwhile."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._chance = random.Random(KILLS)  # noqa: S311 - not a secret
        self._socket = lab.directory / "agent.sock"
        self._file = lab.directory / "agent.yaml"
        self._config = configuration(lab) | {"drain": {"timeout": "10m", "idle": f"{IDLE}s"}}
        self.refused: list[str] = []
        self.changes = 0
        self.kills = 0
        self._write()
        self.start()
        with Client(self._socket) as client:
            client.add_service(**service(lab.topology, WEB6))

    def start(self) -> None:
        """Start an agent and wait for its API."""
        command = [sys.executable, "-m", "towpath", "agent", "--config", str(self._file)]
        self._agent = self._lab.spawn(BALANCER, command, log_to="agent.log")
        wait_until(self._serves, seconds=120, what="the agent")

    def _serves(self) -> bool:
        assert self._agent.poll() is None, (self._lab.directory / "agent.log").read_text()
        try:
            with Client(self._socket) as client:
                return client.status().pid == self._agent.pid
        except ClientError:
            return False

    def change(self) -> None:
        """One change of one backend, but not of the first: somebody has to be active."""
        self.changes += 1
        name = self._chance.choice(list(backend_addresses(self._lab.topology, WEB6))[1:])
        if self._chance.random() < 0.3:
            self._by_file(name)
        else:
            self._by_api(name)

    def _by_api(self, name: str) -> None:
        address = backend_addresses(self._lab.topology, WEB6)[name]
        with Client(self._socket) as client:
            if address not in {each.address for each in client.backends(WEB6)}:
                client.set_backend(WEB6, address)
            elif self._chance.random() < 0.4:
                client.remove_backend(WEB6, address)
            else:
                weight, state = self._chance.choice((1, 2, 5)), self._chance.choice(STATES)
                client.set_backend(WEB6, address, weight, state=state)

    def _by_file(self, name: str) -> None:
        """Which the agent reads when it looks next, if it is alive."""
        address = str(backend_addresses(self._lab.topology, WEB4)[name])
        (web,) = self._config["services"]
        others = [each for each in web["backends"] if each["address"] != address]
        if len(others) == len(web["backends"]) or self._chance.random() < 0.6:
            others.append({"address": address, "state": self._chance.choice(STATES)})
        self._config["services"] = [web | {"backends": others}]
        self._write()

    def _write(self) -> None:
        partial = self._file.with_suffix(".partial")
        partial.write_text(yaml.safe_dump(self._config, sort_keys=False))
        partial.rename(self._file)

    def kill(self) -> None:
        """SIGKILL, perhaps in the midst of a change; then a change while nobody is there."""
        changing = threading.Thread(target=self._change_if_alive)
        changing.start()
        time.sleep(self._chance.uniform(0, 0.03))
        self._agent.kill()
        self._agent.wait()
        changing.join()
        self.kills += 1
        self._by_file(list(backend_addresses(self._lab.topology, WEB4))[-1])

    def _change_if_alive(self) -> None:
        with suppress(ClientError):
            self.change()

    def restore(self) -> None:
        """Bring every backend back."""
        self._config["services"] = [service(self._lab.topology, WEB4)]
        self._write()
        with Client(self._socket) as client:
            client.add_service(**service(self._lab.topology, WEB6))
            wait_until(lambda: len(client.backends(WEB4)) == BACKENDS, seconds=120, what="the file")

    def remove_all_but(self, name: str) -> None:
        """Remove the IPv6 service's other backends; returns when the last has left."""
        with Client(self._socket) as client:
            address = backend_addresses(self._lab.topology, WEB6)[name]
            client.set_backends(WEB6, [address])
            assert len(client.backend_status(WEB6)) == BACKENDS
            wait_until(
                lambda: len(client.backend_status(WEB6)) == 1, seconds=60, what="them to leave"
            )


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A lab with a few backends."""
    with Lab.up(BACKENDS) as up:
        yield up
    assert_nothing_left()


def clients() -> subprocess.Popen[str]:
    """Start clients that ask both VIPs."""
    program = Path(__file__).with_name("harness_requests.py")
    command = [sys.executable, str(program), PAUSE, str(VIP4), str(VIP6)]
    return namespaces.spawn(CLIENT, command, stdout=subprocess.PIPE)


def test_no_request_fails(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever happens to backends, as long as one is there, and to the agent."""
    operator = Operator(lab)
    asking = clients()
    start = time.monotonic()
    try:
        while operator.kills < KILLS:
            for _ in range(8):
                operator.change()
                time.sleep(0.05)
            operator.kill()
            operator.start()
        lasting = REQUESTS_PER_KILL * KILLS
        for _ in range(lasting):
            if served(lab) >= lasting:
                break
            operator.change()
            time.sleep(0.1)
        operator.restore()
        before = served(lab)
        wait_until(lambda: served(lab) > before + 100, seconds=120, what="more requests")
    finally:
        asking.terminate()
        said, _ = asking.communicate(timeout=120)
    answers = Answers.parse(said)
    seconds = time.monotonic() - start
    with capsys.disabled():
        sys.stdout.write(
            f"\n  {answers.total} requests ({answers.kept} over connections that stayed) in"
            f" {seconds:.0f} s, {operator.changes} changes, {operator.kills} kills:"
            f" {len(answers.failures)} failed, the slowest took {answers.slowest:.2f} s "
        )
    assert answers.failures == []
    assert answers.total >= REQUESTS_PER_KILL * KILLS
    assert answers.kept > answers.new > 0
    assert len(answers.by_backend) == BACKENDS
    # Now that nobody asks any more.
    operator.remove_all_but("be1")


def served(lab: Lab) -> int:
    """Requests that the backends have answered so far."""
    logs = (lab.directory / link.port / "access.log" for link in lab.topology.backend_links)
    return sum(log.read_bytes().count(b"\n") for log in logs)
