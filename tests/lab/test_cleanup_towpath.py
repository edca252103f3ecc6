# SPDX-License-Identifier: Apache-2.0
"""`towpath cleanup towpath`: what agents leave, named and taken out."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from tests.lab.harness_agent import MAIL, PINS, Agent, device, put

if TYPE_CHECKING:
    from pathlib import Path

SECTIONS: dict[str, Any] = {
    "socket": {},
    "masquerade": {"rules": [{"devices": ["tppod*"], "prefixes": ["10.244.0.0/24"]}]},
}


def cleanup(agent: Agent, *words: str) -> subprocess.CompletedProcess[str]:
    """Run it on what an agent has."""
    where = ("--state", str(agent.directory / "state"), "--pins", str(PINS))
    command = [sys.executable, "-m", "towpath", "cleanup", "towpath", *where, *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def listed(agent: Agent) -> list[str]:
    """What it says there is."""
    found: list[str] = json.loads(cleanup(agent, "-o", "json").stdout)["left"]
    return found


def test_all_that_agents_leave_goes(tmp_path: Path) -> None:
    """Programs, tables, services of the API and files; not under an agent that runs."""
    agent = Agent(tmp_path, SECTIONS)
    with device():
        agent.start()
        put(agent, MAIL)
        refused = cleanup(agent, "--remove")
        assert (refused.returncode, "another agent runs" in refused.stderr) == (1, True)
        assert agent.end() == 0
        found = listed(agent)
        assert {str(PINS / name) for name in ("links", "maps", "socket", "masquerade")} <= {*found}
        assert str(tmp_path / "state/state.db") in found
        assert cleanup(agent, "--remove").returncode == 0
        assert (listed(agent), PINS.exists(), (tmp_path / "state").exists()) == ([], False, False)
        shown = subprocess.run(
            ["ip", "-details", "link", "show"], capture_output=True, text=True, check=True
        )
        assert "xdp" not in shown.stdout
        # Once more there is nothing to do, and that is no error.
        assert cleanup(agent, "--remove").returncode == 0
