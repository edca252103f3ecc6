# SPDX-License-Identifier: Apache-2.0
"""A capture's file in the hands of others: tools that copy it, and packages that read it."""

from __future__ import annotations

import struct
import subprocess
from typing import TYPE_CHECKING, Any

import dpkt
import pcapng
import pytest
from scapy.utils import PcapNgReader
from tests.unit.native.test_records import CLOCK, Sent, reading

from towpath.core.recorder.pcapng import Statistics, statistics_block

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ETHERNET = bytes.fromhex("0200000000020200000000010800")
PACKETS = 6
LOST = 3


def sent() -> list[Sent]:
    """Packets that came in and were sent on, of every length modulo four and every action."""
    return [
        Sent(
            ETHERNET + bytes(20 + number),
            packet=number // 2,
            direction=number % 2,
            verdict=number,
            action=number % 5,
            time=1000 * number,
        )
        for number in range(PACKETS)
    ]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file as a capture makes it, statistics and all."""
    made = reading()
    for each in sent():
        made.ring.put(each.record())
    blocks = made.section.pending() + made.take()
    blocks += b"".join(
        statistics_block(Statistics(number, CLOCK, CLOCK + 9, PACKETS // 2 + LOST, LOST))
        for number in range(2)
    )
    path = tmp_path / "file.pcapng"
    path.write_bytes(blocks)
    return path


def shown(path: Path) -> list[list[str]]:
    """What tshark says of each packet."""
    names = ("time_epoch", "interface_name", "len", "comment", "packet_id", "p2p_dir")
    fields = [word for name in names for word in ("-e", f"frame.{name}")]
    command = ["tshark", "-r", str(path), "-T", "fields", *fields]
    made = subprocess.run(command, capture_output=True, text=True, check=True)
    return [line.split("\t") for line in made.stdout.splitlines()]


def by_tshark(file: Path, copy: Path) -> None:
    """Write a copy."""
    command = ["tshark", "-r", str(file), "-w", str(copy)]
    subprocess.run(command, capture_output=True, check=True)


def by_editcap(file: Path, copy: Path) -> None:
    """The same by another tool."""
    subprocess.run(["editcap", str(file), str(copy)], check=True)


def by_mergecap(file: Path, copy: Path) -> None:
    """The same by the one that could merge it with others."""
    subprocess.run(["mergecap", "-w", str(copy), str(file)], check=True)


COPIES = {"tshark": by_tshark, "editcap": by_editcap, "mergecap": by_mergecap}


# ---- Copies --------------------------------------------------------------------------------------


@pytest.mark.parametrize("tool", COPIES)
def test_a_copy_says_what_the_file_says(file: Path, tool: str) -> None:
    """Each packet's time, interface, comment, number and direction; copied once and once more."""
    before = shown(file)
    assert len(before) == PACKETS
    assert {each[3].split()[-1] for each in before} >= {"xdp=drop", "xdp=pass", "xdp=tx"}
    for number in range(2):
        copy = file.with_name(f"{number}.pcapng")
        COPIES[tool](file, copy)
        assert shown(copy) == before
        file = copy


def test_two_files_become_one(file: Path) -> None:
    """By mergecap, in the order of time."""
    merged = file.with_name("merged.pcapng")
    subprocess.run(["mergecap", "-w", str(merged), str(file), str(file)], check=True)
    assert len(shown(merged)) == 2 * PACKETS


# ---- Readers packaged for Python -----------------------------------------------------------------

Said = tuple[bytes, int, str | None]
"""A frame, nanoseconds since 1970, and its comment if the package tells."""


def by_scapy(path: Path) -> list[Said]:
    """As scapy reads it."""
    with PcapNgReader(str(path)) as packets:
        return [
            (bytes(each.original), round(each.time * 10**9), each.comment.decode())
            for each in packets
        ]


def by_dpkt(path: Path) -> list[Said]:
    """As dpkt does, which tells times as floats and no options."""
    with path.open("rb") as file:
        return [(data, round(time * 10**9), None) for time, data in dpkt.pcapng.Reader(file)]


def by_pcapng(path: Path) -> list[Said]:
    """As python-pcapng does, which looks at every block and option when it is asked."""
    with path.open("rb") as file:
        blocks = list(pcapng.FileScanner(file))
    for each in blocks:
        options: Any = getattr(each, "options", {})
        assert all(options[name] is not None for name in options)
    return [
        (each.packet_data, round(each.timestamp * 10**9), each.options["opt_comment"])
        for each in blocks
        if isinstance(each, pcapng.blocks.EnhancedPacket)
    ]


@pytest.mark.filterwarnings("ignore:Field type should not be:DeprecationWarning")
@pytest.mark.parametrize("read", [by_scapy, by_dpkt, by_pcapng])
def test_packages_read_every_packet(file: Path, read: Callable[[Path], list[Said]]) -> None:
    """Frames byte for byte, times as far as floats go, and comments."""
    found = read(file)
    assert [data for data, _, _ in found] == [each.data for each in sent()]
    for (_, time, comment), each in zip(found, sent(), strict=True):
        assert abs(time - CLOCK - each.time) < 1000
        assert comment is None or comment.startswith(f"flow={each.flow:016x} outcome=1/2/")


def test_every_block_is_one_of_the_formats(file: Path) -> None:
    """A section, interfaces, packets, statistics: nothing that a reader must skip."""
    data, kinds, at = file.read_bytes(), [], 0
    while at < len(data):
        kind, length = struct.unpack_from("=II", data, at)
        kinds.append(kind)
        at += length
    assert set(kinds) == {0x0A0D0D0A, 1, 5, 6}
