# SPDX-License-Identifier: Apache-2.0
"""A pod's socket that paces itself: what arrives over time, where its stamps survive or don't.

It hands over what departs in the next tenth of a second all at once, each datagram with its time
(``SO_TXTIME``), as servers of QUIC do. Where the kernel resets these times on the way out of the
pod's namespace, nothing spreads the datagrams but the pod's own limit.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from towpath.bench.bandwidth_traffic import DATAGRAM, UDP_OVERHEAD, udp_on_wire
from towpath.bench.bandwidth_ways import paced
from towpath.bench.bandwidth_world import POD_DEVICE, PORT_OF_STAMPS, REMOTE
from towpath.bench.errors import BenchError
from towpath.datapath.bandwidth.survival import survival
from towpath.kernel.net.netns import in_netns
from towpath.model.bandwidth import Pod, Section

if TYPE_CHECKING:
    from collections.abc import Iterator

    from towpath.bench.bandwidth_world import World

LIMIT, PACE = 100_000_000, 20_000_000
HANDED_OVER = 0.1
"""Seconds of datagrams, at once."""
BIN = 0.01
"""Seconds."""
SECONDS = 2.0
"""As long as there is something to see."""
_WARM = 2  # times
_SO_TXTIME, _SO_SNDBUFFORCE = 61, 32
_BUFFER = 1 << 21
_SLACK = 1.0  # seconds, after which nothing comes any more
_WHEN = struct.Struct("=Q")


@dataclass(frozen=True, slots=True)
class OwnPace:
    """Bits a second on the wire, over time. ``kept``: whether the kernel keeps UDP's stamps.

    ``limit``: the pod's; ``pace``: what its socket asks for. ``times``: seconds, at the ends of
    what ``rates`` are of.
    """

    kernel: str
    kept: bool
    limit: int
    pace: int
    times: tuple[float, ...]
    rates: tuple[int, ...]


def own_pace(here: World, seconds: float) -> OwnPace:
    """Have a pod send with ``SO_TXTIME``, its packets past the stack. BenchError."""
    pod = Pod("pod", device=POD_DEVICE, egress=LIMIT)
    section = Section(devices=("eth0",), pods=(pod,), direct=True, aggregates=8)
    seconds = min(seconds, SECONDS)
    kept = survival().udp
    with paced(section), _arrivals(here.remote) as arrived:
        began = _send(here.pod, seconds)
        time.sleep(_SLACK)
        found = _binned(arrived, began, seconds)
    if not any(found):
        raise BenchError("no datagram has arrived")
    times = tuple(round(BIN * (number + 1), 3) for number in range(len(found)))
    return OwnPace(os.uname().release, kept, LIMIT, PACE, times, found)


def _send(netns: int, seconds: float) -> float:
    """Send; when what counts has begun. The first times don't."""
    apart = 8 * DATAGRAM * UDP_OVERHEAD / PACE
    with in_netns(netns):
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with made:
        made.setsockopt(socket.SOL_SOCKET, _SO_TXTIME, struct.pack("=iI", time.CLOCK_MONOTONIC, 0))
        made.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _BUFFER)
        made.connect((REMOTE, PORT_OF_STAMPS))
        data, departs = bytes(DATAGRAM), time.monotonic()
        began = departs + _WARM * HANDED_OVER
        turn = departs
        while turn < began + seconds:
            time.sleep(max(turn - time.monotonic(), 0))
            turn += HANDED_OVER
            while departs < turn:
                at = _WHEN.pack(round(departs * 1e9))
                made.sendmsg([data], [(socket.SOL_SOCKET, _SO_TXTIME, at)])
                departs += apart
    return began


@contextmanager
def _arrivals(netns: int) -> Iterator[list[tuple[float, int]]]:
    """When datagrams arrive at the remote, and how long they are; all are known afterwards."""
    found: list[tuple[float, int]] = []
    with in_netns(netns):
        sink = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    stop = threading.Event()

    def receive() -> None:
        while not stop.is_set():
            try:
                length = len(sink.recv(1 << 16))
            except TimeoutError:
                continue
            found.append((time.monotonic(), length))

    with sink:
        sink.bind((REMOTE, PORT_OF_STAMPS))
        sink.settimeout(_SLACK / 4)
        thread = threading.Thread(target=receive)
        thread.start()
        try:
            yield found
        finally:
            stop.set()
            thread.join()


def _binned(arrived: list[tuple[float, int]], began: float, seconds: float) -> tuple[int, ...]:
    """Bits a second on the wire in each bin."""
    bits = [0] * round(seconds / BIN)
    for at, length in arrived:
        place = int((at - began) // BIN)
        if 0 <= place < len(bits):
            bits[place] += 8 * length
    return tuple(round(udp_on_wire(each / BIN)) for each in bits)
