# SPDX-License-Identifier: Apache-2.0
"""A ring of records becomes blocks of a file, whatever way the records lie in it."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.read_pcapng import Capture, read

from towpath.core.recorder.pcapng import (
    Interface,
    Section,
    Statistics,
    section_header,
    statistics_block,
    whole,
)
from towpath.native.records import DamagedError, Names, Outcome, RecordReader

SIZE = 1 << 14
BUSY, DISCARDED = 1 << 31, 1 << 30
RECORD = struct.Struct("<QQQIIIIIBBBx")  # struct record of bpf/abi/recorder.h
CLOCK = 1_700_000_000_000_000_000


@dataclass(frozen=True)
class Sent:
    """What a program puts into the ring."""

    data: bytes
    cut: int = 0
    packet: int = 1
    flow: int = 0x0123456789ABCDEF
    ifindex: int = 3
    direction: int = 0
    service: int = 1
    handle: int = 2
    verdict: int = 0
    action: int = 3
    time: int = 5

    def record(self) -> bytes:
        """As it lies there, without the ring's own header."""
        head = (self.time, self.packet, self.flow, self.ifindex, len(self.data) + self.cut)
        rest = (len(self.data), self.service, self.handle, self.verdict, self.action)
        return RECORD.pack(*head, *rest, self.direction) + self.data


class FakeRing:
    """The memory of a ring, as the kernel writes it (kernel/bpf/ringbuf.c)."""

    def __init__(self, start: int = 0) -> None:
        self.consumer = np.full(1, start, np.uint64)
        self.producer = np.full(1, start, np.uint64)
        self.data = np.zeros(2 * SIZE, np.uint8)

    def put(self, data: bytes, flags: int = 0) -> None:
        """Write one record; it must have room."""
        at = int(self.producer[0])
        entry = struct.pack("<II", len(data) | flags, 0) + data
        entry += bytes(-len(entry) % 8)
        assert at + len(entry) - int(self.consumer[0]) <= SIZE
        for number, byte in enumerate(entry):
            # The second half is the first one again.
            self.data[(at + number) % SIZE] = self.data[(at + number) % SIZE + SIZE] = byte
        self.producer[0] = at + len(entry)


class Called(Names):
    """Calls everything by its numbers, and remembers what was asked."""

    def __init__(self, section: Section) -> None:
        self.section = section
        self.asked: list[object] = []
        self.suffix = ""

    def interface(self, ifindex: int, direction: int) -> int:
        """By index and direction."""
        self.asked.append((ifindex, direction))
        return self.section.add(Interface(f"{ifindex}-{direction}", "", 100))

    def label(self, outcome: Outcome) -> str:
        """By all its numbers."""
        self.asked.append(outcome)
        return f"outcome={outcome.service}/{outcome.handle}/{outcome.verdict}{self.suffix}"


@dataclass
class Reading:
    """A reader, and all that it needs."""

    ring: FakeRing
    reader: RecordReader
    section: Section
    names: Called

    def take(self, size: int = 1 << 16) -> bytes:
        """Read once."""
        out = bytearray(size)
        return bytes(out[: self.reader.read(out, self.section, self.names)])

    def all(self, size: int = 1 << 16) -> Capture:
        """Read a whole file."""
        made = self.section.pending()
        while more := self.take(size):
            made += more
        return read(made)


def reading(start: int = 0, **limits: int) -> Reading:
    """A reader of a ring whose positions begin anywhere."""
    ring = FakeRing(start)
    reader = RecordReader(ring.consumer, ring.producer, ring.data, clock=CLOCK, cpus=2, **limits)
    section = Section(section_header(system="s", application="a", comment="c"))
    return Reading(ring, reader, section, Called(section))


frames = st.binary(min_size=0, max_size=300)
sent = st.builds(
    Sent,
    data=frames,
    cut=st.integers(0, 2000),
    packet=st.integers(0, 1 << 40),
    flow=st.integers(0, (1 << 64) - 1),
    ifindex=st.integers(1, 5),
    direction=st.integers(0, 1),
    service=st.integers(0, 40),
    handle=st.integers(0, (1 << 32) - 1),
    verdict=st.integers(0, 31),
    action=st.integers(0, 4),
    time=st.integers(0, 1 << 60),
)


@given(st.lists(sent, max_size=20), st.integers(0, 4 * SIZE // 8), st.integers(5000, 9000))
def test_every_record_is_a_packet(records: list[Sent], start: int, room: int) -> None:
    """In their order, with all that they say, also across the ring's end and in small pieces."""
    made = reading(start * 8)
    for each in records:
        made.ring.put(each.record())
    found = made.all(room)
    assert [each.data for each in found.packets] == [each.data for each in records]
    for packet, record in zip(found.packets, records, strict=True):
        assert packet.length == len(record.data) + record.cut
        assert packet.time == (record.time + CLOCK) % (1 << 64)
        assert packet.packet_id == record.packet
        assert packet.inbound == (record.direction == 0)
        assert packet.action == record.action
        assert packet.interface.name == f"{record.ifindex}-{record.direction}"
        assert packet.said["flow"] == f"{record.flow:016x}"
        assert packet.said["outcome"] == f"{record.service}/{record.handle}/{record.verdict}"
    assert made.ring.consumer[0] == made.ring.producer[0]
    assert made.reader.records == len(records)
    assert made.reader.bytes == sum(len(each.data) for each in records)
    assert len(made.names.asked) == len(set(made.names.asked)), "each name is asked for once"


def test_what_is_discarded_or_not_yet_written_is_left_out() -> None:
    """A record that is still being written holds up those behind it; a discarded one is skipped."""
    made = reading()
    made.ring.put(Sent(b"one").record())
    made.ring.put(b"x" * 100, DISCARDED)
    made.ring.put(Sent(b"two").record())
    at = int(made.ring.producer[0])
    made.ring.put(Sent(b"three").record(), BUSY)
    made.ring.put(Sent(b"four").record())
    file = made.section.pending() + made.take()
    assert [each.data for each in read(file).packets] == [b"one", b"two"]
    for half in (0, SIZE):
        made.ring.data[at + half + 3] &= 0x7F
    assert [each.data for each in read(file + made.take()).packets][2:] == [b"three", b"four"]


@pytest.mark.parametrize("data", [b"", b"x" * 47, Sent(b"").record()[:32] + b"\1" + bytes(15)])
def test_what_is_no_record_is_refused(data: bytes) -> None:
    """Rather than written into the file."""
    made = reading()
    made.ring.put(Sent(b"one").record())
    made.ring.put(data)
    with pytest.raises(DamagedError):
        made.take()


def test_limits_leave_no_packet_half() -> None:
    """Both records of the last packet are taken, on whichever CPU, and none of the next."""
    made = reading(packets=2)
    for cpu, packet in ((0, 1), (1, 1), (0, 2)):
        number = cpu << 48 | packet
        made.ring.put(Sent(b"in", packet=number).record())
        if packet == 1 and cpu == 0:
            assert len(made.take()) > 0
            assert not made.reader.ended
        made.ring.put(Sent(b"out", packet=number, direction=1).record())
    made.take()
    assert made.reader.ended
    assert (made.reader.packets, made.reader.records) == (2, 4)
    by_size = reading(size=5)
    for packet in range(4):
        by_size.ring.put(Sent(b"abc", packet=packet).record())
    assert [each.data for each in by_size.all().packets] == [b"abc", b"abc"]


def test_the_next_packet_says_how_many_were_lost() -> None:
    """The first that came into the ring after it was known; once; the sum of what wasn't said."""
    made = reading()
    made.ring.put(Sent(b"before").record())
    made.reader.lose(3)
    made.reader.lose(39)
    for data in (b"after", b"then"):
        made.ring.put(Sent(data).record())
    assert [each.said.get("lost") for each in made.all().packets] == [None, "42", None]
    most = (1 << 64) - 1
    made.reader.lose(most)
    made.ring.put(Sent(b"last").record())
    assert f" lost={most}".encode() in made.take()


def test_a_loss_waits_until_its_packet_has_room() -> None:
    """And is told then."""
    made = reading()
    made.reader.lose(7)
    made.ring.put(Sent(b"x" * 1000).record())
    file = made.section.pending() + made.take(4096 + 700)
    assert read(file).packets == []
    (found,) = read(file + made.take()).packets
    assert found.said["lost"] == "7"


def test_names_can_be_forgotten() -> None:
    """Then they are asked for anew; many of them are told apart."""
    made = reading()
    for number in range(300):
        made.ring.put(Sent(b"", service=number, handle=number * 7, packet=number).record())
        made.take()
    assert len(made.names.asked) == 301
    made.reader.forget_labels()
    made.names.suffix = "-new"
    made.ring.put(Sent(b"", service=5, handle=35).record())
    assert b"outcome=5/35/0-new" in made.take()


def test_a_text_that_is_too_long_is_cut() -> None:
    """To what a comment may have here."""
    made = reading()
    made.names.suffix = "x" * 500
    made.ring.put(Sent(b"data").record())
    (found,) = made.all().packets
    assert len(found.comment) == len("flow=0123456789abcdef " + " xdp=tx") + 255
    assert found.data == b"data"


def test_statistics_and_what_is_whole() -> None:
    """An interface's counts; and how much of a file that was cut off is whole blocks."""
    section = Section(section_header(system="s", application="a"))
    section.add(Interface("eth0-in", "d", 64, "tcp"))
    file = section.pending() + statistics_block(Statistics(0, 1, 2, 10, 3))
    (interface,) = read(file).interfaces
    assert (interface.received, interface.dropped, interface.filter) == (10, 3, "tcp")
    ends = [0]
    while ends[-1] < len(file):
        ends.append(ends[-1] + struct.unpack_from("<I", file, ends[-1] + 4)[0])
    for begin, end in pairwise(ends):
        for cut in range(begin, end):
            assert whole(file[:cut]) == begin
    assert whole(file) == len(file)
