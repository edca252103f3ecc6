# SPDX-License-Identifier: Apache-2.0
"""The demo: a lab, the real agent, real traffic, and a report of what happened."""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import TYPE_CHECKING

from rich.console import Console

from towpath.api.codec import plain
from towpath.lab.agent import WEB4, WEB6, Agent, weights
from towpath.lab.errors import LabError
from towpath.lab.interrupt import undisturbed
from towpath.lab.lab import Lab
from towpath.lab.removal import Removal
from towpath.lab.report import FAMILIES, Distribution, check_plotting, plot, table
from towpath.lab.topology import VIP4, VIP6
from towpath.lab.traffic import Address, Download, request

if TYPE_CHECKING:
    from pathlib import Path

VIPS: dict[str, Address] = dict(zip(FAMILIES, (VIP4, VIP6), strict=True))

# A client's connection to the IPv4 VIP.
FLOW = f"198.51.100.2:40000 -> {VIP4}:80 tcp"

# One for each download, which may be two different ones, and one to take away.
MIN_BACKENDS = 3


class Demo:
    """One run of the demo.

    Args:
        backends: How many, at least MIN_BACKENDS.
        requests: How many for each address family.
        directory: Where distribution.png and summary.json go; made if need be.
    """

    def __init__(self, backends: int, requests: int, directory: Path) -> None:
        if backends < MIN_BACKENDS:
            raise LabError(f"backends: {backends}; the demo needs {MIN_BACKENDS} or more")
        self.backends = backends
        self.requests = requests
        self.directory = directory
        self.console = Console(highlight=False)

    def run(self) -> bool:
        """Run it and undo everything; whether every request and download was answered whole."""
        check_plotting()
        self.directory.mkdir(parents=True, exist_ok=True)
        with ExitStack() as undo:
            with undisturbed():
                lab = undo.enter_context(Lab.up(self.backends))
            self.say(f"lab: {', '.join(lab.topology.namespaces)}")
            agent = Agent(lab)
            self.say(f"agent in tp-lb: {WEB4} ({VIP4}) from its file, {WEB6} ({VIP6}) by its API")
            before = self.balance(lab)
            self.say("One flow, and why it goes where it goes:", agent.run("trace", FLOW))
            removal = self.remove_one(lab, agent)
            self.say("", agent.run("status", "--counters").rstrip(), "")
            counters = plain(agent.client.counters())
        self.write(before, removal, counters)
        return before.requests == before.answered and removal.unnoticed

    def balance(self, lab: Lab) -> Distribution:
        """Send requests to both VIPs and show who answered them."""
        distribution = self.send(lab, weights(lab.topology))
        self.console.print(table(distribution, "Requests through the VIPs"))
        return distribution

    def send(self, lab: Lab, expected: dict[str, int]) -> Distribution:
        """Send the requests of both families."""
        answers = {
            family: request(lab.topology, vip, self.requests) for family, vip in VIPS.items()
        }
        return Distribution(expected, answers)

    def remove_one(self, lab: Lab, agent: Agent) -> Removal:
        """Take away a backend that serves no download, and let the downloads finish."""
        downloads = {family: Download(vip, lab.directory) for family, vip in VIPS.items()}
        for download in downloads.values():
            download.wait_until_under_way()
        busy = {download.backend for download in downloads.values()}
        removed = next(name for name in weights(lab.topology) if name not in busy)
        agent.remove(removed)
        received = {family: download.received() for family, download in downloads.items()}
        running = all(download.running for download in downloads.values())
        left = {name: weight * (name != removed) for name, weight in weights(lab.topology).items()}
        distribution = self.send(lab, left)
        self.console.print(table(distribution, f"After {removed} was removed"))
        whole = {family: download.finish() for family, download in downloads.items()}
        removal = Removal(removed, downloads, received, running, whole, distribution)
        self.say(*removal.lines())
        return removal

    def write(self, before: Distribution, removal: Removal, counters: object) -> None:
        """Write the plot and the summary."""
        plot(before, self.directory / "distribution.png")
        summary = {
            **before.summary(),
            "after_removal": removal.summary(),
            "counters": counters,
        }
        (self.directory / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
        self.say(f"written: {self.directory}/distribution.png, {self.directory}/summary.json")

    def say(self, *lines: str) -> None:
        """Print lines as they are, however long."""
        for line in lines:
            self.console.print(line, markup=False, soft_wrap=True)
