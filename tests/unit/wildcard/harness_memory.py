# SPDX-License-Identifier: Apache-2.0
"""Tables of one family in ordinary memory, looked up by the walker."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

from towpath.native.wildcard import FamilyWriter
from towpath.wildcard import maps
from towpath.wildcard.codec import FAMILIES, encode, key_of, number_of
from towpath.wildcard.walk import Walker

if TYPE_CHECKING:
    from towpath.wildcard import Packet, Rule

    Array = np.ndarray[Any, Any]

_RANDOM = hashlib.sha384(b"the same each time").digest()


class Memory:
    """The three arrays of a family. ``spare``: how many rules beyond WILDCARD_SPARE fit."""

    def __init__(self, version: int, rules: int = 1000, slots: int = 4096) -> None:
        self.family = FAMILIES[version]
        layouts = maps.wanted().layouts
        self.index: Array = np.zeros(1, layouts[f"index{version}"].value)
        self.slots: Array = np.zeros(slots, np.uint64)
        self.rules: Array = np.zeros(maps.rules_room(rules), layouts[f"rules{version}"].value)
        self.waits = 0

    def open(self) -> FamilyWriter:
        """Write to it, as a process that begins does."""
        return FamilyWriter(
            self.family.words, self.index, self.slots, self.rules, _RANDOM, self._wait
        )

    def _wait(self) -> None:
        self.waits += 1

    def encode(self, rule: Rule, number: int, version: int = 0) -> bytes:
        """A rule's record; its device, if it names one, is its own number."""
        return encode(self.family, rule, number, rule.ifindex or 0, version)

    def find(self, packet: Packet) -> int:
        """The number of the rule that a packet finds, 0 if none."""
        walker = Walker(self.family, self.index, self.slots, self.rules)
        rank = walker.find(key_of(self.family, packet, packet.ifindex)).rank
        return number_of(rank) if rank else 0

    def places(self) -> list[int]:
        """Where in the array of rules the runs begin that packets can reach."""
        found: list[int] = []
        for place in self.index["tuples"]["place"].reshape(-1).tolist():
            first, size = place & 0xFFFFFFFF, (place >> 32) + 1 if place else 0
            runs = self.slots[first : first + size]
            found += (runs[runs != 0] & 0xFFFFFF).tolist()
        return found

    def numbers(self, writer: FamilyWriter) -> list[int]:
        """The numbers of all rules, that of the best first."""
        return [number_of(int(rank)) for rank in writer.rules()["head"]["rank"]]
