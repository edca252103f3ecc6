# SPDX-License-Identifier: Apache-2.0
"""What happens to a cluster while its services are asked: programs that end, a node that drains."""

from __future__ import annotations

import itertools
import json
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

from tests.kubernetes.harness_proxies import knows_all

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Mapping

    from tools.kubernetes.churn import Rig
    from tools.kubernetes.node import Node

PAUSE_SECONDS = 5.0
SYNC_SECONDS = 3.0
"""That kube-proxy has for its first sync, of which it doesn't tell."""
CLEANUP = (sys.executable, "-m", "towpath", "cleanup", "kube-proxy")


def restart_proxy(rig: Rig, ended: threading.Event) -> None:
    """End the node's proxy and start it again, every second time by force.

    It is begun anew once it has caught up: a rolling update goes on then.
    """
    for number in (signal.SIGTERM, signal.SIGKILL) * 1000:
        if ended.wait(PAUSE_SECONDS):
            return
        rig.proxy.stop(number)
        rig.proxy.start()
        rig.proxy.wait_for(rig.answers)
        rig.changes["restarts"] += 1


def restart_api(rig: Rig, ended: threading.Event) -> None:
    """End the API server and start it again, by force: its clients lose all watches."""
    while not ended.wait(PAUSE_SECONDS):
        rig.plane.stop("apiserver", number=signal.SIGKILL)
        _start_api(rig)
        rig.changes["restarts"] += 1


def _start_api(rig: Rig) -> None:
    """Start the API server, and the controllers, which end without it, as a kubelet does."""
    rig.plane.start("apiserver")
    rig.plane.stop("controller-manager")
    rig.plane.start("controller-manager")


def restore(rig: Rig, ended: threading.Event) -> None:
    """Put etcd back to what it had some changes ago, as documented: with a later revision."""
    kept = rig.plane.directory / "snapshot"
    for turn in itertools.count():
        if ended.wait(PAUSE_SECONDS):
            return
        path = kept.with_suffix(f".{turn}")
        rig.plane.snapshot(path)
        rig.replace_pods(rig.addresses[::10])
        rig.plane.stop("apiserver", number=signal.SIGKILL)
        rig.plane.restore(path, bump=True)
        _start_api(rig)
        rig.pods.read()
        rig.changes["restores"] += 1


def drain(rig: Rig, ended: threading.Event) -> None:
    """Have all pods of the node leave it, some at a time, and come again."""
    here = rig.addresses[: len(rig.addresses) // 2]
    step = 10
    while not ended.wait(PAUSE_SECONDS):
        for first in range(0, len(here), step):
            rig.end_pods(here[first : first + step])
            time.sleep(0.2)
        rig.changes["drains"] += 1
        for address in here:
            rig.begin_pod(address)


def take_over(rig: Rig, ended: threading.Event) -> None:
    """Go back to kube-proxy and take over from it again, as docs/kubernetes.md has it."""
    node = rig.node
    restart_with(rig, "--detach-on-exit")
    while not ended.wait(PAUSE_SECONDS):
        node.kube_proxy.start()
        node.kube_proxy.wait_for(lambda: left(node)["removed"] and left(node)["phase"] is None)
        time.sleep(SYNC_SECONDS)
        rig.proxy.stop(signal.SIGTERM)
        rig.changes["back"] += 1
        ended.wait(PAUSE_SECONDS)
        rig.proxy.start("--detach-on-exit")
        rig.proxy.wait_for(lambda: knows_all(node) and not left(node)["unserved"])
        node.kube_proxy.stop(signal.SIGTERM)
        for step in ("--remove", "--confirm"):
            node.run(*CLEANUP, step)
        rig.changes["taken over"] += 1
    restart_with(rig)


def restart_with(rig: Rig, *words: str) -> None:
    """Have the agent run with other options."""
    rig.proxy.stop(signal.SIGKILL)
    rig.proxy.start(*words)
    rig.proxy.wait_for(lambda: knows_all(rig.node))


def left(node: Node) -> dict[str, Any]:
    """What kube-proxy has left on a node."""
    found: dict[str, Any] = json.loads(node.run(*CLEANUP, "-o", "json"))
    return found


FAULTS: Mapping[str, Callable[[Rig, threading.Event], None]] = {
    "restarts": restart_proxy,
    "apiserver": restart_api,
    "restored": restore,
    "drain": drain,
    "takeover": take_over,
}
