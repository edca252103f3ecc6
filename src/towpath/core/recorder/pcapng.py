# SPDX-License-Identifier: Apache-2.0
"""The blocks of a pcapng file that aren't packets (draft-ietf-opsawg-pcapng).

All in this machine's byte order, as the format allows.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from towpath.model.kinds import Address

SECTION, INTERFACE, NAMES, STATISTICS, PACKET = 0x0A0D0D0A, 1, 4, 5, 6
ETHERNET = 1
_MAGIC = 0x1A2B3C4D
_LENGTH_UNKNOWN = 0xFFFFFFFFFFFFFFFF
_NANOSECONDS = 9
_MAX_TEXT = 65535
_MIN_BLOCK = 12  # bytes of a block without a body
_MAX_NAME = 255  # bytes of an address' name that Wireshark has room for
_NAME_RECORDS = {4: 1, 6: 2}
_END_OF_NAMES = bytes(4)

COMMENT = 1
_HARDWARE, _OS, _APPLICATION = 2, 3, 4
_NAME, _DESCRIPTION, _RESOLUTION, _FILTER = 2, 3, 9, 11
_START, _END, _RECEIVED, _DROPPED, _ACCEPTED, _DELIVERED = 2, 3, 4, 5, 6, 8
_FILTER_TEXT = b"\0"  # a filter as libpcap has it, or whoever wrote the file


@dataclass(frozen=True, slots=True)
class Interface:
    """What the file says of a device and direction."""

    name: str
    description: str
    snaplen: int
    filter: str = ""


@dataclass(frozen=True, slots=True)
class Statistics:
    """What was counted of an interface by the end. Times are nanoseconds since 1970."""

    interface: int
    start: int
    end: int
    received: int
    """Packets that the capture was for."""
    dropped: int
    """Those that found no room."""


def block(kind: int, body: bytes) -> bytes:
    """Return a block of a body whose length is a multiple of four."""
    length = struct.pack("=I", len(body) + _MIN_BLOCK)
    return struct.pack("=I", kind) + length + body + length


def options(pairs: Iterable[tuple[int, bytes]]) -> bytes:
    """Return options, each padded, and their end; nothing at all of none."""
    made = b"".join(
        struct.pack("=HH", code, len(value)) + value + bytes(-len(value) % 4)
        for code, value in pairs
        if value
    )
    return made + bytes(4) if made else b""


def text(value: str) -> bytes:
    """Return what an option can have of a text."""
    return value.encode(errors="replace")[:_MAX_TEXT]


def section_header(*, system: str, application: str, comment: str = "") -> bytes:
    """Return a Section Header Block: what made the file, and where."""
    body = struct.pack("=IHHQ", _MAGIC, 1, 0, _LENGTH_UNKNOWN)
    return block(
        SECTION,
        body
        + options(
            ((COMMENT, text(comment)), (_OS, text(system)), (_APPLICATION, text(application)))
        ),
    )


def interface_block(interface: Interface) -> bytes:
    """Return an Interface Description Block. Time is in nanoseconds."""
    return block(
        INTERFACE,
        struct.pack("=HHI", ETHERNET, 0, interface.snaplen)
        + options(
            (
                (_NAME, text(interface.name)),
                (_DESCRIPTION, text(interface.description)),
                (_RESOLUTION, bytes((_NANOSECONDS,))),
                (_FILTER, _FILTER_TEXT + text(interface.filter) if interface.filter else b""),
            )
        ),
    )


def _time(nanoseconds: int) -> bytes:
    return struct.pack("=II", nanoseconds >> 32, nanoseconds & 0xFFFFFFFF)


def statistics_block(found: Statistics) -> bytes:
    """Return an Interface Statistics Block."""
    delivered = found.received - found.dropped
    return block(
        STATISTICS,
        struct.pack("=I", found.interface)
        + _time(found.end)
        + options(
            (
                (_START, _time(found.start)),
                (_END, _time(found.end)),
                (_RECEIVED, struct.pack("=Q", found.received)),
                (_DROPPED, struct.pack("=Q", found.dropped)),
                (_ACCEPTED, struct.pack("=Q", found.received)),
                (_DELIVERED, struct.pack("=Q", delivered)),
            )
        ),
    )


def names_block(names: Mapping[Address, Sequence[str]]) -> bytes:
    """Return a Name Resolution Block: what addresses are called from here on."""
    records = []
    for address, called in names.items():
        body = address.packed + b"".join(_name(each) for each in called)
        head = struct.pack("=HH", _NAME_RECORDS[address.version], len(body))
        records.append(head + body + bytes(-len(body) % 4))
    return block(NAMES, b"".join(records) + _END_OF_NAMES)


def _name(name: str) -> bytes:
    return name.encode(errors="replace").replace(b"\0", b"")[:_MAX_NAME] + b"\0"


class Section:
    """The section that a capture writes: its interfaces, numbered as they come, and names."""

    def __init__(self, header: bytes) -> None:
        self._pending = [header]
        self.interfaces: list[Interface] = []
        self._names: dict[Address, tuple[str, ...]] = {}
        self._new_names: dict[Address, tuple[str, ...]] = {}

    def add(self, interface: Interface) -> int:
        """Describe one more interface; returns its number."""
        self.interfaces.append(interface)
        self._pending.append(interface_block(interface))
        return len(self.interfaces) - 1

    def name(self, names: Mapping[Address, Sequence[str]]) -> None:
        """Say what addresses are called, of those of which it hasn't been said so yet."""
        new = {
            address: tuple(called)
            for address, called in names.items()
            if called and self._names.get(address) != tuple(called)
        }
        if new:
            self._names |= new
            self._new_names |= new

    def pending(self) -> bytes:
        """Return blocks that were not returned before, to be written before any packet.

        Names stand behind an interface: editcap and mergecap write no copy of a file of which the
        first block after its header is any other (seen with 4.0).
        """
        if self._new_names and self.interfaces:
            self._pending.append(names_block(self._new_names))
            self._new_names = {}
        made = b"".join(self._pending)
        self._pending.clear()
        return made


def whole(data: bytes | memoryview) -> int:
    """Return how many bytes of blocks are whole: what a file ends with that was cut off."""
    at = 0
    while at + _MIN_BLOCK <= len(data):
        length: int = struct.unpack_from("=I", data, at + 4)[0]
        if length < _MIN_BLOCK or at + length > len(data):
            break
        at += length
    return at
