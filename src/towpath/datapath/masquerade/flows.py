# SPDX-License-Identifier: Apache-2.0
"""The flows that are masqueraded, as they are in the table.

Programs write it while it is read: an entry is taken if `ref` was the same before and after. One
whose time is over, or whose address has gone, is there until its place is wanted, and isn't told.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from towpath.datapath.address import FAMILY_V4, FAMILY_V6, unpack
from towpath.documents import MasqueradedFlow
from towpath.kernel.jiffies import Jiffies, per_second

if TYPE_CHECKING:
    from collections.abc import Iterator

    from towpath.datapath.address import Address
    from towpath.datapath.masquerade.node import Node

    Array = np.ndarray[Any, Any]

_CHUNK = 1024  # sets read at once
_MODULUS = 1 << 16
_PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmp", 132: "sctp"}
_TCP, _UDP, _SCTP = 6, 17, 132
_WORDS = 4


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which flows are wanted; None: whatever they have there."""

    client: Address | None = None
    remote: Address | None = None
    protocol: str | None = None
    port: int | None = None
    """The translated one."""

    def fits(self, flow: MasqueradedFlow) -> bool:
        """Whether a flow is one of these."""
        return (
            self.client in (None, flow.client)
            and self.remote in (None, flow.remote)
            and self.protocol in (None, flow.protocol)
            and self.port in (None, flow.port)
        )


class FlowTable:
    """Reads the table of a node. KernelError: no permission to."""

    def __init__(self, node: Node) -> None:
        program = node.program
        self._flows = program.maps["masq_flows"]
        self._sources = program.maps["masq_sources"]
        enum = "nat_marks"
        self._answered = program.constant(enum, "NAT_ANSWERED")
        self._fin, self._rst = program.constant(enum, "NAT_FIN"), program.constant(enum, "NAT_RST")
        self._shift = program.constant("nat_limits", "NAT_SEEN_SHIFT")
        self._allowed = program.allowed
        with Jiffies() as jiffies:
            self._now = jiffies.now() >> self._shift
        self._generations = self._sources.snapshot()[1]["generation"]

    def count(self) -> int:
        """How many there are."""
        return sum(int(live.sum()) for _, _, _, live in self._chunks())

    def flows(self, wanted: Wanted, limit: int) -> Iterator[MasqueradedFlow]:
        """Those that are wanted, at most ``limit``."""
        addresses = self._addresses()
        for entries, states, ages, live in self._chunks():
            for set_, way in zip(*np.nonzero(live), strict=True):
                found = self._flow(
                    entries[set_, way], addresses, str(states[set_, way]), ages[set_, way]
                )
                if wanted.fits(found):
                    yield found
                    limit -= 1
                if limit <= 0:
                    return

    def _chunks(self) -> Iterator[tuple[Array, Array, Array, Array]]:
        for begin in range(0, self._flows.max_entries, _CHUNK):
            count = min(_CHUNK, self._flows.max_entries - begin)
            with self._flows.mmap(begin, count, writable=False) as flows:
                entries = flows.array["way"].copy()
                same = flows.array["way"]["ref"] == entries["ref"]
            life = entries["life"]
            states = self._states(entries["protocol"], life)
            ages = (self._now - life["seen"].astype(np.int64)) % _MODULUS
            ages[ages > _MODULUS - 16] = 0
            live = (entries["ref"] != 0) & same & (ages <= self._times(entries, states))
            live &= self._generations[entries["source"]] == entries["generation"]
            yield entries, states, ages, live

    def _states(self, protocol: Array, life: Array) -> Array:
        client, remote = life["client"], life["backend"]
        closing = ((client | remote) & self._rst != 0) | (client & remote & self._fin != 0)
        answered = client & self._answered != 0
        return np.where(
            closing & (protocol == _TCP), "closing", np.where(answered, "established", "new")
        )

    def _times(self, entries: Array, states: Array) -> Array:
        """How long each is kept, as ``masq_allowed`` of ``bpf/masquerade/table.h`` has it."""
        protocol = entries["protocol"]
        allowed = self._allowed
        times = np.full(protocol.shape, allowed["nat_udp_new"], np.int64)
        udp, lasting = protocol == _UDP, (protocol == _TCP) | (protocol == _SCTP)
        times[udp & (states == "established")] = allowed["nat_udp_open"]
        times[lasting & (states == "new")] = allowed["nat_tcp_new"]
        times[lasting & (states == "established")] = allowed["nat_tcp_open"]
        times[lasting & (states == "closing")] = allowed["nat_tcp_closing"]
        return times

    def _addresses(self) -> dict[int, Address]:
        return {
            int(number): unpack(each["address"].tobytes(), int(each["family"]))
            for number, each in self._sources.items()
            if each["family"]
        }

    def _flow(
        self, entry: Any, addresses: dict[int, Address], state: str, age: int
    ) -> MasqueradedFlow:
        of_family = FAMILY_V4 if entry["source"] < self._sources.max_entries // 2 else FAMILY_V6
        return MasqueradedFlow(
            protocol=_PROTOCOLS.get(int(entry["protocol"]), str(entry["protocol"])),
            client=unpack(entry["client"].tobytes(), of_family),
            client_port=int(entry["client_port"]),
            source=addresses[int(entry["source"])],
            port=int(entry["port"]),
            remote=unpack(entry["remote"].tobytes(), of_family),
            remote_port=int(entry["remote_port"]),
            state=state,
            idle_seconds=round(int(age) * (1 << self._shift) / per_second(), 1),
        )
