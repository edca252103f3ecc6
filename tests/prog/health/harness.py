# SPDX-License-Identifier: Apache-2.0
"""The program that sends health checks, run on single packets, beside the oracle."""

from __future__ import annotations

import struct
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from tests.prog.lb.network import IN
from tests.prog.lb.oracle import ETHERTYPES, IN_IPIP, World, flow_hash
from tests.prog.lb.oracle_parse import parse

from towpath.datapath.address import family, pack
from towpath.datapath.lb.encap import Encaps
from towpath.model.service import IPIP
from towpath.model.settings import DEFAULT_MARK

if TYPE_CHECKING:
    from tests.prog.lb.harness import Rig
    from tests.prog.lb.oracle_parse import Address

    from towpath.kernel.bpf.programs import TestRun
    from towpath.model.service import Tunnel

TC_ACT_UNSPEC, TC_ACT_SHOT, TC_ACT_REDIRECT = 0xFFFFFFFF, 2, 7
SENT, UNKNOWN, NO_ROUTE = "sent", "drop_unknown", "drop_no_route"
NOT_OURS = ""  # not even counted
LINK = 14
# On the loopback device both link addresses are zero, and the kernel fills in the real ones later.
LOOPBACK = bytes(12)


@dataclass(frozen=True)
class Connection:
    """One end of a probe's connection, and where its packets are to go."""

    address: Address
    port: int
    backend: Address
    l2: bool = False
    tunnel: Tunnel = IPIP
    protocol: int = 6


class HealthRig:
    """Runs packets and compares bytes and counters with what the oracle says."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        program = rig.balancer._program
        self._run = program.object.programs["towpath_health"].test_run
        self._probes = program.maps["health_probes"]
        self._rows = program.rows("health_cpus")
        names = program.btf.enum("health_verdict")
        self._encaps = Encaps(program.constant)
        self._names = {int(each): each.name.removeprefix("HEALTH_").lower() for each in names}

    @property
    def world(self) -> World:
        """What the oracle knows of routes, neighbours and seeds."""
        return self.rig.world

    def note(self, connection: Connection, *, device: str = IN) -> None:
        """Write a connection down, as user space does before it connects."""
        key = np.zeros((), self._probes.key_dtype)
        key["addr"]["word"] = np.frombuffer(pack(connection.address), ">u4")
        key["port"], key["protocol"] = connection.port, connection.protocol
        key["family"] = family(connection.address)
        value = np.zeros((), self._probes.value_dtype)
        value["to"]["addr"]["word"] = np.frombuffer(pack(connection.backend), ">u4")
        value["to"]["family"] = family(connection.backend)
        value["ifindex"], value["family"] = self.rig.devices[device], key["family"]
        value["way"] = int(connection.l2)  # HEALTH_L2, or HEALTH_TUNNEL
        value["encap"] = self._encaps.word(connection.tunnel)
        self._probes.update(key, value)

    def forget(self) -> None:
        """No connection is written down."""
        for key in list(self._probes.keys()):
            self._probes.delete(key)

    def run(self, frame: bytes, mark: int) -> TestRun:
        """Run the program on a packet that has a mark (struct __sk_buff: the third word)."""
        return self._run(frame, ctx=struct.pack("=III", 0, 0, mark))

    def check(
        self,
        packet: bytes,
        backend: Address | None,
        verdict: str,
        *,
        mark: int = DEFAULT_MARK,
        tunnel: Tunnel = IPIP,
    ) -> bytes:
        """Assert what tc is told, every byte, and that this counter moved and no other.

        Without a backend no byte changes.
        """
        before, others = self.counters(), self.rig.counters()
        run = self.run(packet, mark)
        expected = packet
        if backend is not None:
            expected = self.encapsulated(packet, backend, tunnel)
        action = {SENT: TC_ACT_REDIRECT, NOT_OURS: TC_ACT_UNSPEC}.get(verdict, TC_ACT_SHOT)
        moved = self.counters() - before
        assert run.retval == action
        assert run.data == expected, f"\n{run.data.hex()}\n{expected.hex()}"
        assert moved == (Counter({verdict: 1}) if verdict else Counter())
        assert not self.rig.moved(others, self.rig.counters())
        return run.data

    def encapsulated(self, packet: bytes, backend: Address, tunnel: Tunnel = IPIP) -> bytes:
        """The packet as a client's would be sent, but for the link addresses."""
        parsed = parse(packet)
        kind = replace(IN_IPIP, encap=tunnel.encap, encap_port=tunnel.port or 0)
        outer = self.world._outer_header(parsed, backend, self.world.ways[backend], kind)
        ethertype = struct.pack("!H", ETHERTYPES[backend.version])
        return LOOPBACK + ethertype + outer + packet[LINK:]

    def label(self, packet: bytes) -> int:
        """The flow label that the packet's flow has."""
        return flow_hash(parse(packet).flow, self.world.seed) & 0xFFFFF

    def counters(self) -> Counter[str]:
        """What became of packets with a mark, of all CPUs."""
        sums: Any = self._rows["packets"].sum(axis=0)
        return Counter({self._names.get(i, str(i)): int(n) for i, n in enumerate(sums)})
