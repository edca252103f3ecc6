# SPDX-License-Identifier: Apache-2.0
"""Indexes and handles of backends, and their records in the kernel.

A record is written while nothing refers to it and published by a Maglev table
that holds its handle. An index that was given up is retired until no packet can
still be using it, and comes back with the next generation: a flow entry that
still has the old handle is stale by itself.
"""

from __future__ import annotations

from ipaddress import IPv4Address
from socket import htons
from typing import TYPE_CHECKING, Any

import numpy as np

from towpath.datapath.address import FAMILY_V4, Address, family, pack, unpack
from towpath.datapath.errors import CapacityError
from towpath.datapath.lb.free import FreeIndexes
from towpath.model.service import Backend, BackendState

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from towpath.datapath.lb.grace import Reclaimer

    Array = np.ndarray[Any, Any]


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

    def records(self, services: Sequence[int]) -> tuple[Records, list[int]]:
        """Return the records in use of these services, and the handles of all others."""
        rows = self._rows[np.flatnonzero(self._rows["handle"])]
        wanted = np.array(services, np.uint32)
        order = np.argsort(wanted)
        # Beyond the last there is one that no record can have.
        numbers, places = np.append(wanted[order].astype(np.int64), -1), np.append(order, -1)
        nearest = np.searchsorted(numbers[:-1], rows["service"])
        known = numbers[nearest] == rows["service"]
        others: list[int] = rows["handle"][~known].tolist()
        rows, at = rows[known], places[nearest[known]]
        counts = np.bincount(at, minlength=len(services))
        return Records(rows[np.argsort(at, kind="stable")], counts, self._states), others


class Records:
    """Copies of records, service by service: as many as ``counts`` says of each.

    ``states`` as a table has them.
    """

    def __init__(
        self, rows: Array, counts: NDArray[np.int64], states: Mapping[BackendState, int]
    ) -> None:
        self.rows = rows
        self.ends = np.cumsum(counts)
        self.counts = counts
        self.handles: list[int] = rows["handle"].tolist()
        self._numbers = states
        self._states = {number: state for state, number in states.items()}

    def of(self, at: int) -> slice:
        """Where the records of a service are, by its place among all."""
        return slice(int(self.ends[at] - self.counts[at]), int(self.ends[at]))

    def read(self, at: int) -> list[tuple[int, Backend]]:
        """Return handles and backends of a service, by its place among all."""
        rows = self.rows[self.of(at)]
        raw, size = rows["addr"].tobytes(), rows["addr"].itemsize
        columns = (rows[each].tolist() for each in ("handle", "family", "weight", "state", "port"))
        found = []
        for nth, (handle, of, weight, state, port) in enumerate(zip(*columns, strict=True)):
            address = unpack(raw[nth * size : (nth + 1) * size], of)
            found.append((handle, Backend(address, weight, self._states[state], port or None)))
        return found

    def equal(self, services: Mapping[int, Sequence[Backend]]) -> set[int]:
        """Return those of these services, by their places, that have just these backends.

        In this order, and none that is said to be local: that is not in records.
        """
        alike = {at: each for at, each in services.items() if len(each) == self.counts[at]}
        backends = [backend for each in alike.values() for backend in each]
        if not backends:
            return set(alike)
        spans = [self.of(at) for at in alike]
        rows = self.rows[np.concatenate([np.arange(each.start, each.stop) for each in spans])]
        same = _same_addresses(rows, [each.address for each in backends])
        same &= rows["weight"] == np.array([each.weight for each in backends])
        same &= rows["state"] == np.array([self._numbers[each.state] for each in backends])
        same &= rows["port"] == np.array([each.port or 0 for each in backends])
        same &= ~np.array([each.local for each in backends])
        wrong = np.zeros(len(spans), np.int64)
        lengths = [each.stop - each.start for each in spans]
        np.add.at(wrong, np.repeat(np.arange(len(spans)), lengths), ~same)
        return {at for at, count in zip(alike, wrong.tolist(), strict=True) if not count}


def _same_addresses(rows: Array, addresses: Sequence[Address]) -> NDArray[np.bool_]:
    """Return which records have the address that is at their place."""
    words = rows["addr"]["word"]
    if {*map(type, addresses)} == {IPv4Address}:
        last = words[:, -1] == np.array([int(each) for each in addresses], np.uint32)
        return np.asarray(last & (rows["family"] == FAMILY_V4) & ~words[:, :-1].any(axis=1))
    raw = np.frombuffer(b"".join([pack(each) for each in addresses]), words.dtype)
    families = np.array([family(each) for each in addresses])
    same = (words == raw.reshape(words.shape)).all(axis=1)
    return np.asarray(same & (rows["family"] == families))
