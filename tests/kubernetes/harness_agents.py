# SPDX-License-Identifier: Apache-2.0
"""An agent that follows a real API server, beside which there need be no node."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

from tests.lab.harness_agent import PINS, Agent

from towpath.api.client import Client
from towpath.datapath.host import detach_pinned
from towpath.datapath.socket.balancer import detach

if TYPE_CHECKING:
    from pathlib import Path

    from towpath.api.documents import SourceStatus

SECONDS = 120
"""How long something may take: it ends what hangs."""
LIMITS = {
    "services": 1024,
    "backends": 4096,
    "flows": 1024,
    "clients": 1024,
    "sources": 500,
    "table_slots": 1_000_000,
}


class Following:
    """One without devices, for the processes of a cgroup.

    ``section``: `kubernetes`. ``pins``: of its own, and its state as well, where several run.
    """

    limits = LIMITS

    def __init__(
        self, directory: Path, cgroup: Path, section: dict[str, Any], pins: Path | None = None
    ) -> None:
        self.pins = pins or PINS
        whole = {
            "socket": {"cgroup": str(cgroup)},
            "kubernetes": section,
            "limits": self.limits,
            "services": [],
        }
        if pins is not None:
            whole["state"] = {"directory": str(directory / "state"), "pins": str(pins)}
        self.agent = Agent(directory, whole)
        del self.agent.config["devices"]
        self.agent.write()

    def status(self) -> SourceStatus:
        """What it says of the source."""
        with Client(self.agent.socket) as client:
            return client.status().sources["kubernetes"]

    def end(self) -> None:
        """Have nothing left of it, whatever has become of it."""
        process = self.agent.process
        if process is not None and process.poll() is None:
            os.kill(process.pid, signal.SIGCONT)
            self.agent.kill()
        detach(self.pins / "socket")
        detach_pinned(self.pins)
