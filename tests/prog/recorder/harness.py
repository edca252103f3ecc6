# SPDX-License-Identifier: Apache-2.0
"""A load balancer that is recorded: frames run by the program that records, and what it wrote."""

from __future__ import annotations

import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from tests.prog.lb.frames import VIPS
from tests.prog.lb.harness import service
from tests.prog.lb.oracle import HANDOFF, REDIRECT, TOO_BIG, TX, flow_hash
from tests.prog.lb.told import note_length, run_program_on, tell, tellable
from tests.read_pcapng import Capture, Packet, read

from towpath.model import Protocol
from towpath.model.capture import parse_capture

if TYPE_CHECKING:
    from collections.abc import Iterator
    from ipaddress import IPv4Address, IPv6Address

    from tests.prog.lb.harness import Rig
    from tests.prog.lb.oracle import Outcome

    from towpath.datapath.recorder.capture import Recording
    from towpath.kernel.bpf.programs import TestRun

SENT_ON = (TX, REDIRECT, HANDOFF)


def serve_all(rig: Rig, inner: int, *backends: IPv4Address | IPv6Address) -> None:
    """TCP and UDP of a VIP, to backends."""
    vip = VIPS[inner]
    rig.serve(
        service(vip, *backends, protocol=Protocol.TCP),
        service(vip, *backends, protocol=Protocol.UDP),
    )


class Recorded:
    """A capture, and the frames that the rig was given meanwhile."""

    def __init__(self, rig: Rig, recording: Recording) -> None:
        self.rig = rig
        self.recording = recording

    def run(
        self, frame: bytes, device: str, *, new_jiffy: bool = True, metadata: bytes = b""
    ) -> TestRun:
        """As `Rig.run`, by the program that is attached meanwhile."""
        if new_jiffy:
            self.rig.tables["flow_cpus"]["tick"] = 0
        # One's program hands the packet to the next one's.
        head, *others = self.rig.balancer.recorder.recordings
        for each in others:
            tell(each.object, self.rig.devices[device])
        return run_program_on(
            head.object,
            head.program,
            frame,
            self.rig.devices[device],
            metadata=metadata,
            linear=self.rig.linear,
        )

    def end(self) -> Capture:
        """End the capture; returns what the file has."""
        self.recording.stop()
        return read(b"".join(map(bytes, self.recording.chunks())))


@contextmanager
def recorded(rig: Rig, *, ring_bytes: int | None = 1 << 20, **wish: Any) -> Iterator[Recorded]:
    """Capture in the block what `rig` checks: both sides, unless the wish says otherwise."""
    wish.setdefault("direction", "both")
    balancer = rig.balancer
    with tellable():
        capture = parse_capture(wish)
        recording = balancer.recorder.start(
            capture,
            balancer.observed(),
            balancer.describe,
            ring_bytes=ring_bytes,
            dropped=balancer.drop_counter(capture),
        )
    with recording:
        made = Recorded(rig, recording)
        with patch.object(rig, "run", made.run):
            yield made


def assert_told(rig: Rig, found: Packet, frame: bytes, device: str, outcome: Outcome) -> None:
    """Assert that a packet in the file is a frame that came in, with what became of it."""
    assert found.inbound
    assert found.data == frame
    assert found.length == len(frame)
    assert found.interface.name == f"{device}-in"
    assert_outcome(rig, found, outcome)


def assert_sent_on(rig: Rig, found: Packet, first: Packet, device: str, outcome: Outcome) -> None:
    """Assert that a packet in the file is what was sent on of another one."""
    note = note_length() if outcome.verdict == HANDOFF else 0
    assert not found.inbound
    assert found.data == outcome.frame[note:]
    assert found.length == len(outcome.frame) - note
    assert found.packet_id == first.packet_id
    assert found.time >= first.time
    assert outcome.backend is not None
    way = rig.world.ways[outcome.backend]
    lower = rig.world.egress_devices.get(way.ifindex, (way.ifindex, 0))[0]
    egress = way.ifindex if outcome.verdict == HANDOFF else lower
    name = device if outcome.verdict in {TX, TOO_BIG} else socket.if_indextoname(egress)
    assert found.interface.name == f"{name}-out"
    assert_outcome(rig, found, outcome)


def assert_outcome(rig: Rig, found: Packet, outcome: Outcome) -> None:
    """Assert what is said of a packet: verdict, service, backend, flow."""
    said = found.said
    assert found.action == outcome.action
    said.pop("xdp")
    assert said.pop("verdict") == outcome.verdict
    flow = said.pop("flow")
    assert len(flow) == 16
    if outcome.key is None:
        assert said == {}
        return
    assert outcome.flow is not None
    assert int(flow[:8], 16) == flow_hash(outcome.flow, rig.world.seed)
    service = next(
        each
        for each in rig.balancer.observed()
        if each.vip == outcome.key[0]
        and each.protocol.number == outcome.key[2]
        and each.port == outcome.key[1]
    )
    assert said.pop("service") == service.name
    if outcome.backend is not None:
        assert said.pop("backend") == str(outcome.backend)
    assert said == {}
