# SPDX-License-Identifier: Apache-2.0
"""Wildcard tables in the kernel: packets in, by hundreds, and what they find out."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from towpath.kernel.bpf.object import BpfObject
from towpath.wildcard import WildcardTable, resize

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from towpath.wildcard import Packet

    Array = np.ndarray[Any, Any]

TABLE = "rules"
PROGRAM = "answer_rules"
_FAMILIES = {4: 2, 6: 10}
_FRAME = bytes(64)


class Asker:
    """Looks packets up by the packaged program. ``room``: packets at a time, a power of two."""

    def __init__(self, obj: BpfObject, room: int, undo: ExitStack) -> None:
        self.object = obj
        self.room = room
        self._queries = undo.enter_context(obj.maps["queries"].mmap()).array["key"]
        self._answers = undo.enter_context(obj.maps["answers"].mmap()).array
        self._state = undo.enter_context(obj.maps[".bss"].mmap()).array["bench"]
        self._state["mask"] = room - 1
        self.batch = int(obj.btf.enum("bench_limits")["BENCH_BATCH"])

    def prepare(self, packets: Sequence[Packet]) -> None:
        """Make these the packets that are looked up; at most as many as there is room for."""
        fill(self._queries, packets)

    def run(self) -> None:
        """Look all of them up."""
        self._state["next"] = 0
        self.object.programs[PROGRAM].test_run(_FRAME, repeat=self.room // self.batch)

    def found(self, count: int) -> list[tuple[int, int]]:
        """The number and value that each of the first packets found."""
        return [(int(number), int(value)) for number, value in self._answers[:count].tolist()]

    def ask(self, packets: Sequence[Packet]) -> list[tuple[int, int]]:
        """What any number of packets find, in their order."""
        found = []
        for first in range(0, len(packets), self.room):
            some = packets[first : first + self.room]
            self.prepare(some)
            self.run()
            found += self.found(len(some))
        return found


def fill(queries: Array, packets: Sequence[Packet]) -> None:
    """Store packets as ``struct wildcard_key``; what is left of the array is zeroed."""
    keys: Array = np.zeros(len(queries), queries.dtype)
    for key, packet in zip(keys, packets, strict=False):
        for field, address in (("saddr", packet.source), ("daddr", packet.destination)):
            key[field] = np.frombuffer(address.packed.rjust(16, b"\0"), ">u4")
        key["sport"], key["dport"] = packet.source_port, packet.destination_port
        key["protocol"], key["family"] = packet.protocol, _FAMILIES[packet.source.version]
        key["vlan"], key["ifindex"] = packet.vlan, packet.ifindex
    queries[:] = keys


@contextmanager
def loaded(rules: int = 2000, room: int = 1024) -> Iterator[tuple[Asker, BpfObject]]:
    """The packaged program with a table for so many rules of each family."""
    with ExitStack() as undo:
        obj = undo.enter_context(BpfObject.packaged("bench_wildcard"))
        prepare(obj, rules, room)
        obj.load()
        yield Asker(obj, room, undo), obj


def prepare(obj: BpfObject, rules: int, room: int) -> None:
    """Sizes, and only the program that answers: the others take the verifier's time."""
    for ending in ("floor", "rules", "masks", "scan"):
        obj.autoload(f"bench_{ending}", on=False)
    for ending in ("floor", "masks", "scan"):
        obj.autoload(f"answer_{ending}", on=False)
    resize(obj, TABLE, ipv4=rules, ipv6=rules)
    for name in ("queries", "answers"):
        obj.resize(name, room)


def clear(table: WildcardTable) -> None:
    """Delete every rule."""
    table.delete_many(list(table))
