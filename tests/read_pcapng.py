# SPDX-License-Identifier: Apache-2.0
"""Reads pcapng files, from the format's description and nothing of Towpath.

https://www.ietf.org/archive/id/draft-ietf-opsawg-pcapng-03.html. Anything that isn't as written
there is an error, also what Wireshark would overlook.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from ipaddress import ip_address

SECTION, INTERFACE, NAMES, STATISTICS, PACKET = 0x0A0D0D0A, 1, 4, 5, 6
XDP = ("aborted", "drop", "pass", "tx", "redirect")


@dataclass
class Interface:
    """A device and direction."""

    name: str
    filter: str
    snaplen: int
    received: int | None = None
    dropped: int | None = None
    start: int = 0
    end: int = 0


@dataclass
class Packet:
    """A frame, and what is said of it."""

    interface: Interface
    time: int
    length: int
    data: bytes
    comment: str
    inbound: bool
    packet_id: int

    @property
    def action(self) -> int:
        """What XDP did, as the kernel numbers it."""
        return XDP.index(self.said["xdp"])

    @property
    def said(self) -> dict[str, str]:
        """The comment's words."""
        return dict(word.split("=", 1) for word in self.comment.split())


@dataclass
class Capture:
    """A whole file."""

    comment: str = ""
    interfaces: list[Interface] = field(default_factory=list)
    packets: list[Packet] = field(default_factory=list)
    names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """What addresses are called in the end."""
    named: list[tuple[int, str, tuple[str, ...]]] = field(default_factory=list)
    """How many packets there were before an address was called so."""


def read(data: bytes) -> Capture:
    """Read a file of one section."""
    found = Capture()
    at = 0
    while at < len(data):
        kind, length = struct.unpack_from("<II", data, at)
        assert length % 4 == 0
        assert length >= 12
        assert at + length <= len(data), "the last block is cut off"
        assert struct.unpack_from("<I", data, at + length - 4)[0] == length
        body = data[at + 8 : at + length - 4]
        if at == 0:
            assert kind == SECTION
        _BLOCKS[kind](found, body)
        at += length
    return found


def _section(found: Capture, body: bytes) -> None:
    magic, major, minor, length = struct.unpack_from("<IHHq", body)
    assert (magic, major, minor, length) == (0x1A2B3C4D, 1, 0, -1)
    assert not found.interfaces
    found.comment = _options(body[16:]).get(1, b"").decode()


def _interface(found: Capture, body: bytes) -> None:
    link, reserved, snaplen = struct.unpack_from("<HHI", body)
    assert (link, reserved) == (1, 0)
    options = _options(body[8:])
    assert options[9] == b"\x09", "time is in nanoseconds"
    text = options.get(11, b"\0")
    assert text[0] == 0
    found.interfaces.append(Interface(options[2].decode(), text[1:].decode(), snaplen))


def _names(found: Capture, body: bytes) -> None:
    at = 0
    while True:
        kind, length = struct.unpack_from("<HH", body, at)
        value = body[at + 4 : at + 4 + length]
        assert len(value) == length
        padding = -length % 4
        at += 4 + length
        assert body[at : at + padding] == bytes(padding)
        at += padding
        if kind == 0:
            assert length == 0
            break
        size = {1: 4, 2: 16}[kind]
        *names, end = value[size:].split(b"\0")
        assert names
        assert all(names)
        assert not end, "the last name has no end"
        address = str(ip_address(value[:size]))
        found.names[address] = tuple(each.decode() for each in names)
        found.named.append((len(found.packets), address, found.names[address]))
    assert _options(body[at:]) == {}


def _statistics(found: Capture, body: bytes) -> None:
    options = _options(body[12:])
    interface = found.interfaces[struct.unpack_from("<I", body)[0]]
    (interface.received,) = struct.unpack("<Q", options[4])
    (interface.dropped,) = struct.unpack("<Q", options[5])
    for name, code in (("start", 2), ("end", 3)):
        high, low = struct.unpack("<II", options[code])
        setattr(interface, name, high << 32 | low)


def _packet(found: Capture, body: bytes) -> None:
    number, high, low, captured, length = struct.unpack_from("<5I", body)
    data = body[20 : 20 + captured]
    padding = -captured % 4
    assert body[20 + captured : 20 + captured + padding] == bytes(padding)
    options = _options(body[20 + captured + padding :])
    assert set(options) == {1, 2, 5}
    (flags,) = struct.unpack("<I", options[2])
    assert flags in (1, 2)
    (packet_id,) = struct.unpack("<Q", options[5])
    found.packets.append(
        Packet(
            found.interfaces[number],
            high << 32 | low,
            length,
            data,
            options[1].decode(),
            flags == 1,
            packet_id,
        )
    )


def _options(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    at = 0
    while at < len(data):
        code, length = struct.unpack_from("<HH", data, at)
        value = data[at + 4 : at + 4 + length]
        assert len(value) == length
        at += 4 + length
        padding = -length % 4
        assert data[at : at + padding] == bytes(padding)
        at += padding
        if code == 0:
            assert length == 0
            assert at == len(data), "something follows the end of options"
            return found
        assert code not in found
        found[code] = value
    assert not found, "options have no end"
    return found


_BLOCKS = {
    SECTION: _section,
    INTERFACE: _interface,
    NAMES: _names,
    STATISTICS: _statistics,
    PACKET: _packet,
}
