# SPDX-License-Identifier: Apache-2.0
"""Writes the rules of one address family of a wildcard table.

``native/wildcard*.c`` does the writing, ``bpf/abi/wildcard.h`` says what the arrays
hold; this is the same for Python. The arrays may be any memory. Where they are a
kernel's maps, packets read them while they are written, and what they may still be
reading is used again only after a wait, which the caller has to supply.
"""

from __future__ import annotations

import ctypes
from array import array
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from towpath.errors import Error
from towpath.native.library import library

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Array = np.ndarray[Any, Any]

_NUMBER_BYTES = 8
_RANDOM_BYTES = 48


class Status(IntEnum):
    """What the compiled functions return, ``enum status`` of ``native/wildcard.h``."""

    DONE = 0
    PENDING = 1
    FULL = -1
    NO_SPACE = -2
    TOO_COMPLEX = -3
    NO_SUCH_RULE = -4
    NO_MEMORY = -5
    NO_DEVICE = -6
    DAMAGED = -7


class WriterError(Error):
    """A change was refused. ``done``: how many of the rules it was for are changed."""

    def __init__(self, status: Status, done: int = 0) -> None:
        super().__init__(status.name)
        self.status = status
        self.done = done


@dataclass(frozen=True, slots=True)
class Report:
    """How full a family is, ``struct report`` of ``native/wildcard/report.c``."""

    rules: int
    limit: int
    """Rules that it promises to hold."""
    tuples: int
    runs: int
    longest_run: int
    slots: int
    """Slots that tuples have."""
    retired: int
    """Things that packets may still be reading."""
    unused: int
    """Rules' worth of memory that is free."""


_REPORT = np.dtype([(name, np.uint32) for name in Report.__dataclass_fields__])


class FamilyWriter:
    """One address family of a table.

    ``words``: 64-bit words of a key, 2 or 5. ``index``, ``slots``, ``rules``: the three
    arrays, contiguous and writable, ``struct wildcard_index`` once, any multiple of 8
    slots, rules of that family. What they hold is taken over. They are kept until
    ``close``. ``random``: 48 bytes, for arrays that hold nothing yet; whoever can guess
    them can make rules that share a slot. ``wait_for_readers`` returns when all packets
    are through that are looked up at the call; on arrays that nobody else reads it has
    nothing to do.

    One thread at a time. MemoryError: there is none. WriterError: the arrays hold no
    table (DAMAGED). ValueError: not so many random bytes.
    """

    def __init__(
        self,
        words: int,
        index: Array,
        slots: Array,
        rules: Array,
        random: bytes,
        wait_for_readers: Callable[[], None],
    ) -> None:
        if len(random) != _RANDOM_BYTES:
            raise ValueError(f"{len(random)} random bytes; allowed: {_RANDOM_BYTES}")
        self._arrays: tuple[Array, ...] = index, slots, rules
        self._dtype = rules.dtype
        self._insert = library().towpath_wildcard_insert
        self._delete = library().towpath_wildcard_delete
        self._replace = library().towpath_wildcard_replace
        self._has = library().towpath_wildcard_has
        self._wait = wait_for_readers
        self._done = ctypes.c_uint32()
        self._done_here = ctypes.byref(self._done)
        # What the last writer left behind may still be read.
        wait_for_readers()
        status = ctypes.c_int()
        self._family: int | None = library().towpath_wildcard_open(
            words,
            index.ctypes.data,
            slots.ctypes.data,
            len(slots),
            rules.ctypes.data,
            len(rules),
            random,
            ctypes.byref(status),
        )
        if self._family is None:
            raise _error(Status(status.value))

    # ---- changes ---------------------------------------------------------------------------------

    def insert(self, rules: Array | bytes) -> None:
        """Insert rules, in order. WriterError: those before the first refused are in."""
        raw = rules if isinstance(rules, bytes) else np.ascontiguousarray(rules).tobytes()
        count = len(raw) // self._dtype.itemsize
        if count > 1 and library().towpath_wildcard_fit(self._family, raw, count):
            self.reclaim()
        self._many(self._insert, raw, self._dtype.itemsize)

    def delete(self, numbers: Sequence[int]) -> None:
        """Delete rules by number, in order. WriterError as for ``insert``."""
        self._many(self._delete, array("Q", numbers).tobytes(), _NUMBER_BYTES)

    def _many(self, function: Any, raw: bytes, size: int) -> None:
        count = len(raw) // size
        status = function(self._family, raw, count, self._done_here)
        if status == Status.DONE:
            return
        address, done = np.frombuffer(raw, np.uint8).ctypes.data, self._done.value

        def go_on() -> int:
            nonlocal done
            status = function(self._family, address + done * size, count - done, self._done_here)
            done += self._done.value
            return int(status)

        self._finally_done(go_on, lambda: done, status)

    def replace(self, rules: Sequence[bytes]) -> None:
        """Put rules in the places of those with their numbers and lower versions.

        Waits for readers, once for all, unless each stays in its slot. WriterError: none
        that comes after the first refused has been replaced.
        """
        pending = False
        try:
            for rule in rules:
                pending |= self._finally_done(partial(self._replace, self._family, rule)) > 0
        finally:
            if pending:
                self.reclaim()
                self._finally_done(lambda: library().towpath_wildcard_finish(self._family))

    def set_value(self, number: int, value: int) -> None:
        """Give a rule another value, in one store."""
        self._finally_done(
            lambda: library().towpath_wildcard_set_value(self._family, number, value)
        )

    def device(self, ifindex: int) -> int:
        """The number that stands for a device in keys, a new one if it has none.

        It is held, also when no rule names it, until ``release``.
        """
        return self._finally_done(lambda: library().towpath_wildcard_device(self._family, ifindex))

    def release(self, number: int) -> None:
        """Hold a device's number no longer: rules that name it do that."""
        library().towpath_wildcard_release(self._family, number)

    # ---- what there is ---------------------------------------------------------------------------

    def __contains__(self, number: int) -> bool:
        return bool(self._has(self._family, number))

    def get(self, number: int) -> Any:
        """A copy of one rule, a record. WriterError: there is none of that number."""
        record = np.zeros(1, self._dtype)
        self._finally_done(
            lambda: library().towpath_wildcard_get(self._family, number, record.ctypes.data)
        )
        return record[0]

    def rules(self) -> Array:
        """A copy of all rules, the one of highest rank first."""
        records: Array = np.zeros(self.report().rules, self._dtype)
        library().towpath_wildcard_list(self._family, records.ctypes.data)
        return records[np.argsort(records["head"]["rank"])[::-1]]

    def report(self) -> Report:
        """How full it is."""
        record = np.zeros(1, _REPORT)
        library().towpath_wildcard_report(self._family, record.ctypes.data)
        return Report(*record[0].tolist())

    # ---- room ------------------------------------------------------------------------------------

    def reclaim(self) -> None:
        """Wait for readers, and free what they may have been reading."""
        self._wait()
        library().towpath_wildcard_reclaim(self._family)

    def _finally_done(
        self,
        attempt: Callable[[], int],
        done: Callable[[], int] = lambda: 0,
        status: int | None = None,
    ) -> int:
        """Try, and make room and try again: by waiting, then by moving rules together.

        ``status`` is that of a first attempt, if there was one. Returns the last one's, or
        whatever it returns that isn't negative.
        """
        if status is None:
            status = attempt()
        while status == Status.NO_SPACE:
            before = done()
            self.reclaim()
            status = attempt()
            if status == Status.NO_SPACE and done() == before:
                library().towpath_wildcard_compact(self._family)
                self.reclaim()
                status = attempt()
                if status == Status.NO_SPACE and done() == before:
                    break
        if status < 0:
            raise _error(Status(status), done())
        return status

    def close(self) -> None:
        """Let go of the arrays, which keep the rules. Twice is once."""
        library().towpath_wildcard_close(self._family)
        self._family = None
        self._arrays = ()


def _error(status: Status, done: int = 0) -> Exception:
    if status == Status.NO_MEMORY:
        return MemoryError("no memory for the directory of wildcard rules")
    return WriterError(status, done)
