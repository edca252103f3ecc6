# SPDX-License-Identifier: Apache-2.0
"""runc without limits, for a node that has cgroups of version 2 alone on a machine that hasn't.

    runc.py RUNC ARGUMENT...

The machine's controllers are those of version 1, so that there are none in version 2, and runc
fails for what it can't limit. Which devices a container may use is a program's business there.
Standard library only: a container runtime calls it.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path


def main() -> None:
    """Take limits out of what is to be created, and go on as runc."""
    program, *words = sys.argv[1:]
    if "create" in words:
        path = Path(words[words.index("--bundle") + 1], "config.json")
        whole = json.loads(path.read_text())
        before = whole["linux"].get("resources") or {}
        whole["linux"]["resources"] = {"devices": before.get("devices") or []}
        path.write_text(json.dumps(whole))
    os.execv(program, [program, *words])  # noqa: S606 - the real one


if __name__ == "__main__":
    main()
