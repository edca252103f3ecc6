# SPDX-License-Identifier: Apache-2.0
"""Maglev tables, slowly: with fractions, and by the paper's rounds."""

from __future__ import annotations

import heapq
from fractions import Fraction
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

MASK = (1 << 64) - 1


def step(state: int, word: int) -> int:
    """Fold 64 bits into the state, as bpf/net/hash.h does."""
    state = (state ^ word) * 0x9FB21C651E98DF25 & MASK
    return state ^ state >> 32


def permutation(identity: bytes, size: int) -> tuple[int, int]:
    """Offset and skip of a backend."""
    state = step(0, len(identity))
    for at in range(0, len(identity), 8):
        state = step(state, int.from_bytes(identity[at : at + 8], "little"))
    offset = (step(state, 1) >> 32) * size >> 32
    skip = 1 + ((step(state, 2) >> 32) * (size - 1) >> 32)
    return offset, skip


def in_order(backends: Sequence[tuple[bytes, int]]) -> list[int]:
    """Indexes of backends with a weight: the heavier first, then by identity."""
    sharing = [index for index, (_, weight) in enumerate(backends) if weight]
    return sorted(sharing, key=lambda index: (-backends[index][1], backends[index][0]))


def shares(weights: Sequence[int], size: int) -> list[int]:
    """Slots by Webster's method, at least one each; of equals the first gets it."""
    slots = [1] * len(weights)
    claims = [(Fraction(3, 2 * weight), place) for place, weight in enumerate(weights)]
    heapq.heapify(claims)
    for _ in range(size - len(weights)):
        _, place = heapq.heappop(claims)
        slots[place] += 1
        heapq.heappush(claims, (Fraction(2 * slots[place] + 1, 2 * weights[place]), place))
    return slots


def table(backends: Sequence[tuple[bytes, int]], size: int) -> list[int]:
    """What towpath.core.lb.maglev.table() has to return."""
    order = in_order(backends)
    if not order:
        return []
    slots = [-1] * size
    _take_turns(backends, order, shares([backends[i][1] for i in order], size), slots)
    return slots


def table_without(
    backends: Sequence[tuple[bytes, int]], size: int, away: Collection[int]
) -> list[int]:
    """The same with some away: the others keep their slots and fill up those."""
    order = [index for index in in_order(backends) if index not in away]
    if not order:
        return []
    slots = [-1 if index in away else index for index in table(backends, size)]
    wanted = shares([backends[index][1] for index in order], size)
    lacking = [want - slots.count(index) for want, index in zip(wanted, order, strict=True)]
    _take_turns(backends, order, lacking, slots)
    return slots


def _take_turns(
    backends: Sequence[tuple[bytes, int]], order: list[int], left: list[int], slots: list[int]
) -> None:
    """Fill the slots that are free (-1), each backend as many as it has left to take."""
    size = len(slots)
    weights = [backends[index][1] for index in order]
    places = [permutation(backends[index][0], size) for index in order]
    turns = [(Fraction(1, 2 * weight), place, 0) for place, weight in enumerate(weights)]
    turns = [turn for turn in turns if left[turn[1]]]
    heapq.heapify(turns)
    while turns:
        _, place, k = heapq.heappop(turns)
        offset, skip = places[place]
        slot = (offset + k * skip) % size
        if slots[slot] < 0:
            slots[slot] = order[place]
            left[place] -= 1
        if left[place]:
            time = Fraction(2 * (k + 1) + 1, 2 * weights[place])
            heapq.heappush(turns, (time, place, k + 1))


def paper_table(identities: Sequence[bytes], size: int) -> list[bytes]:
    """Eisenbud et al., NSDI 2016, section 3.4, pseudocode 1: no weights."""
    order = sorted(identities)
    places = [permutation(identity, size) for identity in order]
    nexts = [offset for offset, _ in places]
    slots: list[bytes | None] = [None] * size
    filled = 0
    while True:
        for i, identity in enumerate(order):
            skip = places[i][1]
            slot = nexts[i]
            while slots[slot] is not None:
                slot = (slot + skip) % size
            slots[slot] = identity
            nexts[i] = (slot + skip) % size
            filled += 1
            if filled == size:
                return [slot for slot in slots if slot is not None]
