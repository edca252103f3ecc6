# SPDX-License-Identifier: Apache-2.0
"""Takes records out of a BPF ring buffer, as blocks of a pcapng file.

``native/record*.c`` does it, many records in a call; ``bpf/abi/recorder.h`` says what a record
is. Names of devices, services and backends it asks for, once each.
"""

from __future__ import annotations

import ctypes
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NamedTuple

from towpath.errors import Error
from towpath.native.library import library

if TYPE_CHECKING:
    import numpy as np

    from towpath.core.recorder.pcapng import Section

    Array = np.ndarray[Any, Any]

UNLIMITED = (1 << 64) - 1
_MAX_LABEL = 255
_PENDING_ROOM = 4096  # what a description of an interface, or names, take at most
_NANOSECONDS = 1 << 64


class Status(IntEnum):
    """Why a call ended, ``enum status`` of ``native/recorder/reader.c``."""

    EMPTY = 0
    ROOM = 1
    INTERFACE = 2
    LABEL = 3
    DAMAGED = 4


class Outcome(NamedTuple):
    """What became of a packet: index of the service, handle of the backend, verdict."""

    service: int
    handle: int
    verdict: int


class DamagedError(Error):
    """What is in the ring are no records."""


class _Report(ctypes.Structure):
    """``struct report``."""

    _fields_ = (
        *((name, ctypes.c_uint64) for name in ("written", "packets", "records", "bytes")),
        *(
            (name, ctypes.c_uint32)
            for name in ("status", "ended", "ifindex", "direction", "service", "handle", "verdict")
        ),
        ("_reserved", ctypes.c_uint32),
    )


class Names:
    """What the numbers in records are called. To be derived from."""

    def interface(self, ifindex: int, direction: int) -> int:
        """Return the file's number of a device and direction, after making it one."""
        raise NotImplementedError

    def label(self, outcome: Outcome) -> str:
        """Return what to say of packets that this became of."""
        raise NotImplementedError


class RecordReader:
    """The consumer of one ring.

    ``consumer`` and ``producer``: the two positions, arrays of one 64-bit word; ``data``: the
    ring's bytes, twice one behind the other. ``clock``: nanoseconds from CLOCK_MONOTONIC to
    1970. ``cpus``: possible ones. Packets beyond ``packets``, and those that come when
    ``size`` bytes of frames have been taken, are passed over.

    One thread at a time. MemoryError.
    """

    def __init__(
        self,
        consumer: Array,
        producer: Array,
        data: Array,
        *,
        clock: int,
        cpus: int,
        packets: int = UNLIMITED,
        size: int = UNLIMITED,
    ) -> None:
        self._memory: tuple[Array, ...] | None = (consumer, producer, data)
        self._library = library()
        self._reader = self._library.towpath_record_open(
            consumer.ctypes.data,
            producer.ctypes.data,
            data.ctypes.data,
            len(data) // 2,
            clock % _NANOSECONDS,
            cpus,
        )
        if not self._reader:
            raise MemoryError("no memory for a reader of records")
        self._library.towpath_record_limit(self._reader, packets, size)
        self._report = _Report()

    @property
    def packets(self) -> int:
        """Packets that were taken."""
        return int(self._report.packets)

    @property
    def records(self) -> int:
        """Blocks that were made of them."""
        return int(self._report.records)

    @property
    def bytes(self) -> int:
        """Bytes of frames in these."""
        return int(self._report.bytes)

    @property
    def ended(self) -> bool:
        """Whether as much has been taken as was wished for."""
        return bool(self._report.ended)

    def read(self, out: bytearray, section: Section, names: Names) -> int:
        """Fill ``out`` with blocks from its beginning; return how many bytes.

        Less than its size: all that the ring had, but for what has no room. Interfaces and names
        that the section gets meanwhile are put before the blocks that need them. DamagedError.
        """
        room = (ctypes.c_ubyte * len(out)).from_buffer(out)
        address, written = ctypes.addressof(room), 0
        report = self._report
        while len(out) - written >= _PENDING_ROOM:
            self._library.towpath_record_read(
                self._reader,
                address + written,
                len(out) - written - _PENDING_ROOM,
                ctypes.byref(report),
            )
            written += report.written
            if report.status == Status.LABEL:
                self._learn_label(Outcome(report.service, report.handle, report.verdict), names)
                written += _put(section.pending(), address + written)
            elif report.status == Status.INTERFACE:
                number = names.interface(report.ifindex, report.direction)
                self._check(
                    self._library.towpath_record_interface(
                        self._reader, report.ifindex, report.direction, number
                    )
                )
                written += _put(section.pending(), address + written)
            elif report.status == Status.DAMAGED:
                raise DamagedError("the ring holds something that is no record")
            else:
                break
        return written

    def trim(self, keep: int) -> int:
        """Give up the oldest records until ``keep`` bytes of the ring are taken.

        Returns how many are taken then: more if what is next is still being written.
        """
        return int(self._library.towpath_record_trim(self._reader, keep))

    def _learn_label(self, outcome: Outcome, names: Names) -> None:
        text = (names.label(outcome).encode()[:_MAX_LABEL]) or b"?"
        self._check(self._library.towpath_record_label(self._reader, *outcome, text, len(text)))

    def change_clock(self, since: int, offset: int) -> None:
        """Have what was captured from ``since`` on (CLOCK_MONOTONIC) dated by another offset.

        ``offset``: nanoseconds from CLOCK_MONOTONIC to 1970, as `clock` at the beginning.
        """
        self._library.towpath_record_clock(self._reader, since, offset % _NANOSECONDS)

    def lose(self, count: int) -> None:
        """Have the next packet say that so many more records found no room before it."""
        self._library.towpath_record_lost(self._reader, count)

    def forget_labels(self) -> None:
        """Ask anew what became of packets is called."""
        self._library.towpath_record_forget(self._reader)

    def count(self, interface: int) -> int:
        """Return how many records there have been of an interface of the file."""
        return int(self._library.towpath_record_count(self._reader, interface))

    def _check(self, result: int) -> None:
        if result:
            raise MemoryError("no memory for names of records")

    def close(self) -> None:
        """Give the reader's memory back, and let go of the ring's. Twice is once.

        What it has counted can be asked for still, but for `count`.
        """
        if self._reader:
            self._library.towpath_record_close(self._reader)
            self._reader = None
            self._memory = None


def _put(block: bytes, address: int) -> int:
    """Copy a block to an address; returns its length."""
    ctypes.memmove(address, block, len(block))
    return len(block)
