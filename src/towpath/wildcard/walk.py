# SPDX-License-Identifier: Apache-2.0
"""What a look-up costs: the way of a packet through the arrays, step by step.

The same as ``wildcard_find()`` of ``bpf/wildcard/wildcard.h``, slowly. It sees what packets see.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np

    from towpath.wildcard.codec import Family

    Array = np.ndarray[Any, Any]

_WORD = (1 << 64) - 1
_BIT_HASH = 0x03F79D71B4CB0A89
_LEAVES, _PORT_LEAVES = (1 << 13) - 1, (1 << 12) - 1


class Steps(NamedTuple):
    """What one look-up did."""

    rank: int
    """Of the rule found, 0 if none was."""
    tuples: int
    """Hash tables looked into."""
    rules: int
    """Rules compared with the packet."""


class Walker:
    """Looks keys up in a family's arrays, of one element, of slots and of rules.

    What is small is copied when this is made: for a table that nobody changes meanwhile.
    """

    def __init__(self, family: Family, index: Array, slots: Array, rules: Array) -> None:
        self._words = family.words
        self._index = index[0]
        self._slots = slots
        self._rules = rules
        self._multipliers = self._index["multipliers"].tolist()
        self._tuples = [
            (each["mask"].tolist(), *map(int, (each["top"], each["ceiling"], each["place"])))
            for each in self._index["tuples"]
        ]

    def find(self, key: Sequence[int]) -> Steps:
        """Look up a key, as many words as its family has."""
        best = tuples = rules = 0
        left = self._candidates(key)
        while left:
            bit = left & -left
            left ^= bit
            mask, top, ceiling, place = self._tuples[(bit * _BIT_HASH & _WORD) >> 58]
            if ceiling <= best:
                break
            if top <= best:
                continue
            tuples += 1
            for rule in self._run(key, mask, place):
                rules += 1
                if rule["head"]["rank"] <= best:
                    break
                if self._matches(rule, key):
                    best = int(rule["head"]["rank"])
                    break
        return Steps(best, tuples, rules)

    def _candidates(self, key: Sequence[int]) -> int:
        index, last = self._index, key[-1]
        port = last >> 32 & 0xFFFF
        second = 0 if self._words == 2 else 2  # noqa: PLR2004 -- IPv4 has both in one word
        source = self._leaf(index["source"], key, 0)
        destination = self._leaf(index["destination"], key, second)
        return (
            int(index["any_source"] | index["sources"][source])
            & int(index["any_destination"] | index["destinations"][destination])
            & int(index["any_port"] | index["ports"][(port ^ port >> 12) & _PORT_LEAVES])
            & int(index["any_protocol"] | index["protocols"][last >> 24 & 0xFF])
        )

    @staticmethod
    def _leaf(window: Any, key: Sequence[int], first: int) -> int:
        return key[first + int(window["word"])] >> int(window["shift"]) & _LEAVES

    def _run(self, key: Sequence[int], mask: Sequence[int], place: int) -> Iterator[Any]:
        pairs = zip(key, mask, self._multipliers, strict=False)
        mixed = sum((word & bits) * multiplier for word, bits, multiplier in pairs) & _WORD
        mixed = (mixed ^ mixed >> 32) * self._multipliers[-1] & _WORD
        slot = int(self._slots[(place & 0xFFFFFFFF) + (mixed >> 32 & place >> 32)])
        if slot >> 32 >> (mixed >> 59) & 1:
            first = slot & 0xFFFFFF
            yield from self._rules[first : first + (slot >> 24 & 0xFF)]

    def _matches(self, rule: Any, key: Sequence[int]) -> bool:
        head = rule["head"]
        sport = (key[-1] >> 48) - int(head["sport_low"])
        dport = (key[-1] >> 32 & 0xFFFF) - int(head["dport_low"])
        return (
            0 <= sport <= head["sport_span"]
            and 0 <= dport <= head["dport_span"]
            and not any(
                (word ^ bits) & mask
                for word, bits, mask in zip(
                    key, rule["bits"].tolist(), rule["mask"].tolist(), strict=True
                )
            )
        )
