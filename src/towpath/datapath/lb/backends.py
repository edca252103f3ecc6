# SPDX-License-Identifier: Apache-2.0
"""Indexes and handles of backends, and their records in the kernel.

A record is written while nothing refers to it and published by a Maglev table
that holds its handle. An index that was given up is retired until no packet can
still be using it, and comes back with the next generation: a flow entry that
still has the old handle is stale by itself.
"""

from __future__ import annotations

from socket import htons
from typing import TYPE_CHECKING, Any

import numpy as np

from towpath.datapath.address import family, pack, unpack
from towpath.datapath.errors import CapacityError
from towpath.datapath.lb.free import FreeIndexes
from towpath.model.service import Backend, BackendState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from towpath.datapath.lb.grace import Reclaimer


_WRITTEN = ("generation", "family", "service", "state", "weight", "handle")


class BackendTable:
    """``backends`` of ``bpf/lb/maps.h`` through a mapping of it.

    ``rows`` is an array of ``struct backend``; ``index_bits`` says how much of a
    handle is its index; ``forget`` zeroes what the CPUs keep about indexes;
    ``states`` has the numbers of ``enum backend_state``.
    """

    def __init__(
        self,
        rows: np.ndarray[Any, Any],
        index_bits: int,
        reclaimer: Reclaimer,
        forget: Callable[[Sequence[int]], None],
        states: Mapping[BackendState, int],
    ) -> None:
        self._rows = rows
        # As numbers of this machine's: numpy stores those of another order in two steps.
        self._ports = rows["port"].view(np.uint16)
        self._words = rows["addr"]["word"].view(np.uint32)
        self._columns = {name: rows[name] for name in _WRITTEN}
        self._states = states
        self._bits = index_bits
        self._generations = (1 << 32 - index_bits) - 1
        self._reclaimer = reclaimer
        self._forget = forget
        self._in_use = int(np.count_nonzero(rows["handle"]))
        # Index 0 is never used: no handle is 0.
        self._free = FreeIndexes(np.flatnonzero(rows["handle"][1:] == 0) + 1)

    @property
    def capacity(self) -> int:
        """Backends that there is room for."""
        return len(self._rows) - 1

    @property
    def available(self) -> int:
        """Backends that can be added, not counting those that rest."""
        return len(self._free)

    @property
    def in_use(self) -> int:
        """Backends that there are."""
        return self._in_use

    def index(self, handle: int) -> int:
        """Return the index in a handle."""
        return handle & (1 << self._bits) - 1

    def has(self, handle: int) -> bool:
        """Whether there is a backend of this handle."""
        return bool(self._rows[self.index(handle)]["handle"] == handle)

    def add(self, service: int, backends: Sequence[Backend]) -> list[int]:
        """Write backends' records and return their handles. CapacityError: they don't fit."""
        if len(self._free) < len(backends):
            self._reclaimer.reclaim()
        if len(self._free) < len(backends):
            needed = self._in_use + len(backends)
            raise CapacityError("backends", needed, self.capacity, "backends")
        indexes = self._free.take(len(backends))
        columns = self._columns
        before = columns["generation"][indexes].astype(np.uint32)
        if before.any():
            self._forget([index for index, had in zip(indexes, before, strict=True) if had])
        generations = before % self._generations + 1
        handles = generations << self._bits | np.array(indexes, np.uint32)
        columns["generation"][indexes] = generations
        packed = b"".join([pack(each.address) for each in backends])
        self._words[indexes] = np.frombuffer(packed, np.uint32).reshape(len(backends), -1)
        columns["family"][indexes] = [family(each.address) for each in backends]
        columns["service"][indexes] = service
        self._ports[indexes] = [htons(each.port or 0) for each in backends]
        columns["state"][indexes] = [self._states[each.state] for each in backends]
        columns["weight"][indexes] = [each.weight for each in backends]
        # The last: what has no handle is no backend.
        columns["handle"][indexes] = handles
        self._in_use += len(backends)
        made: list[int] = handles.tolist()
        return made

    def note(self, handle: int, backend: Backend) -> None:
        """Note weight and state for whoever reads them back; packets go by the table.

        The port of translated flows that begin is in force at once.
        In between the record never says that the backend takes flows, unless it did or will.
        """
        row = self._rows[self.index(handle)]
        self._ports[self.index(handle)] = htons(backend.port or 0)
        fields = [("state", self._states[backend.state]), ("weight", backend.weight)]
        if backend.state is BackendState.ACTIVE:
            fields.reverse()
        for field, value in fields:
            row[field] = value

    def renew(self, handle: int) -> int:
        """Give a backend that is in no table another handle, and return it.

        Every flow that has the old one is stale at once.
        """
        row = self._rows[self.index(handle)]
        generation = int(row["generation"]) % self._generations + 1
        renewed = generation << self._bits | self.index(handle)
        row["generation"] = generation
        row["handle"] = renewed
        return renewed

    def remove(self, handle: int) -> None:
        """Give a backend's index up. No table may hold the handle any more."""
        index = self.index(handle)
        self._rows[index]["handle"] = 0
        self._in_use -= 1
        self._reclaimer.retire(lambda: self._free.give_back(index))

    def __iter__(self) -> Iterator[tuple[int, int, Backend]]:
        """Yield service, handle and backend of every record in use."""
        used = np.flatnonzero(self._rows["handle"])
        rows = self._rows[used]
        raw, size = rows["addr"].tobytes(), rows["addr"].itemsize
        states = {number: state for state, number in self._states.items()}
        columns = (rows[name].tolist() for name in ("service", "handle", "family", "weight"))
        others = (rows[name].tolist() for name in ("state", "port"))
        for at, (service, handle, of, weight, state, port) in enumerate(
            zip(*columns, *others, strict=True)
        ):
            address = unpack(raw[at * size : (at + 1) * size], of)
            yield service, handle, Backend(address, weight, states[state], port or None)
