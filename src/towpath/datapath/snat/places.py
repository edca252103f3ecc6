# SPDX-License-Identifier: Apache-2.0
"""Where a translation belongs and what tells it: the arithmetic of ``bpf/snat/table.h``.

For many entries at once, as columns. What is worked out from an entry's fields is also what
proves them to belong together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from towpath.core.lb.hash import hash_flows, step_all
from towpath.datapath.address import FAMILY_V4, FAMILY_V6, pack

if TYPE_CHECKING:
    from collections.abc import Iterable

    from towpath.datapath.address import Address
    from towpath.datapath.program.program import LoadedProgram

    Array = np.ndarray[Any, Any]

_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_TAG_SHIFT = np.uint64(56)
_PROTOCOL_SHIFT, _ADDRESS_SHIFT = np.uint64(16), np.uint64(24)
_KEY_BYTES = 40
"""Of a ``struct flow_key``."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where entries belong, a column for each field.

    ``sets``: the set of each. ``homes``: the first set in which its client's packets look for
    it, ``tries``: how many candidates further it is. ``forward``, ``reply``: its tags in the
    head of its set, ``refs``: the low half of its `ref`. ``known``: False for an entry that no
    packet could find, of which the other columns mean nothing.
    """

    sets: Array
    homes: Array
    tries: Array
    forward: Array
    reply: Array
    refs: Array
    known: Array


@dataclass(frozen=True, slots=True)
class NatSpace:
    """The addresses and ports that are translated to, and a table's seeds and size.

    ``sources``: the last words of the addresses by their number, ``per_family`` numbers to a
    family, of which the first ``used`` are (IPv4, IPv6). ``sets`` is a power of two.
    """

    sources: Array
    used: tuple[int, int]
    per_family: int
    first_port: int
    ports: int
    tries: int
    sets: int
    hash_seed: int
    flow_seed: int

    @classmethod
    def of(cls, program: LoadedProgram) -> Self:
        """Return those of a program and its table."""
        told = program.constants
        words = [int(each) & int(_LOW) for each in program.nat_addresses]
        return cls(
            np.array(words, np.uint64),
            (told["nat_sources4"], told["nat_sources6"]),
            program.constant("nat_limits", "NAT_SOURCES"),
            told["nat_port_first"],
            told["nat_ports"],
            program.constant("nat_limits", "NAT_TRIES"),
            program.maps["nat_flows"].max_entries,
            told["hash_seed"],
            told["flow_seed"],
        )

    def places(self, rows: Array, backends: Iterable[Address]) -> Place:
        """Return where entries (``struct nat_flow``) belong, each with its backend's address."""
        v6 = rows["source"] >= self.per_family
        keyed = step_all(self._hashes(rows, v6), np.full(len(rows), self.flow_seed, np.uint64))
        first, tries, found = self._candidates(rows, v6, keyed)
        port, protocol = rows["port"].astype(np.uint64), rows["protocol"].astype(np.uint64)
        key = self._key(rows["source"], port, protocol)
        source, home_port = first // np.uint64(self.ports), first % np.uint64(self.ports)
        source += np.where(v6, self.per_family, 0).astype(np.uint64)
        home = self._key(source, home_port + np.uint64(self.first_port), protocol)
        reply = _reply_hashes(key, rows, v6, backends)
        mask = np.uint64(self.sets - 1)
        return Place(
            key & mask, home & mask, tries, _tags(keyed), _tags(reply), reply & _LOW, found
        )

    def _hashes(self, rows: Array, v6: Array) -> Array:
        """The hash of each client's flow."""
        keys = np.zeros((len(rows), _KEY_BYTES), np.uint8)
        keys[:, :16] = _octets(rows["client"])
        keys[:, 16:32] = _octets(rows["vip"])
        keys[:, 32:34] = _big_endian(rows["client_port"])
        keys[:, 34:36] = _big_endian(rows["vip_port"])
        keys[:, 36] = rows["protocol"]
        keys[:, 37] = np.where(v6, FAMILY_V6, FAMILY_V4)
        hashes = np.zeros(len(rows), np.uint64)
        for is_v6 in (False, True):
            which = v6 == is_v6
            hashes[which] = hash_flows(keys[which], self.hash_seed, is_v6=is_v6)
        return hashes

    def _candidates(self, rows: Array, v6: Array, keyed: Array) -> tuple[Array, Array, Array]:
        """Each flow's first candidate, how many further its entry is, and whether it is one."""
        used = np.where(v6, self.used[1], self.used[0]).astype(np.uint64)
        every = used * np.uint64(self.ports)
        source = rows["source"].astype(np.uint64) % np.uint64(self.per_family)
        offset = rows["port"].astype(np.int64) - self.first_port
        there = (source < used) & (offset >= 0) & (offset < self.ports)
        number = source * np.uint64(self.ports) + offset.clip(0).astype(np.uint64)
        every = every.clip(1)  # of a family without an address nothing is there
        first = (keyed & _LOW) * every >> _HALF
        wide = np.uint64(1) + ((keyed >> _HALF) * (every - np.uint64(1)) >> _HALF)
        stride = np.where(every > self.tries, wide, np.uint64(1))
        steps = np.arange(self.tries, dtype=np.uint64)
        candidates = (first[:, np.newaxis] + steps * stride[:, np.newaxis]) % every[:, np.newaxis]
        same = candidates == number[:, np.newaxis]
        return first, same.argmax(axis=1).astype(np.uint8), there & same.any(axis=1)

    def _key(self, sources: Array, ports: Array, protocols: Array) -> Array:
        """What chooses the set: address and port of ours, and protocol."""
        words = self.sources[sources.astype(np.intp) % len(self.sources)]
        word = ports | protocols << _PROTOCOL_SHIFT | words << _ADDRESS_SHIFT
        return step_all(np.full(len(ports), self.flow_seed, np.uint64), word)


def _reply_hashes(key: Array, rows: Array, v6: Array, backends: Iterable[Address]) -> Array:
    """The hash of what each flow's backend sends."""
    packed = b"".join(pack(each) for each in backends)
    halves = np.frombuffer(packed, "<u8").reshape(-1, 2).astype(np.uint64)
    state = np.where(v6, step_all(key, halves[:, 0]), key)
    ports = _big_endian(rows["backend_port"]).view("<u2").reshape(-1).astype(np.uint64)
    return step_all(step_all(state, halves[:, 1]), ports)


def _tags(hashes: Array) -> Array:
    high = (hashes >> _TAG_SHIFT).astype(np.uint8)
    return np.where(high, high, 1).astype(np.uint8)


def _octets(addresses: Array) -> Array:
    """``struct address`` as 16 bytes each."""
    return np.ascontiguousarray(addresses["word"]).view(np.uint8).reshape(-1, 16)


def _big_endian(ports: Array) -> Array:
    """Two bytes each, in network order."""
    return np.ascontiguousarray(ports.astype(">u2")).view(np.uint8).reshape(-1, 2)
