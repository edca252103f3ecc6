# SPDX-License-Identifier: Apache-2.0
"""The agent as the systemd unit runs it: with the capabilities it is given and no more."""

from __future__ import annotations

import re
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from towpath.api.client import Client, ClientError
from towpath.lab import Lab
from towpath.lab.agent import WEB4, configuration
from towpath.lab.topology import VIP4
from towpath.lab.traffic import request
from towpath.lab.waiting import wait_until

if TYPE_CHECKING:
    import subprocess

UNIT = Path(__file__).resolve().parents[2] / "deploy" / "towpath.service"


def capabilities() -> str:
    """The unit's bounding set, as setpriv wants it: ``-all,+bpf,...``."""
    found = re.search(r"^CapabilityBoundingSet=(.*)$", UNIT.read_text(), re.MULTILINE)
    assert found
    names = [name.removeprefix("CAP_").lower() for name in found[1].split()]
    return ",".join(["-all", *(f"+{name}" for name in names)])


def serve(lab: Lab) -> subprocess.Popen[str]:
    """Start an agent that can gain nothing beyond the unit's capabilities."""
    config = lab.directory / "agent.yaml"
    config.write_text(yaml.safe_dump(configuration(lab)))
    confined = ["setpriv", "--no-new-privs", "--bounding-set", capabilities()]
    command = [*confined, sys.executable, "-m", "towpath", "agent", "--config", str(config)]
    agent = lab.spawn("lb", command, log_to="agent.log")
    wait_until(lambda: answers(lab) or agent.poll() is not None, seconds=120, what="the agent")
    assert agent.poll() is None, (lab.directory / "agent.log").read_text()
    return agent


def answers(lab: Lab) -> bool:
    """Whether an agent serves the API."""
    try:
        with Client(lab.directory / "agent.sock") as client:
            client.health()
    except ClientError:
        return False
    return True


def balanced(lab: Lab, requests: int) -> bool:
    """Whether every one of so many requests is answered."""
    return request(lab.topology, VIP4, requests).answers == requests


def test_the_units_capabilities_suffice_to_start_change_and_start_again() -> None:
    """Traffic goes on between one agent and the next, which finds what the first has pinned."""
    with Lab.up(2) as lab:
        first = serve(lab)
        assert balanced(lab, 40)
        first.terminate()
        assert first.wait() in {0, -signal.SIGTERM}
        assert balanced(lab, 40)
        serve(lab)
        with Client(lab.directory / "agent.sock") as client:
            assert len(client.backends(WEB4)) == 2
            assert client.counters().services[0].flows >= 80
        assert balanced(lab, 40)
