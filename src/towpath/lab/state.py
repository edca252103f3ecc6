# SPDX-License-Identifier: Apache-2.0
"""The lab's directory: what is up, so that it can be taken down by another process.

The directory is made before anything else, which makes it the lock as well, and it
is removed last. What it says is enough to undo a lab that was cut off half-way.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from towpath.lab.errors import LabError
from towpath.lab.topology import Topology

# Gone after a reboot, like everything that it tells of.
DIRECTORY = Path("/run/towpath-lab")


def claim(topology: Topology) -> None:
    """Make the directory and write what is about to be built; LabError if one is up."""
    DIRECTORY.parent.mkdir(parents=True, exist_ok=True)
    try:
        DIRECTORY.mkdir()
    except FileExistsError:
        raise LabError("a lab is already up; `towpath lab down` takes it down") from None
    partial = DIRECTORY / "state.partial"
    partial.write_text(json.dumps({"backends": topology.backends}))
    partial.rename(DIRECTORY / "state.json")


def read() -> Topology | None:
    """The lab that is up, whole or in part; None if there is none."""
    if not DIRECTORY.is_dir():
        return None
    try:
        state = json.loads((DIRECTORY / "state.json").read_text())
    except FileNotFoundError:
        # Cut off between the directory and the file: nothing else was made.
        return Topology()
    return Topology(backends=state["backends"])


def release() -> None:
    """Forget the lab; nothing of it may be left."""
    if DIRECTORY.exists():
        shutil.rmtree(DIRECTORY)
