# SPDX-License-Identifier: Apache-2.0
"""A pod's socket that paces itself: what arrives over time, where its stamps survive or don't.

TCP leaves pacing to fq wherever its packets come to one with their socket. Where the kernel resets
their times of departure on the way out of the pod's namespace, fq goes by the socket's rate.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from towpath.bench.bandwidth_traffic import Sender, tcp_on_wire
from towpath.bench.bandwidth_ways import paced
from towpath.bench.bandwidth_world import POD_DEVICE
from towpath.datapath.bandwidth.survival import survival
from towpath.model.bandwidth import Pod, Section

if TYPE_CHECKING:
    from towpath.bench.bandwidth_traffic import Sink
    from towpath.bench.bandwidth_world import World

LIMIT, PACE = 100_000_000, 20_000_000
BIN = 0.1
"""Seconds."""


@dataclass(frozen=True, slots=True)
class OwnPace:
    """Bits a second on the wire, over time. ``kept``: whether the kernel keeps TCP's stamps.

    ``limit``: the pod's; ``pace``: what its socket asks for. ``times``: seconds, at the ends of
    what ``rates`` are of.
    """

    kernel: str
    kept: bool
    limit: int
    pace: int
    times: tuple[float, ...]
    rates: tuple[int, ...]


def own_pace(here: World, sink: Sink, seconds: float) -> OwnPace:
    """Have a pod send with ``SO_MAX_PACING_RATE``, its packets past the stack. BenchError."""
    pod = Pod("pod", device=POD_DEVICE, egress=LIMIT)
    section = Section(devices=("eth0",), pods=(pod,), direct=True, aggregates=8)
    kept = survival().tcp
    times: list[float] = []
    rates: list[int] = []
    with paced(section), Sender() as sender:
        sender.stream(here.pod, most=PACE)
        began = then = time.monotonic()
        before = sum(sink.received)
        while then < began + seconds:
            time.sleep(BIN)
            now, after = time.monotonic(), sum(sink.received)
            times.append(round(now - began, 3))
            rates.append(round(tcp_on_wire(8 * (after - before) / (now - then))))
            then, before = now, after
    return OwnPace(os.uname().release, kept, LIMIT, PACE, tuple(times), tuple(rates))
