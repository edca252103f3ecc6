# SPDX-License-Identifier: Apache-2.0
"""The table of fragments, watched for what changes in it."""

from __future__ import annotations

import time
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from tests.prog.lb.oracle_slow_path import FragmentKey, Left

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.prog.lb.oracle_parse import Address


class Change(NamedTuple):
    """What an entry was for and what it is for now; None for nothing."""

    old: FragmentKey | None
    new: tuple[FragmentKey, Left] | None


class Fragments:
    """``ways``: the entries by set and way, mapped."""

    def __init__(self, ways: Any) -> None:
        self.ways = ways

    def now(self) -> int:
        """The time as entries have it: 2^20 ns, 32 bits."""
        return time.clock_gettime_ns(time.CLOCK_MONOTONIC) >> 20 & 0xFFFFFFFF

    def keep_young(self) -> None:
        """Have no entry grow old while a test takes its time."""
        used = self.ways["ref"] != 0
        self.ways["seen"][used] = self.now()

    def grow_old(self, units: int) -> None:
        """Have all entries be older by so many times 2^20 ns."""
        self.ways["seen"] -= np.uint32(units)

    def copy(self) -> Any:
        """The table as it is."""
        return self.ways.copy()

    def changed(self, before: Any, address_of: Callable[[int], Address | None]) -> Change:
        """What has changed since a copy was made, in one entry at most."""
        if before.tobytes() == self.ways.tobytes():
            return Change(None, None)
        raw = (each.view(np.uint8).reshape(each.size, -1) for each in (before, self.ways.copy()))
        old, new = raw
        places = np.flatnonzero((old != new).any(axis=1))
        assert len(places) == 1, places
        was, now = before.reshape(-1)[places[0]], self.ways.reshape(-1)[places[0]]
        left = Left(
            int(now["sport"]),
            int(now["dport"]),
            int(now["protocol"]),
            address_of(int(now["ref"]) >> 32),
            int(now["checksum_at"]),
        )
        return Change(_key(was) if was["ref"] else None, (_key(now), left))


def _key(entry: Any) -> FragmentKey:
    ends = [_address(entry[name], int(entry["family"])) for name in ("saddr", "daddr")]
    return ends[0], ends[1], int(entry["id"]), int(entry["ip_protocol"])


def _address(record: Any, family: int) -> Address:
    raw = record.tobytes()
    return IPv4Address(raw[12:]) if family == 2 else IPv6Address(raw)
