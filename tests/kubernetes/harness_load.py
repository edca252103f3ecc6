# SPDX-License-Identifier: Apache-2.0
"""Load on services from pods, nodes and outside, and what has failed of it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tools.kubernetes import binaries

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tools.kubernetes.cluster import Cluster

_CODE = Path(__file__).with_name("load.py").read_text()


class Load:
    """What has come of it, once it has ended."""

    def __init__(self) -> None:
        self.counts: dict[str, Counter[str]] = {}
        """By client and what it did: ``ok``, or names of errors."""

    @property
    def done(self) -> int:
        """Requests that were answered."""
        return sum(each["ok"] for each in self.counts.values())

    @property
    def failed(self) -> dict[str, dict[str, int]]:
        """Those that weren't, of whom."""
        bad = {
            name: {kind: count for kind, count in of.items() if kind != "ok"}
            for name, of in self.counts.items()
        }
        return {name: of for name, of in bad.items() if of}


@contextmanager
def load(
    cluster: Cluster, targets: Mapping[str, Sequence[str]], held: int = 4, fresh: int = 2
) -> Iterator[Load]:
    """Have clients (a pod, ``node NAME``, ``outside``) ask targets (see load.py) all the while."""
    made = Load()
    asking = {
        name: subprocess.Popen(
            _command(cluster, name, [str(held), str(fresh), *of]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name, of in targets.items()
    }
    try:
        yield made
        for name, each in asking.items():
            said, _ = each.communicate(timeout=60)
            for what, counts in json.loads(said).items():
                made.counts[f"{name}: {what}"] = Counter(counts)
    finally:
        for each in asking.values():
            each.kill()
            each.communicate()


def _command(cluster: Cluster, client: str, words: list[str]) -> list[str]:
    if client == "outside":
        return [sys.executable, "-c", _CODE, *words]
    if client.startswith("node "):
        node = cluster.node(client.removeprefix("node "))
        return node.command(sys.executable, "-c", _CODE, *words)
    kubectl = [str(binaries.program("kubectl")), "--kubeconfig", str(cluster.plane.kubeconfig)]
    return [*kubectl, "exec", "-i", client, "--", "python3", "-c", _CODE, *words]


def at_this_time(what: str) -> None:
    """Say when it was, beside what load.py says of failures."""
    sys.stderr.write(f"{time.time():.3f}: {what}\n")


def at(kind: str, address: str, port: int) -> str:
    """A target as load.py takes it."""
    return f"{kind}:[{address}]:{port}" if ":" in address else f"{kind}:{address}:{port}"
