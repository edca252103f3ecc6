# SPDX-License-Identifier: Apache-2.0
"""The flows of services with ``forwarding: snat``: who is behind which port of ours.

The program writes the table while it is read. Its entries are published by `ref`, which has a
version that every rewriting raises (``struct nat_flow`` of ``bpf/abi/snat.h``): an entry is taken
if `ref` was the same before and after it was copied. One that is rewritten meanwhile is left out,
as are those of backends that are gone.

The program searches for nothing that is old: an entry whose time is over is there until its way or
its port is wanted, and a packet of the flow before that makes it young again. Such an entry is
`expired` here. Its age has 16 bits, of steps of 256 jiffies: 4.7 hours at 1000 jiffies a second.
See :mod:`towpath.datapath.flows.ages` for how more than that is known.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from towpath.datapath.flows.ages import Ages, Clock
from towpath.datapath.flows.columns import Columns, page
from towpath.datapath.flows.flow_table import EVERY, Filter, within
from towpath.kernel.jiffies import per_second

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from towpath.datapath.address import Address
    from towpath.datapath.program.program import LoadedProgram
    from towpath.kernel.bpf.maps import Map
    from towpath.kernel.jiffies import Jiffies

    Array = np.ndarray[Any, Any]

NEW, ESTABLISHED, CLOSING = range(3)
STATES = ("new", "established", "closing")
"""What ``Translations.states`` means: not confirmed by both sides; confirmed; ended by a RST or by
both sides' FIN. A UDP flow is never closing."""

_SEEN_MODULUS = 1 << 16
_CHUNK_SETS = 1024
"""Sets that are read at once: half a MiB, and their heads."""
_UDP = 17
_ADDRESS_BYTES = 16
_MARKS = ("answered", "fin", "rst")


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which translations are wanted; None: whatever they have there."""

    flows: Filter = EVERY
    source: Address | None = None
    """The address of ours that the backend sees."""
    port: int | None = None
    """And the port."""
    expired: bool = False
    """Also those whose time is over."""


ALL = Wanted()


@dataclass(frozen=True, slots=True)
class Translations(Columns):
    """Entries of the table, each field an array with one element for each.

    ``places``: where they are in the table, rising. ``clients`` and ``vips``: 16 bytes in network
    order, an IPv4 address being the last four. ``sources``: the translated source address by its
    number, see :attr:`NatFlows.sources`; ``ports``: the translated source port. ``states``: indexes
    of STATES. ``idle_seconds``: since the last packet of either side. ``remaining_seconds``: until
    the flow has expired if no packet comes, 0 if it has; to a step of 256 jiffies. ``udp``: whether
    it is one of UDP, else of TCP.
    """

    places: Array
    handles: Array
    clients: Array
    client_ports: Array
    vips: Array
    vip_ports: Array
    backend_ports: Array
    sources: Array
    ports: Array
    states: Array
    idle_seconds: Array
    remaining_seconds: Array
    expired: Array
    udp: Array

    ADDRESSES = frozenset({"clients", "vips"})


@dataclass(frozen=True, slots=True)
class Marks:
    """``enum nat_marks``."""

    answered: int
    fin: int
    rst: int

    @classmethod
    def of(cls, program: LoadedProgram) -> Self:
        """Return a program's."""
        names = {name: f"NAT_{name.upper()}" for name in _MARKS}
        return cls(**{each: program.constant("nat_marks", name) for each, name in names.items()})

    def states(self, client: Array, backend: Array, udp: Array) -> Array:
        """Return indexes of STATES, as ``nat_allowed`` of ``bpf/snat/table.h`` decides."""
        closing = ((client | backend) & self.rst) | (client & backend & self.fin)
        answered = client & self.answered
        return np.where((closing != 0) & ~udp, CLOSING, np.where(answered, ESTABLISHED, NEW))


def allowed_steps(program: LoadedProgram) -> Array:
    """Return how long a program keeps entries of each state, in steps: first TCP's, then UDP's."""
    told = program.constants
    times = (
        ("nat_tcp_new", "nat_tcp_open", "nat_tcp_closing"),
        ("nat_udp_new", "nat_udp_open", "nat_udp_open"),
    )
    return np.array([[told[name] for name in each] for each in times])


class NatFlows:
    """``nat_heads`` and ``nat_flows`` of ``bpf/snat/maps.h``, read when asked, and never written.

    ``backends`` is an array of ``struct backend``; ``index_bits`` says how much of a handle is its
    index. ``sources``: the addresses that there are, by their number; without any the table is
    empty. ``allowed``: steps that an entry of each state (columns, as STATES) is kept, first of
    TCP, then of UDP. ``shift``: how many low bits of jiffies a step lacks; ``jiffies`` tells the
    time (32 bits), ``hz`` how fast it goes. For any thread.
    """

    def __init__(
        self,
        heads: Map,
        flows: Map,
        backends: Array,
        *,
        index_bits: int,
        sources: Mapping[int, Address],
        marks: Marks,
        allowed: Array,
        shift: int,
        jiffies: Callable[[], int],
        hz: int,
    ) -> None:
        self._heads = heads
        self._flows = flows
        self._backends = backends
        self._index_mask = (1 << index_bits) - 1
        self.sources = dict(sources)
        self._marks = marks
        self._allowed = allowed
        self._step = (1 << shift) / hz
        self._clock = Clock(jiffies, shift)
        self._ways: int = flows.value_dtype["way"].shape[0]
        self._chunk = _CHUNK_SETS * self._ways
        self._ages = Ages(self.capacity, self._chunk)

    @classmethod
    def of(cls, program: LoadedProgram, jiffies: Jiffies) -> Self:
        """Return the table of a program, for as long as that is open."""
        return cls(
            program.maps["nat_heads"],
            program.maps["nat_flows"],
            program.rows("backends"),
            index_bits=program.constant("handle_bits", "HANDLE_INDEX_BITS"),
            sources={
                number: address
                for number, address in enumerate(program.nat_addresses)
                if address != IPv4Address(0)
            },
            marks=Marks.of(program),
            allowed=allowed_steps(program),
            shift=program.constant("nat_limits", "NAT_SEEN_SHIFT"),
            jiffies=jiffies.now,
            hz=per_second(),
        )

    @property
    def capacity(self) -> int:
        """Flows that there is room for; 0 if there is no address to translate to."""
        return self._flows.max_entries * self._ways if self.sources else 0

    @property
    def resolution_seconds(self) -> float:
        """Seconds from one step of `seen` to the next."""
        return self._step

    @property
    def span_seconds(self) -> float:
        """Seconds after which `seen` goes round: to keep ages right, read at least as often."""
        return self._step * _SEEN_MODULUS

    def backend_of(self, handle: int) -> bytes:
        """The address of a backend that is there: 16 bytes, as `Translations` has them."""
        return bytes(self._backends["addr"][handle & self._index_mask].tobytes())

    def counts(self, wanted: Wanted = ALL) -> Counter[int]:
        """Return how many flows each backend has, by its handle. KernelError."""
        totals: Counter[int] = Counter()
        for chunk in self.chunks(wanted):
            totals.update(_by_handle(chunk.handles))
        return totals

    def going_on(self, handles: Collection[int], idle: float, ended: float) -> Counter[int]:
        """Return how many flows each handle has that were seen in the last ``idle`` seconds.

        Of those that both sides or a reset have ended, that were seen in ``ended`` seconds; of UDP
        those whose time is not over. Ages are to a step. KernelError.
        """
        totals: Counter[int] = Counter()
        wanted = Wanted(Filter(handles, max_idle_seconds=idle + self._step), expired=True)
        for chunk in self.chunks(wanted):
            on = (chunk.states != CLOSING) | (chunk.idle_seconds <= min(idle, ended) + self._step)
            on &= ~(chunk.udp & chunk.expired)
            totals.update(_by_handle(chunk.handles[on]))
        return totals

    def entries(
        self, wanted: Wanted = ALL, *, start: int = 0, limit: int | None = None
    ) -> Translations:
        """Return the entries that are wanted, in the order of their places.

        From place ``start`` on, and no more than ``limit``: the place after the last one is where
        to go on. KernelError.
        """
        return page(Translations, self.chunks(wanted, start), limit)

    def chunks(self, wanted: Wanted = ALL, start: int = 0) -> Iterator[Translations]:
        """Yield the same part by part, which takes little memory however large the table is."""
        if wanted.flows.handles is not None and not wanted.flows.handles:
            return
        for first in range(start // self._chunk * self._chunk, self.capacity, self._chunk):
            found = self._read(first, wanted)
            yield found.only(found.places >= start) if start > first else found

    def _read(self, first: int, wanted: Wanted) -> Translations:
        """The wanted entries of a chunk."""
        places, rows, life = self._copy(first // self._ways)
        idle = self._ages.read(first, life["seen"], self._clock.steps())
        life, idle = life[places], idle[places].astype(np.int64)
        udp = rows["protocol"] == _UDP
        states = self._marks.states(life["client"], life["backend"], udp)
        left = self._allowed_for(rows, udp, states) - idle
        made = Translations(
            places + first,
            rows["handle"],
            _octets(rows["client"]),
            rows["client_port"].astype(np.uint16),
            _octets(rows["vip"]),
            rows["vip_port"].astype(np.uint16),
            rows["backend_port"].astype(np.uint16),
            rows["source"],
            rows["port"].astype(np.uint16),
            states,
            idle * self._step,
            left.clip(0) * self._step,
            left < 0,
            udp,
        )
        owners = self._backends["handle"][made.handles & self._index_mask]
        return made.only((owners == made.handles) & self._wanted(made, wanted))

    def _allowed_for(self, rows: Array, udp: Array, states: Array) -> Array:
        """Steps that entries are kept, as ``nat_allowed`` of ``bpf/snat/table.h`` decides."""
        own, usual = rows["timeout"].astype(np.int64), self._allowed[udp.astype(np.intp), states]
        shorter = np.where(states == NEW, np.minimum(usual, own), own)
        return np.asarray(np.where(udp & (own != 0), shorter, usual))

    def _copy(self, at: int) -> tuple[Array, Array, Array]:
        """The places in a chunk of entries that are there, these entries, and the life of all.

        Without those that were written meanwhile. Relies on loads staying in order, as the program
        does where it reads an entry.
        """
        sets = min(_CHUNK_SETS, self._flows.max_entries)
        with (
            self._flows.mmap(at, sets, writable=False) as flows,
            self._heads.mmap(at, sets, writable=False) as heads,
        ):
            before = flows.array["way"]["ref"].copy().reshape(-1)
            # Of a table that has room most places are free: copying all takes longer than all else.
            places = np.flatnonzero(before)
            rows = flows.array["way"].reshape(-1)[places]
            life = heads.array["life"].copy()
            after = flows.array["way"].reshape(-1)["ref"][places]
            whole = (rows["ref"] == before[places]) & (after == before[places])
        return places[whole], rows[whole], life.reshape(-1)

    def _wanted(self, made: Translations, wanted: Wanted) -> Array:
        kept = np.ones(len(made), bool) if wanted.expired else ~made.expired
        flows = wanted.flows
        if flows.handles is not None:
            kept &= np.isin(made.handles, np.fromiter(flows.handles, np.uint32))
        if flows.clients is not None:
            kept &= within(made.clients, flows.clients)
        if flows.max_idle_seconds is not None:
            kept &= made.idle_seconds <= flows.max_idle_seconds
        if wanted.source is not None:
            numbers = [n for n, address in self.sources.items() if address == wanted.source]
            kept &= np.isin(made.sources, np.array(numbers, np.uint8))
        if wanted.port is not None:
            kept &= made.ports == wanted.port
        return kept


def _octets(addresses: Array) -> Array:
    """``struct address`` as 16 bytes each."""
    return np.ascontiguousarray(addresses["word"]).view(np.uint8).reshape(-1, _ADDRESS_BYTES)


def _by_handle(handles: Array) -> dict[int, int]:
    found, numbers = np.unique(handles, return_counts=True)
    return dict(zip(found.tolist(), numbers.tolist(), strict=True))
