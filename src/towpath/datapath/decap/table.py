# SPDX-License-Identifier: Apache-2.0
"""The addresses that the decapsulating program unwraps for, and what it has counted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from towpath.datapath.decap.addresses import TunnelAddresses, Unwrapped

if TYPE_CHECKING:
    from towpath.datapath.address import Address
    from towpath.kernel.bpf.maps import Map
    from towpath.kernel.bpf.object import BpfObject


@dataclass(frozen=True, slots=True)
class DecapCounters:
    """Sums over all CPUs since the program was attached.

    ``verdicts`` counts each frame once: ``unwrapped``, ``pass_other`` (no tunnel packet for one of
    the addresses), ``pass_fragment``, ``drop_malformed``, ``drop_ecn``, ``drop_adjust``.
    """

    verdicts: dict[str, int]
    addresses: dict[Address, Unwrapped]


class DecapTable(TunnelAddresses):
    """Addresses and counters of one loaded program, attached or not."""

    def __init__(self, obj: BpfObject, addresses: Map, verdicts: Map) -> None:
        super().__init__(addresses)
        self._verdicts = verdicts
        self._names = {
            member.name.removeprefix("DECAP_").lower(): int(member)
            for member in obj.btf.enum("decap_verdict")
            if member.name != "DECAP_MAX"
        }

    def counters(self) -> DecapCounters:
        """Read the counters. Not one moment's: packets go on while they are read."""
        packets = self._verdicts.lookup(0)["packets"].sum(axis=0)
        verdicts = {name: int(packets[i]) for name, i in self._names.items()}
        return DecapCounters(verdicts, self.unwrapped())
