# SPDX-License-Identifier: Apache-2.0
"""The flow table, read as a whole: who is connected to which backend, and since when unseen.

The program writes the table while it is read. Every entry is taken for itself: its
publishing word, whose handle a backend must still have, and its tag must agree, as
they must for a packet. Entries of backends that are gone, or that two CPUs wrote at
once, are left out.

The program keeps no time but the low 16 bits of when a flow was last seen, in steps
of 64 jiffies: 64 ms and 70 minutes round at 1000 jiffies a second, 256 ms and 4.6
hours at 250. So the first reading has ages modulo that span, and later ones, if they
are not further apart, have them right: see :mod:`towpath.datapath.flows.ages`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from towpath.datapath.address import pack
from towpath.datapath.flows.ages import Ages, Clock
from towpath.datapath.flows.columns import Columns, page
from towpath.kernel.jiffies import per_second

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from ipaddress import IPv4Network, IPv6Network

    from towpath.datapath.maps.source import TableSource
    from towpath.kernel.bpf.maps import Map
    from towpath.kernel.jiffies import Jiffies

    Array = np.ndarray[Any, Any]
    Network = IPv4Network | IPv6Network

_TAG_SHIFT = 24
_SEEN_MODULUS = 1 << 16
_CHUNK_SETS = 2048
"""Sets that are read at once: half a MiB."""
_HALF = 32
IDLE_SECONDS = 300
"""A flow of which no packet came for so long has ended, unless a drain is told otherwise.

And a SYN may begin another one at another backend, if its own takes no new flows; a datagram begins
another one in any case, unless its service says otherwise.
"""
SERVICE = (1 << 30) - 1
"""Of an entry's `service`, the index. Higher bits are ``enum flow_flags``."""
_IPV6 = 6
_ADDRESS_BYTES = 16


@dataclass(frozen=True, slots=True)
class Filter:
    """Which entries are wanted; None: whatever they have there."""

    handles: Collection[int] | None = None
    """Handles of backends, each of which belongs to one service."""
    clients: Network | None = None
    """Where the client's address is, which also says the family."""
    max_idle_seconds: float | None = None
    """Seen within this time."""


EVERY = Filter()


@dataclass(frozen=True, slots=True)
class Entries(Columns):
    """Entries of the flow table, each field an array with one element for each.

    ``places``: where they are in the table, rising. ``clients``: 16 bytes in network
    order, an IPv4 address being the last four. ``idle_seconds``: since when no packet
    was seen, see the module for what that is worth. ``ending``: whether the client has
    sent FIN or RST, and no SYN since. ``opening``: whether it has sent nothing but SYNs.
    """

    places: Array
    handles: Array
    services: Array
    clients: Array
    client_ports: Array
    idle_seconds: Array
    ending: Array
    opening: Array

    ADDRESSES = frozenset({"clients"})


class FlowTable:
    """``flows`` and ``flow_tags`` of ``bpf/lb/maps.h``, read when asked, and never written.

    ``backends`` is an array of ``struct backend``; ``index_bits`` says how much of a
    handle is its index; ``ending`` is FLOW_ENDING and ``opening`` FLOW_OPENING; ``seen_shift``
    how many low bits of jiffies `seen` lacks; ``jiffies`` tells the time (32 bits), ``hz`` how
    fast it goes. For any thread.
    """

    def __init__(
        self,
        flows: Map,
        tags: Map,
        backends: Array,
        *,
        index_bits: int,
        ending: int,
        opening: int,
        seen_shift: int,
        jiffies: Callable[[], int],
        hz: int,
    ) -> None:
        self._flows = flows
        self._tags = tags
        self._backends = backends
        self._index_mask = (1 << index_bits) - 1
        self._ending, self._opening = np.uint32(ending), np.uint32(opening)
        self._step = (1 << seen_shift) / hz
        self._clock = Clock(jiffies, seen_shift)
        self._ways: int = flows.value_dtype["way"].shape[0]
        self._chunk = _CHUNK_SETS * self._ways
        self._ages = Ages(flows.max_entries * self._ways, self._chunk)

    @classmethod
    def of(cls, source: TableSource, jiffies: Jiffies) -> Self:
        """Return the flow table in some maps, for as long as that is open."""
        return cls(
            source.maps["flows"],
            source.maps["flow_tags"],
            source.rows("backends"),
            index_bits=source.constant("handle_bits", "HANDLE_INDEX_BITS"),
            ending=source.constant("flow_flags", "FLOW_ENDING"),
            opening=source.constant("flow_flags", "FLOW_OPENING"),
            seen_shift=source.constant("flow_limits", "FLOW_SEEN_SHIFT"),
            jiffies=jiffies.now,
            hz=per_second(),
        )

    @property
    def resolution_seconds(self) -> float:
        """Seconds from one step of `seen` to the next."""
        return self._step

    @property
    def span_seconds(self) -> float:
        """Seconds after which `seen` goes round: to keep ages right, read at least as often."""
        return self._step * _SEEN_MODULUS

    def counts(self, wanted: Filter = EVERY) -> dict[int, int]:
        """Return how many flows each backend has, by its handle; one without is left out."""
        totals: Counter[int] = Counter()
        for chunk in self.chunks(wanted):
            found, numbers = np.unique(chunk.handles, return_counts=True)
            totals.update(dict(zip(found.tolist(), numbers.tolist(), strict=True)))
        return dict(totals)

    def entries(
        self, wanted: Filter = EVERY, *, start: int = 0, limit: int | None = None
    ) -> Entries:
        """Return the entries that are wanted, in the order of their places.

        From place ``start`` on, and no more than ``limit``: the place after the last one
        is where to go on.
        """
        return page(Entries, self.chunks(wanted, start), limit)

    def chunks(self, wanted: Filter = EVERY, start: int = 0) -> Iterator[Entries]:
        """Yield the same part by part, which takes little memory however large the table is."""
        if wanted.handles is not None and not wanted.handles:
            return
        for first in range(start // self._chunk * self._chunk, self.capacity, self._chunk):
            found = self._read(first, wanted)
            yield found.only(found.places >= start) if start > first else found

    @property
    def capacity(self) -> int:
        """Flows that there is room for."""
        return self._flows.max_entries * self._ways

    def _read(self, first: int, wanted: Filter) -> Entries:
        """The wanted entries of a chunk."""
        at, sets = first // self._ways, min(_CHUNK_SETS, self._flows.max_entries)
        with (
            self._flows.mmap(at, sets, writable=False) as flows,
            self._tags.mmap(at, sets, writable=False) as tags_of_sets,
        ):
            ways = flows.array["way"].reshape(-1).copy()
            tags = tags_of_sets.array.copy().view(np.uint8).reshape(sets, -1)[:, : self._ways]
        idle = self._ages.read(first, ways["seen"], self._clock.steps())
        places = np.flatnonzero(ways["ref"])
        places = places[self._is_found(ways["ref"][places], tags.reshape(-1)[places])]
        rows = ways[places]
        handles = (rows["ref"] >> _HALF).astype(np.uint32)
        owners = self._backends[handles & self._index_mask]
        services = rows["service"] & np.uint32(SERVICE)
        live = (owners["handle"] == handles) & (owners["service"] == services)
        made = Entries(
            places + first,
            handles,
            services,
            np.ascontiguousarray(rows["saddr"]["word"]).view(np.uint8).reshape(-1, _ADDRESS_BYTES),
            rows["sport"].astype(np.uint16),
            idle[places] * self._step,
            rows["service"] & self._ending != 0,
            rows["service"] & self._opening != 0,
        )
        return made.only(live & self._wanted(made, wanted))

    @staticmethod
    def _is_found(refs: Array, tags: Array) -> Array:
        """Whether a packet would look at these entries at all: the tag is part of the hash."""
        expected = (refs & 0xFFFFFFFF) >> _TAG_SHIFT
        return np.asarray(tags == np.where(expected, expected, 1))

    @staticmethod
    def _wanted(entries: Entries, wanted: Filter) -> Array:
        kept = np.ones(len(entries), bool)
        if wanted.handles is not None:
            kept &= np.isin(entries.handles, np.fromiter(wanted.handles, np.uint32))
        if wanted.clients is not None:
            kept &= within(entries.clients, wanted.clients)
        if wanted.max_idle_seconds is not None:
            kept &= entries.idle_seconds <= wanted.max_idle_seconds
        return kept


def within(clients: Array, network: Network) -> Array:
    """Whether addresses (16 bytes each) are in a network.

    The first twelve bytes tell the families apart: no IPv6 client is in ::/96.
    """
    host = network.max_prefixlen - network.prefixlen
    mask = np.frombuffer((((1 << 128) - 1) >> host << host).to_bytes(16, "big"), np.uint8)
    prefix = np.frombuffer(pack(network.network_address), np.uint8)
    inside = ((clients & mask) == prefix).all(axis=1)
    if network.version == _IPV6:
        inside &= clients[:, :12].any(axis=1)
    return np.asarray(inside)
