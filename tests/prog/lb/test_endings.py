# SPDX-License-Identifier: Apache-2.0
"""Flows that their client has ended are counted for a moment longer and no more."""

from __future__ import annotations

import numpy as np
import pytest
from scapy.layers.inet import TCP, IPOption_NOP
from scapy.layers.inet6 import IPv6ExtHdrDestOpt
from scapy.packet import Raw
from tests.prog.lb.frames import VIPS, ether, frame, ip
from tests.prog.lb.harness import Rig, service
from tests.prog.lb.network import IN, NEAR
from tests.prog.lb.oracle import TX

from towpath.core.lb.states import BackendKey
from towpath.datapath.flows.count import ENDED_SECONDS
from towpath.kernel.jiffies import Jiffies
from towpath.model import Protocol

PORTS = range(2000, 2020)
SHAPES = ["v4", "v4 with options", "v6", "v6 with an extension", "tagged"]


@pytest.fixture(autouse=True)
def served(rig: Rig) -> None:
    """A service of each family, for nobody yet."""
    rig.serve()
    rig.serve(*(service(VIPS[family], *NEAR[family][:4]) for family in (4, 6)))


def made(shape: str, port: int, flags: str) -> bytes:
    """A TCP segment with these flags."""
    family = 6 if shape.startswith("v6") else 4
    header = ip(family, options=[IPOption_NOP()] * 4) if "options" in shape else ip(family)
    if "extension" in shape:
        header /= IPv6ExtHdrDestOpt()
    tcp = TCP(sport=port, dport=80, flags=flags) / Raw(b"towpath")
    return bytes(ether(vlan=7 if shape == "tagged" else None) / header / tcp)


def count(rig: Rig, seconds_ago: float) -> int:
    """Flows of all services, had all been seen so long ago."""
    table = rig.balancer.flow_table
    keys = [
        BackendKey(each.key, backend.address)
        for each in rig.balancer.observed()
        for backend in each.backends
    ]
    ways = rig.balancer._program.rows("flows")["way"]
    known = ways["ref"] != 0
    before = ways["seen"].copy()
    with Jiffies() as jiffies:
        now = jiffies.now() >> 6
    ways["seen"][known] = np.uint16(now - int(seconds_ago / table.resolution_seconds) & 0xFFFF)
    try:
        return sum(rig.balancer.flow_counter(keys).count(300).values())
    finally:
        ways["seen"][known] = before[known]


@pytest.mark.parametrize("shape", SHAPES)
def test_an_end_is_noted_and_a_beginning_too(rig: Rig, shape: str) -> None:
    """FIN or RST ends; data after it changes nothing; SYN begins anew. Packets are as ever."""
    for port in PORTS:
        rig.expect(made(shape, port, "S"), TX)
    assert count(rig, ENDED_SECONDS - 2) == len(PORTS)
    assert count(rig, ENDED_SECONDS + 1) == 0
    for port in PORTS:
        rig.expect(made(shape, port, "A"), TX)
    assert count(rig, ENDED_SECONDS + 1) == len(PORTS)
    rig.expect(made(shape, PORTS[0], "FA"), TX)
    rig.expect(made(shape, PORTS[1], "R"), TX)
    rig.expect(made(shape, PORTS[2], "RA"), TX)
    rig.expect(made(shape, PORTS[3], "FPA"), TX)
    rig.expect(made(shape, PORTS[4], "PAUEC"), TX)
    rig.expect(made(shape, PORTS[0], "A"), TX)
    assert count(rig, ENDED_SECONDS + 1) == len(PORTS) - 4
    assert count(rig, ENDED_SECONDS - 2) == len(PORTS)
    rig.expect(made(shape, PORTS[0], "S"), TX)
    assert count(rig, ENDED_SECONDS + 1) == len(PORTS) - 4
    rig.expect(made(shape, PORTS[0], "A"), TX)
    assert count(rig, ENDED_SECONDS + 1) == len(PORTS) - 3


def test_a_trace_notes_nothing(rig: Rig) -> None:
    """Whatever segment it is made with."""
    program = rig.balancer._program
    rig.expect(made("v4", 2000, "A"), TX)
    start = program.cookie.to_bytes(8, "little") + rig.devices[IN].to_bytes(4, "little")
    program.object.programs["towpath_lb"].test_run(start + made("v4", 2000, "F")[12:])
    assert program.maps["traces"].lookup(0)["flags"] & program.constant(
        "trace_flags", "TRACE_FLOW_HIT"
    )
    assert count(rig, ENDED_SECONDS + 1) == 1


def test_nothing_but_tcp_ends(rig: Rig) -> None:
    """Whatever is in a datagram where a segment has its flags."""
    rig.serve(service(VIPS[4], *NEAR[4][:4], protocol=Protocol.UDP))
    for each in (b"", b"\xff" * 40):
        rig.expect(frame(4, 17, payload=each), TX)
    rig.expect(frame(4, 17, payload=b"\xff" * 40), TX)
    assert count(rig, ENDED_SECONDS + 1) == 1


def test_a_flow_that_ends_is_known_still(rig: Rig) -> None:
    """Its last packets go where those before went, though the table says otherwise by then."""
    before = {port: rig.expect(made("v4", port, "S"), TX).backend for port in PORTS}
    for port in PORTS:
        rig.expect(made("v4", port, "FA"), TX)
    rig.serve(service(VIPS[4], *NEAR[4]))
    for port, backend in before.items():
        outcome = rig.expect(made("v4", port, "A"), TX)
        assert (outcome.backend, outcome.fresh) == (backend, False)


def test_a_removed_backends_port_is_no_ending(rig: Rig) -> None:
    """An entry that is learnt anew has no past."""
    web = service(VIPS[4], NEAR[4][0])
    rig.serve(web)
    rig.expect(made("v4", 2000, "S"), TX)
    rig.expect(made("v4", 2000, "FA"), TX)
    assert count(rig, ENDED_SECONDS + 1) == 0
    rig.serve(service(VIPS[4], NEAR[4][1]))
    rig.expect(made("v4", 2000, "A"), TX)
    assert count(rig, ENDED_SECONDS + 1) == 1
