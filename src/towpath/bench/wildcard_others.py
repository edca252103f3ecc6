# SPDX-License-Identifier: Apache-2.0
"""The other ways to look wildcard rules up, to compare with: what goes into their maps."""

from __future__ import annotations

from collections import defaultdict
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    Array = np.ndarray[Any, Any]

_SPORT, _DPORT, _PORT = 48, 32, 0xFFFF
_LOW_BITS = (1 << 32) - 1
_PORT_BITS = 16


def masked(records: Array) -> tuple[Array, Array, Array]:
    """Rules of IPv4 (``struct wildcard_rule4``) as lists of masks and hashes want them.

    Returns the masks with the rank of the best rule of each, the best first, shape ``(m, 3)``;
    what is left of each rule under its mask, and which mask that is, shape ``(n, 3)``; the ranks
    of these, shape ``(n,)``. A rule is there once for each pair of prefixes that its ranges are
    made of; of rules that are the same but for their rank, the best.
    """
    entries: defaultdict[tuple[int, int], dict[tuple[int, int], int]] = defaultdict(dict)
    for record in records:
        for mask, bits, rank in _entries(record):
            known = entries[mask]
            known[bits] = max(rank, known.get(bits, 0))
    order = sorted(entries, key=lambda mask: -max(entries[mask].values()))
    tops = [(*mask, max(entries[mask].values())) for mask in order]
    keys = [(*bits, number) for number, mask in enumerate(order) for bits in entries[mask]]
    ranks = [rank for mask in order for rank in entries[mask].values()]
    return np.array(tops, np.uint64), np.array(keys, np.uint64), np.array(ranks, np.uint64)


def _entries(record: Any) -> Iterator[tuple[tuple[int, int], tuple[int, int], int]]:
    head = record["head"]
    (addresses, rest), (mask, rest_mask) = record["bits"].tolist(), record["mask"].tolist()
    rank = int(head["rank"])
    for (sport, sport_mask), (dport, dport_mask) in product(
        _prefixes(int(head["sport_low"]), int(head["sport_span"])),
        _prefixes(int(head["dport_low"]), int(head["dport_span"])),
    ):
        ports = sport << _SPORT | dport << _DPORT
        port_masks = sport_mask << _SPORT | dport_mask << _DPORT
        yield (
            (mask, rest_mask & _LOW_BITS | port_masks),
            (addresses, rest & _LOW_BITS | ports),
            rank,
        )


def _prefixes(low: int, span: int) -> Iterator[tuple[int, int]]:
    """The prefixes that a range of ports is made of, with their masks."""
    end = low + span + 1
    while low < end:
        size = min(low & -low or 1 << _PORT_BITS, 1 << (end - low).bit_length() - 1)
        yield low, _PORT & ~(size - 1)
        low += size


def scanned(records: Array) -> Array:
    """The rules, the best first, and after them one that ends the scan."""
    order = np.argsort(records["head"]["rank"])[::-1]
    return np.concatenate([records[order], np.zeros(1, records.dtype)])
