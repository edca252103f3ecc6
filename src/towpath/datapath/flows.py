# SPDX-License-Identifier: Apache-2.0
"""How many flows backends have, counted in the flow table.

An entry says when its flow was last seen, in units of ``1 << FLOW_SEEN_SHIFT`` jiffies
and in 16 bits. That clock goes round in 70 minutes (HZ=1000) to 11 hours (HZ=100): an
entry that lay idle for a whole round looks young again until it is idle once more, so a
count can be too high for that while, never too low.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from towpath.datapath.clock import Clock
from towpath.kernel.rcu import wait_for_readers

if TYPE_CHECKING:
    from collections.abc import Mapping

    from towpath.core.states import BackendKey
    from towpath.datapath.program import LoadedProgram

    Array = np.ndarray[Any, Any]

ENDED_SECONDS = 10.0
"""A flow whose client has sent FIN or RST has ended when no packet came for so long."""

_SEEN_BITS = 16
_CHUNK = 8192
"""Sets that are mapped and looked at at once: 2 MiB."""


class FlowTable:
    """``flows`` of ``bpf/maps.h``, read in bulk. For one thread at a time."""

    def __init__(self, program: LoadedProgram) -> None:
        self._map = program.maps["flows"]
        self._shift = program.constant("flow_limits", "FLOW_SEEN_SHIFT")
        self._ending = program.constant("flow_flags", "FLOW_ENDING")
        self._index_bits = program.constant("handle_bits", "HANDLE_INDEX_BITS")
        self._backends = program.layout.entries["backends"]
        self._clock: Clock | None = None

    def count(self, handles: Array, idle: float) -> Array:
        """Return how many flows each handle (uint32) has that were seen in ``idle`` seconds.

        Of those that their client has ended, that were seen in ENDED_SECONDS. KernelError as
        for reading a map.
        """
        clock = self._clock = self._clock or Clock()
        most = self._ticks(idle, clock.rate)
        most_ending = self._ticks(min(idle, ENDED_SECONDS), clock.rate)
        # Column 0 is for whatever isn't asked for.
        columns = np.zeros(self._backends, np.uint32)
        wanted = np.concatenate([[0], handles]).astype(np.uint32)
        columns[self._indexes(wanted)] = np.arange(len(wanted))
        found = np.zeros(len(wanted), np.int64)
        for start in range(0, self._map.max_entries, _CHUNK):
            sets = min(_CHUNK, self._map.max_entries - start)
            with self._map.mmap(start, sets, writable=False) as mapped:
                column, seen, ends = self._entries(mapped.array, columns, wanted)
            # Read after the entries: none was seen later than now, which would look very old.
            now = np.uint16(clock.jiffies() >> self._shift & (1 << _SEEN_BITS) - 1)
            young = now - seen <= np.where(ends, most_ending, most)
            found += np.bincount(column[young], minlength=len(wanted))
        counted: Array = found[1:]
        return counted

    def _entries(self, sets: Array, columns: Array, wanted: Array) -> tuple[Array, Array, Array]:
        """Return the entries of handles that are wanted: column, time seen, whether it ends."""
        ways = sets["way"].reshape(-1)
        held = (ways["ref"] >> np.uint64(32)).astype(np.uint32)
        column = columns[self._indexes(held)]
        at = np.flatnonzero((column != 0) & (wanted[column] == held))
        ends = ways["service"][at] & np.uint32(self._ending) != 0
        return column[at], ways["seen"][at], ends

    def _ticks(self, seconds: float, rate: int) -> int:
        """Return a span in units of ``seen``, rounded up, and less than a round."""
        ticks = int(seconds * rate) + (1 << self._shift) >> self._shift
        return min(ticks, (1 << _SEEN_BITS) - 2)

    def _indexes(self, handles: Array) -> Array:
        """Return the indexes of handles, 0 for those that can't be ours."""
        indexes = handles & np.uint32((1 << self._index_bits) - 1)
        indexes[indexes >= self._backends] = 0
        return indexes

    def close(self) -> None:
        """Close the clock."""
        if self._clock is not None:
            self._clock.close()
            self._clock = None


@dataclass(frozen=True, slots=True)
class Census:
    """Who is to be counted, as of one moment. Counting may be done by another thread."""

    table: FlowTable
    handles: Mapping[BackendKey, int]

    def count(self, idle: float) -> dict[BackendKey, int]:
        """Return the flows of each that were seen in the last ``idle`` seconds.

        Waits for the packets now in flight: one that is given a backend by a table that
        was replaced before the census is counted, too. KernelError.
        """
        wait_for_readers()
        handles = np.fromiter(self.handles.values(), np.uint32, len(self.handles))
        found = self.table.count(handles, idle).tolist()
        return dict(zip(self.handles, found, strict=True))
