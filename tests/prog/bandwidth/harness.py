# SPDX-License-Identifier: Apache-2.0
"""Bandwidth's programs with limits as the agent writes them, to be run on packets."""

from __future__ import annotations

import struct
import time
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from scapy.layers.l2 import Ether

from towpath.datapath.address import family, pack
from towpath.datapath.bandwidth.limits import Limit, row
from towpath.datapath.bandwidth.program import BandwidthProgram
from towpath.datapath.bandwidth.tables import Owners
from towpath.kernel.bpf import probe

if TYPE_CHECKING:
    from scapy.packet import Packet

UNSPEC, SHOT, REDIRECT = 0xFFFFFFFF, 2, 7  # TC_ACT_*
MARK = 0x74700000
POD_MAC, HOST_MAC = "02:00:00:00:00:02", "02:00:00:00:00:01"
_SKB = 192  # sizeof(struct __sk_buff), and where its fields are
_MARK, _PRIORITY, _INGRESS, _TSTAMP, _WIRE_LEN = 8, 32, 36, 152, 160
LOOPBACK = 1
SECOND = 1_000_000_000
AGGREGATES = 15


@dataclass(frozen=True)
class Run:
    """What became of a packet."""

    action: int
    data: bytes
    mark: int
    priority: int
    stamp: int
    """ns, 0 for none."""
    moved: dict[str, int]
    """Counters that have moved, but for those of time: by aggregate and name."""
    delay: int
    """ns that were given to it."""

    @property
    def now(self) -> int:
        """When the program saw it, if it was given a stamp and is charged."""
        return self.stamp - self.delay


class Rig:
    """The loaded programs."""

    def __init__(self, *, atomic: bool, direct: bool = False) -> None:
        self.program = BandwidthProgram(AGGREGATES, atomic=atomic, direct=direct, by_address=True)
        self._before = self._counts()
        self._owners: dict[int, int] = {}
        self._shared: set[int] = set()

    def limit(self, number: int, limit: Limit, group: int = 0) -> None:
        """Have an aggregate limited."""
        self.program.maps["bw_limits"].update(number, row(self.program, limit, group))

    def pod(self, ifindex: int, aggregate: int = 0, *, by_address: bool = False) -> None:
        """Say whose a device is."""
        self._owners[ifindex] = aggregate
        if by_address:
            self._shared.add(ifindex)
        Owners(self.program).sync_pods(self._owners, self._shared)

    def no_pod(self, ifindex: int) -> None:
        """It is nobody's any more."""
        del self._owners[ifindex]
        Owners(self.program).sync_pods(self._owners, self._shared)

    def address(self, text: str, aggregate: int) -> None:
        """Say whose an address is."""
        key = np.zeros((), self.program.maps["bw_addresses"].key_dtype)
        found = ip_address(text)
        key["address"]["word"] = np.frombuffer(pack(found), ">u4")
        key["family"] = family(found)
        self.program.maps["bw_addresses"].update(key, aggregate)

    def state(self, number: int) -> Any:
        """How far an aggregate is."""
        return self.program.maps["bw_states"].lookup(number)

    def set_next(self, number: int, ahead: int) -> int:
        """Have all that was charged have left in so many ns; when that is."""
        record = self.state(number)
        record["next"] = time.monotonic_ns() + ahead
        self.program.maps["bw_states"].update(number, record)
        return int(record["next"])

    def charged(self, number: int) -> int:
        """When all that was charged will have left."""
        return int(self.state(number)["next"])

    def run(
        self,
        program: str,
        packet: Packet,
        *,
        mark: int = 0,
        stamp: int = 0,
        came_by: int = 0,
        wire: int = 0,
        segments: int = 0,
        device: int = LOOPBACK,
        priority: int = 0,
    ) -> Run:
        """Run a program on a packet, and see which counters have moved."""
        if came_by and not probe.test_run_context():
            pytest.skip("this kernel runs no program as if its packet had come in by a device")
        frame = bytes(packet if Ether in packet else Ether(src=POD_MAC, dst=HOST_MAC) / packet)
        ctx = bytearray(_SKB)
        struct.pack_into("=I", ctx, _MARK, mark)
        struct.pack_into("=III", ctx, _PRIORITY, priority, came_by, device)
        struct.pack_into("=QII", ctx, _TSTAMP, stamp, wire, segments)
        done = self.program.program(program).test_run(frame, ctx=bytes(ctx))
        (left,) = struct.unpack_from("=I", done.ctx, _MARK)
        (after,) = struct.unpack_from("=I", done.ctx, _PRIORITY)
        (departs,) = struct.unpack_from("=Q", done.ctx, _TSTAMP)
        moved = self.moved()
        delay = sum(moved.pop(name) for name in list(moved) if name.endswith(".delay"))
        return Run(done.retval, done.data, left, after, departs, moved, delay)

    def send(self, packet: Packet, aggregate: int = 1, **more: Any) -> Run:
        """A pod's packet is about to leave; its stamp tells when the program has seen it."""
        return self.run("pace", packet, mark=MARK | aggregate, **({"stamp": past()} | more))

    def _counts(self) -> dict[str, int]:
        names = self.program.verdicts()
        _, rows = self.program.maps["bw_counts"].snapshot()
        packets = rows["packets"].sum(axis=1)
        found: dict[str, int] = {}
        for number in range(AGGREGATES + 1):
            found |= {f"{number}.{name}": int(packets[number][i]) for i, name in enumerate(names)}
            for name in ("egress_bytes", "ingress_bytes", "converted", "cleared", "delay"):
                found[f"{number}.{name}"] = int(rows[name][number].sum())
        return found

    def moved(self) -> dict[str, int]:
        """Which counters have moved since the last look."""
        now = self._counts()
        moved = {name: now[name] - before for name, before in self._before.items()}
        self._before = now
        return {name: each for name, each in moved.items() if each}

    def close(self) -> None:
        """Unload them."""
        self.program.close()


def past() -> int:
    """A stamp that has passed: it delays nothing, and is written over."""
    return time.monotonic_ns() - 1_000_000
