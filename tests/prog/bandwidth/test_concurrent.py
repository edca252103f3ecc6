# SPDX-License-Identifier: Apache-2.0
"""Two CPUs charge one aggregate at once, and nothing of it is lost."""

from __future__ import annotations

import os
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING

import numpy as np
import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Raw
from tests.prog.bandwidth.harness import MARK, SECOND

from towpath.datapath.bandwidth.limits import Limit
from towpath.kernel.bpf.object import BpfObject

if TYPE_CHECKING:
    from tests.prog.bandwidth.harness import Rig

    from towpath.kernel.bpf.programs import Program

BATCHES, BATCH = 12_000, 32
HOUR = 3600 * SECOND


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one CPU can't be two")
@pytest.mark.parametrize("flows", [1, 2])
def test_no_charge_is_lost(bw: Rig, flows: int) -> None:
    """Of one flow, or two: afterwards the aggregate is as far as all packets together cost."""
    bw.limit(1, Limit(egress=100_000_000_000, horizon=4 * HOUR))  # 8 ns for 100 bytes
    due = bw.set_next(1, HOUR)
    charging = [threading.Thread(target=charge, args=(bw, n, n % flows)) for n in range(2)]
    for each in charging:
        each.start()
    for each in charging:
        each.join()
    moved, sent = bw.moved(), 2 * BATCHES * BATCH
    assert moved.keys() <= {"1.sent", "1.delayed", "1.delay", "1.egress_bytes"}
    assert moved.get("1.sent", 0) + moved.get("1.delayed", 0) == sent
    assert moved["1.egress_bytes"] == 100 * sent
    assert bw.charged(1) - due == sent * 8


def charge(bw: Rig, number: int, flow: int) -> None:
    """Send packets of a flow by one of the CPUs, as fast as the kernel runs the program."""
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[number]})
    packet = bytes(
        Ether(src="02:00:00:00:00:02", dst="02:00:00:00:00:01")
        / IP(src="10.244.0.2", dst="203.0.113.9")
        / UDP(sport=4000 + flow, dport=9)
        / Raw(bytes(58))
    )
    with ExitStack() as undo:
        timer = undo.enter_context(BpfObject.packaged("bench_timer_tc"))
        timer.load()
        run(timer, bw.program.program("pace"), packet)


def run(timer: BpfObject, program: Program, packet: bytes) -> None:
    """Call the program from within the kernel."""
    timer.maps["under_test"].update(0, program.fd)
    state = timer.maps[".bss"].lookup(0)
    state["bench"]["packet"] = np.frombuffer(packet[:64], "=u8")
    state["bench"]["expected"] = -1  # TC_ACT_UNSPEC
    state["bench"]["mark"] = MARK | 1
    timer.maps[".bss"].update(0, state)
    timer.programs["bench_tc_wrapper"].test_run(packet, repeat=BATCHES, ctx=bytes(192))
    found = timer.maps[".bss"].lookup(0)["bench"]
    assert (found["unexpected"], found["broken"], found["packets"]) == (0, 0, BATCHES * BATCH)
