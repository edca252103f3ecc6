# SPDX-License-Identifier: Apache-2.0
"""Translations of one table copied to another, of another shape or size, while packets use both.

Of the old table an entry is taken whole or not at all. Its halves, the record and what the head
of its set has of it, are read between two readings of `ref`, which has a version: if that is the
same, nobody wrote the entry meanwhile. Then everything that follows from its fields must be what
is stored, tags and hashes (both tables have the same seeds). Whatever doesn't hold together is
left behind, and the client's next packet makes it anew.

Into the new table it is put by a program, under the lock of its set, which user space can't
take (``bpf/snat/copy.bpf.c``). Where a set is full those stay that are least dispensable: flows
that both sides have confirmed before those that they haven't, these before those that have come
to their end; of each kind what was seen last.

Entries whose time is over, or soon will be, stay behind: while both tables are in use another flow
may get such a port in the old one, and its answers would go to the wrong client by the new one.
What was copied while packets still used the old table may all the same have ended there since, or
have begun anew with another port or backend. So the next copying takes such entries out of the new
table again, unless the new program has rewritten them itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from towpath.closeable import Closeable
from towpath.datapath.flows.nat_table import ESTABLISHED, Marks, allowed_steps
from towpath.datapath.maps.records import converted
from towpath.datapath.migration.written import ages_of
from towpath.datapath.snat.places import NatSpace
from towpath.kernel.bpf.object import BpfObject

if TYPE_CHECKING:
    from collections.abc import Mapping

    from towpath.datapath.maps.pinned import PinnedMaps
    from towpath.datapath.migration.flows import Heir
    from towpath.datapath.program.program import LoadedProgram

    Array = np.ndarray[Any, Any]

_OBJECT = "snat_copy"
_LOW = np.uint64(0xFFFFFFFF)
_UDP = 17
_DISPENSABLE = np.array([1, 0, 2])
"""By state: NEW, ESTABLISHED, CLOSING."""
_SOON = 10
"""Steps, of 0.3 to 2.6 seconds: longer than tables are moved for."""
_TIMES = ("nat_tcp_open", "nat_tcp_new", "nat_tcp_closing", "nat_udp_open", "nat_udp_new")


@dataclass(frozen=True, slots=True)
class Entries:
    """Entries of the old table, a row for each: its place there, and both its halves."""

    places: Array
    refs: Array
    """As they are in the old table."""
    rows: Array
    """As the new table has them, but for handles."""
    life: Array
    forward: Array
    reply: Array

    def only(self, which: Array) -> Entries:
        """Return some of them."""
        return Entries(
            self.places[which],
            self.refs[which],
            self.rows[which],
            self.life[which],
            self.forward[which],
            self.reply[which],
        )


@dataclass(frozen=True, slots=True)
class _Copied:
    """What has been put into the new table: of which entries, and the program's answers."""

    places: Array
    refs: Array
    records: Array

    def only(self, which: Array) -> _Copied:
        return _Copied(self.places[which], self.refs[which], self.records[which])

    def and_also(self, more: _Copied) -> _Copied:
        return _Copied(
            np.concatenate([self.places, more.places]),
            np.concatenate([self.refs, more.refs]),
            np.concatenate([self.records, more.records]),
        )

    def note(self, places: Array, records: Array) -> None:
        """Ask in ``records``, of the entries at ``places``, for what these were given before.

        ``places`` rises.
        """
        at = np.searchsorted(places, self.places)
        known = np.flatnonzero(at < len(places))
        known = known[places[at[known]] == self.places[known]]
        records["flow"]["ref"][at[known]] = self.records["flow"]["ref"][known]
        records["way"][at[known]] = self.records["way"][known]


class NatCopy:
    """Copies translations of ``old`` to ``new``; ``heirs`` says what becomes of old handles.

    Only if both translate to the same addresses and ports.
    """

    def __init__(self, old: PinnedMaps, new: LoadedProgram, heirs: Mapping[int, Heir]) -> None:
        self._old, self._new = old, new
        self._heirs = heirs
        self._copied: _Copied | None = None

    def run(self, now: int) -> int:
        """Copy what the new table doesn't have yet; returns how many entries were written.

        ``now``: jiffies, 32 bits. KernelError: no permission to load a program.
        """
        if not self._alike():
            return 0
        with _Writer(self._new) as writer:
            entries, refs = read(self._old, self._new.rows("nat_flows")["way"].dtype)
            self._take_back(refs, writer)
            return self._enter(entries, now, writer)

    def _alike(self) -> bool:
        if not {"nat_states", "nat_flows", "nat_heads"} <= self._old.pinned.keys():
            return False
        was = self._old.rows("nat_states")[0]["config"]
        return bool(was) and was == self._new.rows("nat_states")[0]["config"]

    def _take_back(self, refs: Array, writer: _Writer) -> None:
        """Give up what was copied from entries that are others now, or gone."""
        if self._copied is not None:
            same = refs[self._copied.places] == self._copied.refs
            writer.run("nat_leave", self._copied.only(~same).records)
            self._copied = self._copied.only(same)

    def _enter(self, entries: Entries, now: int, writer: _Writer) -> int:
        known = np.fromiter(self._heirs, np.uint32, len(self._heirs))
        entries = entries.only(np.isin(entries.rows["handle"], known))
        records, holds = self._records(entries, writer.dtype)
        ages, states, left = self._lives(records, now)
        which = np.flatnonzero(holds & (left >= np.where(states == ESTABLISHED, 0, _SOON)))
        # The least dispensable first.
        which = which[np.lexsort((ages[which], _DISPENSABLE[states[which]]))]
        done = writer.run("nat_enter", records[which])
        made = done["result"] == self._new.constant("nat_copied", "NAT_COPY_MADE")
        done, was = done[made], entries.only(which[made])
        copied = _Copied(was.places, was.refs, done)
        self._copied = self._copied.and_also(copied) if self._copied else copied
        return len(done)

    def _lives(self, records: Array, now: int) -> tuple[Array, Array, Array]:
        """How old entries are, their states, and how long they still have; in steps of `seen`."""
        life, udp = records["life"], records["flow"]["protocol"] == _UDP
        states = Marks.of(self._new).states(life["client"], life["backend"], udp)
        steps = now >> self._new.constant("nat_limits", "NAT_SEEN_SHIFT")
        ages = ages_of(life["seen"], steps)
        return ages, states, allowed_steps(self._new)[udp.astype(np.intp), states] - ages

    def _records(self, entries: Entries, dtype: np.dtype[Any]) -> tuple[Array, Array]:
        """Entries as the program wants them, and whether each one holds together."""
        heirs = [self._heirs[each] for each in entries.rows["handle"].tolist()]
        place = NatSpace.of(self._new).places(entries.rows, [each.backend for each in heirs])
        records = np.zeros(len(heirs), dtype)
        records["flow"] = converted(entries.rows, dtype["flow"])
        records["flow"]["handle"] = [each.handle for each in heirs]
        records["flow"]["ref"] = place.refs
        if self._copied is not None:
            self._copied.note(entries.places, records)
        records["life"] = converted(entries.life, dtype["life"])
        records["set"], records["home"], records["tries"] = place.sets, place.homes, place.tries
        records["forward_tag"], records["reply_tag"] = place.forward, place.reply
        holds = place.known & (place.refs == entries.refs & _LOW)
        holds &= (place.forward == entries.forward) & (place.reply == entries.reply)
        return records, holds


class _Writer(Closeable):
    """``bpf/snat/copy.bpf.c``, loaded over a program's table.

    A context manager, which unloads it.
    """

    def __init__(self, new: LoadedProgram) -> None:
        self._most = new.constant("nat_copy_limits", "NAT_COPIES")
        self._object = BpfObject.packaged(_OBJECT)
        try:
            new.tables.use(self._object)
            for name in _TIMES:
                self._object.rodata[name] = new.constants[name]
            self._object.load()
        except BaseException:
            self.close()
            raise
        self.dtype = self._object.btf.dtype("nat_copy")

    def run(self, name: str, records: Array) -> Array:
        """Have a program do what it does with each record; returns its answers."""
        program = self._object.programs[name]
        answers = [
            program.test_run(records[at : at + self._most].tobytes()).data
            for at in range(0, len(records), self._most)
        ]
        return np.frombuffer(b"".join(answers), self.dtype)

    def close(self) -> None:
        self._object.close()


def read(old: PinnedMaps, dtype: np.dtype[Any]) -> tuple[Entries, Array]:
    """Return the entries of a table that nobody wrote while they were read, as ``dtype``.

    And all places' `ref` at the end. Relies on loads staying in order, as the program does
    where it reads an entry.
    """
    flows, heads = old.pinned["nat_flows"], old.pinned["nat_heads"]
    with flows.mmap(writable=False) as mapped, heads.mmap(writable=False) as mapped_heads:
        before = mapped.array["way"]["ref"].copy()
        head = mapped_heads.array.copy()
        ways = mapped.array["way"].copy()
        after = mapped.array["way"]["ref"].copy()
    whole = (before != 0) & (ways["ref"] == before) & (after == before)
    sets, at = np.nonzero(whole)
    found = ways[sets, at]
    rows = converted(found, dtype)
    if "backend_port" not in (found.dtype.names or ()):
        # Of a version whose backends had the VIP's port.
        rows["backend_port"] = rows["vip_port"]
    tags = (_tags(head[side], sets, at) for side in ("forward", "reply"))
    places = sets * ways.shape[1] + at
    return Entries(places, found["ref"], rows, head["life"][sets, at], *tags), after.reshape(-1)


def _tags(words: Array, sets: Array, ways: Array) -> Array:
    """The bytes of tags that entries have in their sets' words."""
    shift = ways.astype(np.uint64) * np.uint64(8)
    return np.asarray((words[sets] >> shift).astype(np.uint8))
