# SPDX-License-Identifier: Apache-2.0
"""Devices of two pods, services, and the programs to be run on packets there."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scapy.layers.l2 import Ether
from tests.prog.socket.harness import LIMITS, SECONDS, service

from towpath.closeable import Closeable
from towpath.datapath.lb.contents import Contents
from towpath.datapath.maps.shared import SharedMaps
from towpath.datapath.socket.packets.program import RATE, PacketProgram
from towpath.kernel.net.netns import in_netns, new_netns

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from scapy.packet import Packet

    from towpath.kernel.bpf.programs import TestRun
    from towpath.model.service import Service

UNSPEC, SHOT, REDIRECT = 0xFFFFFFFF, 2, 7  # TC_ACT_*
POD, POD6 = "10.244.0.2", "fd00:1::2"
VIP, VIP6, OTHER_VIP = "192.0.2.10", "2001:db8:77::10", "192.0.2.11"
BACKENDS, BACKENDS6 = ("10.77.0.1", "10.77.0.2", "10.77.0.3"), ("fd77::1", "fd77::2", "fd77::3")
POD_MAC, NODE_MAC = "02:00:00:00:00:02", "02:00:00:00:00:01"
DEVICES = ("pod", "other")
EPOCH = 7
_SKB = 192  # sizeof(struct __sk_buff)

__all__ = ["Rig", "Run", "devices", "service"]


@contextmanager
def devices() -> Iterator[None]:
    """Have the calling thread in a namespace with both devices."""
    with ExitStack() as undo:
        inner, outer = undo.enter_context(new_netns()), undo.enter_context(new_netns())
        netns = f"/proc/{os.getpid()}/fd/{inner}"
        lines = [f"link add p-{each} type veth peer name {each} netns {netns}" for each in DEVICES]
        with in_netns(outer):
            text = "\n".join(lines)
            subprocess.run(
                ["ip", "-batch", "-"], input=text, text=True, check=True, timeout=SECONDS
            )
        undo.enter_context(in_netns(inner))
        yield


@dataclass(frozen=True)
class Run:
    """What became of a packet."""

    action: int
    data: bytes
    moved: dict[str, int]
    """Counters that have moved, as program.verdict, and "begun"."""

    @property
    def packet(self) -> Packet:
        """As scapy reads it, from the IP header on."""
        return Ether(self.data).payload


class Rig(Closeable):
    """The loaded programs over tables of their own."""

    limits = LIMITS

    def __init__(
        self,
        flows: int = 4096,
        *,
        epoch: int = EPOCH,
        pins: Path | None = None,
        rate: int = RATE,
        tracks: bool = False,
    ) -> None:
        with ExitStack() as undo:
            self.tables = SharedMaps(LIMITS)
            undo.callback(self.tables.close)
            self.contents = Contents(self.tables)
            made = PacketProgram(self.tables, flows, epoch, pins, rate=rate, tracks=tracks)
            self.program = undo.enter_context(made)
            self._undo = undo.pop_all()
        self.index = {name: socket.if_nametoindex(name) for name in DEVICES}
        self._before = self.program.counts()

    def apply(self, *services: Service) -> None:
        """Have these services and no others."""
        self.contents.apply(services)

    def out(self, packet: Packet, device: str = "pod", *, ipv6: bool | None = None) -> Run:
        """A pod sends. ``ipv6``: of bytes that scapy doesn't know."""
        return self._run("from_pod", _frame(POD_MAC, NODE_MAC, packet, ipv6=ipv6), device)

    def to_pod(self, packet: Packet, device: str = "pod", *, ipv6: bool | None = None) -> Run:
        """A pod is sent something."""
        return self._run("to_pod", _frame(NODE_MAC, POD_MAC, packet, ipv6=ipv6), device)

    def _test_run(self, program: str, frame: bytes, device: str) -> TestRun:
        ctx = bytearray(_SKB)
        struct.pack_into("=II", ctx, 36, 0, self.index[device])
        return self.program.programs[f"socket_{program}"].test_run(frame, ctx=bytes(ctx))

    def _run(self, program: str, frame: Packet, device: str) -> Run:
        done = self._test_run(program, bytes(frame), device)
        return Run(done.retval, done.data, self._moved())

    def _moved(self) -> dict[str, int]:
        now = self.program.counts()
        moved = {
            f"{program}.{name}": value - self._before[program][name]
            for program, counts in now.items()
            for name, value in counts.items()
            if value != self._before[program][name] and name != "bytes"
        }
        self._before = now
        return moved

    def entries(self) -> int:
        """How many flows are in the table."""
        with self.program.maps["packet_flows"].mmap(writable=False) as flows:
            return int((flows.array["way"]["ref"] != 0).sum())

    def close(self) -> None:
        """Unload them."""
        self._undo.close()


def _frame(source: str, destination: str, packet: Packet, *, ipv6: bool | None) -> Packet:
    kind = {} if ipv6 is None else {"type": 0x86DD if ipv6 else 0x0800}
    return Ether(src=source, dst=destination, **kind) / packet
