# SPDX-License-Identifier: Apache-2.0
"""The real agent in the balancer's namespace, configured by a YAML file."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Any

import yaml

from towpath.api.client import Client, ClientError
from towpath.children import python
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
    """``towpath agent`` in tp-lb; it ends when the lab goes down.

    The IPv4 service is in its file, the IPv6 service is set through its API: the two
    ways there are. Methods raise LabError or ClientError.
    """

    def __init__(self, lab: Lab) -> None:
        self.topology = lab.topology
        self.config = lab.directory / "agent.yaml"
        self.socket = lab.directory / "agent.sock"
        self.log = lab.directory / "agent.log"
        self.client = Client(self.socket)
        self._write(configuration(lab))
        command = python("towpath", "agent", "--config", str(self.config))
        self._process = lab.spawn(BALANCER, command, log_to=self.log.name)
        self._wait_until_serving()
        self.client.add_service(**service(lab.topology, WEB6))

    def run(self, *arguments: str) -> str:
        """Run a towpath verb that talks to this agent; its output."""
        done = subprocess.run(
            python("towpath", *arguments, "--socket", str(self.socket)),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise LabError(f"towpath {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def remove(self, backend: str) -> None:
        """Take a backend out of both services; returns when no new flow goes there."""
        address = backend_addresses(self.topology, WEB6)[backend]
        self.client.remove_backend(WEB6, address)
        changed = yaml.safe_load(self.config.read_text())
        changed["services"] = [service(self.topology, WEB4, without=backend)]
        self._write(changed)
        gone = backend_addresses(self.topology, WEB4)[backend]
        wait_until(
            lambda: all(each.address != gone for each in self.client.backends(WEB4)),
            seconds=10,
            what=f"the agent to read {self.config} again",
        )

    def _write(self, config: dict[str, Any]) -> None:
        """Replace the file as an editor does, so that nobody reads half of it."""
        partial = self.config.with_suffix(".partial")
        partial.write_text(yaml.safe_dump(config, sort_keys=False))
        partial.rename(self.config)

    def _wait_until_serving(self) -> None:
        wait_until(
            lambda: self._answers() or self._process.poll() is not None,
            seconds=START_TIMEOUT,
            what="the agent's API",
        )
        if self._process.poll() is not None:
            raise LabError(f"the agent did not start: {self.log.read_text().strip()}")

    def _answers(self) -> bool:
        try:
            self.client.status()
        except ClientError:
            return False
        return True
