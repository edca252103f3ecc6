# SPDX-License-Identifier: Apache-2.0
"""The programs at pods' devices, over the load balancer's tables and some of their own.

What is pinned below ``pins`` outlives the process: ``maps`` are the tables of their own, ``links``
the places of the programs. A table of flows of another size is made anew: what is on its way in
connections then goes by its hash, which leads to the same backends as long as these are the same.
"""

from __future__ import annotations

import secrets
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from towpath.closeable import Closeable
from towpath.datapath.maps.own import OwnTables
from towpath.kernel.bpf.object import BpfObject
from towpath.kernel.jiffies import per_second, units
from towpath.kernel.net.conntrack_flows import udp_seconds

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from towpath.datapath.maps.shared import SharedMaps
    from towpath.kernel.bpf.maps import Map
    from towpath.kernel.bpf.programs import Program

OBJECT = "socket_packets"
_PRIVATE = ("packet_works",)
_TABLE = ("packet_heads", "packet_flows", "packet_locks")
RATE = 200_000
"""New flows a second on each CPU."""

# Seconds, as those of services that are translated.
TCP_OPEN = 7440
TCP_NEW = 60
TCP_CLOSING = 30
UDP_NEW = 30


class PacketProgram(Closeable):
    """The loaded programs over ``tables``, with room for ``flows``. ``pins``: None for none.

    ``epoch``: a number for these tables, whose handles flows have. ``rate``: new flows a second on
    each CPU; the rest is dropped. ``object_name``: where the programs are. ``tracks``: flows may be
    the kernel's (:mod:`towpath.datapath.snat.tracked`).

    VerifierError, KernelError: they can't be loaded, or pinned.
    """

    def __init__(
        self,
        tables: SharedMaps,
        flows: int,
        epoch: int,
        pins: Path | None = None,
        *,
        rate: int = RATE,
        object_name: str = OBJECT,
        tracks: bool = False,
    ) -> None:
        self.tables = tables
        self.epoch = epoch
        self._tracks = tracks
        with ExitStack() as undo:
            obj = self._object = undo.enter_context(BpfObject.packaged(object_name))
            tables.use(obj)
            ways = self.constant("packet_limits", "PACKET_WAYS")
            sets = 1 << (-(-flows // ways) - 1).bit_length()
            for name in _TABLE:
                obj.resize(name, sets)
            self.allowed = self._times()
            """How long flows are kept, in steps of nat_life.seen."""
            names = [
                name
                for name in obj.map_names
                if name.startswith(("packet_", "xlat_")) and name not in _PRIVATE
            ]
            self.own = OwnTables(obj, names, pins, together=_TABLE)
            with ExitStack() as kept:
                reused = self.own.reuse(kept)
                seed = self._seed(reused.get("packet_states"))
                self._tell(sets, seed, rate)
                obj.load()
            self._keep_seed(seed)
            self.own.pin()
            self._undo = undo.pop_all()

    def _times(self) -> dict[str, int]:
        hz, shift = per_second(), self.constant("nat_limits", "NAT_SEEN_SHIFT")
        seconds = {
            "nat_tcp_open": TCP_OPEN,
            "nat_tcp_new": TCP_NEW,
            "nat_tcp_closing": TCP_CLOSING,
            "nat_udp_open": self.constant("packet_limits", "PACKET_IDLE"),
            "nat_udp_new": UDP_NEW,
        }
        return {name: units(each, hz, shift) for name, each in seconds.items()}

    def _seed(self, states: Map | None) -> int:
        known = 0 if states is None else int(states.lookup(0)["seed"])
        return known or secrets.randbits(64)

    def _keep_seed(self, seed: int) -> None:
        state = self.maps["packet_states"].lookup(0)
        if int(state["seed"]) != seed or state["giving"]:
            state["seed"], state["giving"] = seed, 0
            self.maps["packet_states"].update(0, state)

    def _tell(self, sets: int, seed: int, rate: int) -> None:
        hz = per_second()
        own = {
            "packet_seed": seed,
            "packet_mask": sets - 1,
            "packet_rate": -(-rate // hz),
            "packet_epoch": self.epoch,
            "jiffies_a_second": hz,
            "tracks": self._tracks,
            "tracks_udp": udp_seconds() * 10**9 if self._tracks else 0,
        }
        for name, value in (self.tables.constants | own | self.allowed).items():
            if name in self._object.rodata:
                self._object.rodata[name] = value

    def give(self) -> None:
        """Have nothing begin any more, and what is in ``tracked`` be the kernel's."""
        with self.maps["packet_states"].mmap() as states:
            states.array["giving"] = 1

    @property
    def maps(self) -> Mapping[str, Map]:
        """All of them, the load balancer's too."""
        return self._object.maps

    @property
    def programs(self) -> Mapping[str, Program]:
        """By name, such as ``socket_from_pod`` and ``socket_to_pod``."""
        return self._object.programs

    def constant(self, enum: str, name: str) -> int:
        """Return an enumerator of ``bpf/abi``."""
        return int(self._object.btf.enum(enum)[name])

    def names(self, enum: str, end: str) -> list[str]:
        """The members of an enum of packets' up to ``end``, in lower case, without their prefix."""
        members = self._object.btf.enum(enum)
        found = [each for each in members if each < members[end]]
        return [each.name.removeprefix("PACKET_").lower() for each in sorted(found, key=int)]

    def counts(self) -> dict[str, dict[str, int]]:
        """Packets by program and verdict, those of all CPUs together; and "bytes" and "begun"."""
        verdicts = self.names("packet_verdict", "PACKET_MAX")
        found: dict[str, dict[str, int]] = {}
        for number, name in enumerate(self.names("packet_program", "PACKET_PROGRAMS")):
            counts = self.maps["packet_counts"].lookup(number)
            packets = counts["packets"].sum(axis=0)
            found[name] = {verdict: int(packets[i]) for i, verdict in enumerate(verdicts)}
            found[name] |= {each: int(counts[each].sum()) for each in ("bytes", "begun")}
        return found

    def dtype(self, name: str) -> Any:
        """The dtype of a struct of ``bpf/abi``."""
        return self._object.btf.dtype(name)

    def close(self) -> None:
        """Let go of it: what is attached and pinned stays."""
        self._undo.close()
