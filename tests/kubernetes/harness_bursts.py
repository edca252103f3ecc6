# SPDX-License-Identifier: Apache-2.0
"""Pods that send all they can without waiting for anything, and when each of them was limited."""

from __future__ import annotations

import json
import math
import signal
import statistics
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.kubernetes.harness_pods import PORT, sender
from tools.kubernetes import control_plane, kept

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from tools.kubernetes.node import Node

_LINKS = """
import os, socket, struct, sys, time
NEWLINK, NAME = 16, 3
told = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
told.setsockopt(socket.SOL_SOCKET, 33, 1 << 24)  # SO_RCVBUFFORCE
told.bind((0, 1))  # RTMGRP_LINK
try:
    os.nice(-20)
except PermissionError:
    pass
seen = set()
print("listening", flush=True)
while True:
    data, now = told.recv(1 << 16), time.time()
    while len(data) >= 16:
        length, kind = struct.unpack_from("=IH", data)
        index = struct.unpack_from("=i", data, 20)[0]
        if kind == NEWLINK and index not in seen:
            seen.add(index)
            at, name = 32, ""
            while at + 4 <= length:
                size, what = struct.unpack_from("=HH", data, at)
                if what == NAME:
                    name = data[at + 4:at + size].rstrip(b"\\0").decode()
                at += max(4, size + 3 & ~3)
            print(index, name, now, flush=True)
        data = data[length + 3 & ~3:]
"""
"""Says when a device was first told of, in a node."""
_LIMITS = """
import json
from pathlib import Path
pins = Path("/sys/fs/bpf/towpath").rglob("*-tag")
limited = {each.name.partition("-")[0]: each.stat().st_mtime for each in pins}
devices = {}
for each in Path("/var/lib/cni/results").iterdir():
    result = json.loads(each.read_bytes()).get("result") or {}
    for device in result.get("interfaces", ()):
        if device["name"].startswith("veth"):
            address = next(e["address"] for e in result["ips"] if ":" not in e["address"])
            devices[address.partition("/")[0]] = device["name"]
print(json.dumps([limited, devices]))
"""
"""When the programs that say whose packets are were pinned, right after they were attached: by
device. And which address is behind which device, as the CNI plugin has said."""


def burster(name: str, node: str, annotations: Mapping[str, str], seconds: int) -> dict[str, Any]:
    """A pod whose only program is small, and sends as soon as it runs."""
    made = sender(name, node, dict(annotations))
    (container,) = made["spec"]["containers"]
    container["image"] = kept.PAUSE_IMAGE
    container["command"] = ["/burst", control_plane.ADDRESS, str(PORT), str(seconds)]
    return made


class Moments(NamedTuple):
    """Of one pod, in seconds."""

    limited: float
    """From its device to its limit."""
    spare: float
    """From its limit to its first packet."""


class Links:
    """When devices of a node came."""

    def __init__(self, log: Path) -> None:
        self._log = log

    def came(self) -> dict[str, tuple[str, float]]:
        """Index and time, by name."""
        lines = [each.split() for each in self._log.read_text().splitlines()]
        return {each[1]: (each[0], float(each[2])) for each in lines if len(each) > 2}


@contextmanager
def links(node: Node) -> Iterator[Links]:
    """Note when devices come."""
    program = node.program("links", sys.executable, "-c", _LINKS)
    program.log.unlink(missing_ok=True)
    program.start()
    try:
        program.wait_for(lambda: "listening" in program.said())
        yield Links(program.log)
    finally:
        program.stop(signal.SIGTERM)


def moments(node: Node, seen: Links, arrivals: Mapping[str, Sequence[float]]) -> list[Moments]:
    """Of each pod whose packets have arrived, while it is there; infinite: it has no limit."""
    limited, devices = json.loads(node.run(sys.executable, "-c", _LIMITS))
    came = seen.came()
    found = []
    for address, times in arrivals.items():
        index, at = came[devices[address]]
        since = limited.get(index, math.inf)
        found.append(Moments(since - at, times[0] - since))
    return found


def told(found: Sequence[Moments]) -> str:
    """Of all of them."""
    limited = [each.limited * 1000 for each in found]
    spare = [each.spare * 1000 for each in found]
    return (
        f"{len(found)} pods: from link to limit p50 {statistics.median(limited):.0f} ms, at most"
        f" {max(limited):.0f} ms; from limit to first packet p50 {statistics.median(spare):.0f} ms,"
        f" at least {min(spare):.0f} ms"
    )
