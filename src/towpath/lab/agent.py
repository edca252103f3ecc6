# SPDX-License-Identifier: Apache-2.0
"""The real agent in the balancer's namespace, configured by a YAML file."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import yaml

from towpath.client import Client, ClientError
from towpath.lab.errors import LabError
from towpath.lab.topology import BALANCER, DEVICE, VIP4, VIP6
from towpath.lab.waiting import wait_until

if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv6Address

    from towpath.lab.lab import Lab
    from towpath.lab.topology import Topology

START_TIMEOUT = 20.0

# Service names of the two VIPs.
WEB4 = "web4"
WEB6 = "web6"
PORT = 80

# The first backend is given twice the share of any other.
FIRST_WEIGHT = 2


def weights(topology: Topology) -> dict[str, int]:
    """The weight of each backend in both services, by name."""
    return {
        link.port: FIRST_WEIGHT if i == 0 else 1 for i, link in enumerate(topology.backend_links)
    }


def backend_addresses(topology: Topology, service: str) -> dict[str, IPv4Address | IPv6Address]:
    """Where a service's packets are sent to, by backend.

    IPv6 for the IPv6 VIP. For the IPv4 VIP the backends' IPv4 addresses, but for the
    last, which is reached over IPv6: the three encapsulations there are.
    """
    links = topology.backend_links
    over_ipv4 = links[:-1] if service == WEB4 and len(links) > 1 else []
    return {
        link.port: link.node4[0].ip if link in over_ipv4 else link.node6[0].ip for link in links
    }


def configuration(lab: Lab) -> dict[str, Any]:
    """The agent's configuration, with the IPv4 service in it; all files are the lab's own."""
    return {
        "devices": [{"name": DEVICE, "mode": "native"}],
        "limits": {"services": 16, "backends": 256, "flows": 65536, "table_slots": 65536},
        "api": {"socket": str(lab.directory / "agent.sock")},
        "state": {
            "directory": str(lab.directory / "state"),
            "pins": str(lab.bpffs / "towpath"),
        },
        "services": [service(lab.topology, WEB4)],
    }


def service(topology: Topology, name: str, *, without: str = "") -> dict[str, Any]:
    """One service as a file or the API has it, without one of its backends if so asked."""
    return {
        "name": name,
        "vip": str(VIP4 if name == WEB4 else VIP6),
        "port": PORT,
        "backends": [
            {"address": str(address), "weight": weights(topology)[backend]}
            for backend, address in backend_addresses(topology, name).items()
            if backend != without
        ],
    }


class Agent:
    """``towpath agent`` in tp-lb; it ends when the lab goes down, or by stop()."""

    def __init__(self, lab: Lab) -> None:
        self.config = lab.directory / "agent.yaml"
        self.config.write_text(yaml.safe_dump(configuration(lab), sort_keys=False))
        self.socket = lab.directory / "agent.sock"
        self._log = lab.directory / "agent.log"
        command = [sys.executable, "-m", "towpath", "agent", "--config", str(self.config)]
        self._process = lab.spawn(BALANCER, command, log_to=self._log.name)
        wait_until(
            lambda: self._answers() or self._process.poll() is not None,
            seconds=START_TIMEOUT,
            what=f"the agent's API; its log: {self._log.read_text()}",
        )
        if self._process.poll() is not None:
            raise LabError(f"the agent did not start: {self._log.read_text().strip()}")

    def command(self, *arguments: str) -> list[str]:
        """The command line of a towpath verb that talks to this agent."""
        verb = list(arguments)
        return [sys.executable, "-m", "towpath", *verb, "--socket", str(self.socket)]

    def run(self, *arguments: str) -> str:
        """Run a towpath verb; its output. LabError with its words if it fails."""
        done = subprocess.run(self.command(*arguments), capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise LabError(f"towpath {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def read(self, *arguments: str) -> Any:
        """Run a verb that reads; what it says, as JSON."""
        return json.loads(self.run(*arguments, "-o", "json"))

    def log(self) -> str:
        """What it has written so far."""
        return self._log.read_text()

    def stop(self) -> int:
        """Ask it to stop; its exit code."""
        self._process.terminate()
        return self._process.wait()

    def _answers(self) -> bool:
        try:
            with Client(self.socket) as client:
                client.status()
        except ClientError:
            return False
        return True
