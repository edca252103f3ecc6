# SPDX-License-Identifier: Apache-2.0
"""Devices in native and in generic mode beside each other, whose programs are of two kinds."""

from __future__ import annotations

import socket
import subprocess
from typing import TYPE_CHECKING

import pytest
from tests.lab import harness_egress as egress
from tests.lab.harness_egress import BACKEND, NEAR_BACKEND, SMALL, received, wire
from tests.lab.harness_handoff import BALANCER, CARRIED, MACS, NEAR, PORT, VIPS, WIRE, frame, until
from tests.read_pcapng import read

from towpath.datapath.balancer import Balancer
from towpath.kernel.bpf.links import xdp_mode, xdp_program_id
from towpath.kernel.net.interfaces import device_index
from towpath.kernel.net.netns import in_netns
from towpath.model import Backend, Device, Protocol, Service
from towpath.model.capture import Capture

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lab.harness_handoff import Mode

    from towpath.datapath.recorder.capture import Recording

SENT = 20
CAPTURE = Capture((f"0 0 {VIPS[4]} {PORT} udp",))
OTHER = Capture(expression="udp")
MODES: dict[str, Mode] = {NEAR: "native", egress.OUT: "generic"}


@pytest.fixture
def balancer() -> Iterator[Balancer]:
    """On the clients' wire in native mode, on the backends' in generic."""
    backends = Backend(NEAR_BACKEND[4]), Backend(BACKEND[4])
    service = Service("web", VIPS[4], PORT, Protocol.UDP, backends, table_size=251)
    devices = [Device(name, mode) for name, mode in MODES.items()]
    with wire(), egress.veth(), in_netns(BALANCER), Balancer(devices, limits=SMALL) as made:
        made.apply([service])
        yield made


def send(where: str, mac: str, number: int) -> None:
    """Send a packet of a flow that comes in at the far end of a wire."""
    with in_netns(where), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
        sender.bind((WIRE, 0))
        made = frame(4, 2000 + number)
        sender.send(bytes.fromhex(mac.replace(":", "")) + made[6:])


def send_both(balancer: Balancer) -> None:
    """Send packets to both devices, and wait until all are counted."""
    before = sum(each.packets for each in balancer.counters().services)
    for number in range(SENT):
        send(NEAR, MACS[NEAR], number)
        send(egress.BACKENDS, "02:00:00:00:05:01", number)
    until(
        lambda: sum(each.packets for each in balancer.counters().services) - before == 2 * SENT,
        "all to be counted",
    )


def devices_of(recording: Recording) -> dict[str, int]:
    """Packets in a capture's file, by the device that they came in on."""
    recording.stop()
    packets = read(b"".join(map(bytes, recording.chunks()))).packets
    seen = [packet.interface.name for packet in packets if packet.inbound]
    return {name: seen.count(f"{name}-in") for name in MODES}


def test_both_are_captured(balancer: Balancer) -> None:
    """By chains of their own, whose programs come and go together."""
    before = {name: xdp_program_id(device_index(name)) for name in MODES}
    assert {name: xdp_mode(device_index(name)) for name in MODES} == MODES
    with balancer.record(CAPTURE) as first, balancer.record(OTHER) as second:
        send_both(balancer)
        assert devices_of(first) == dict.fromkeys(MODES, SENT)
        send_both(balancer)
        assert devices_of(second) == dict.fromkeys(MODES, 2 * SENT)
        assert {xdp_program_id(device_index(name)) for name in MODES} == set(before.values())
    send_both(balancer)


def test_both_hand_over_to_the_kernel(balancer: Balancer) -> None:
    """Whose tc program finds the note in front of the frame in either mode."""
    for address, device in ((NEAR_BACKEND[4], NEAR), (BACKEND[4], egress.OUT)):
        subprocess.run(["ip", "neigh", "del", str(address), "dev", device], check=True)
    with received(NEAR, WIRE) as near, received(egress.BACKENDS, WIRE) as far:
        send_both(balancer)
        counted = balancer.counters()
        handed = counted.verdicts["handoff"]
        assert handed
        for backend, arrives in zip(counted.services[0].backends, (near, far), strict=True):
            for _ in range(backend.packets):
                arrives(CARRIED[4])
