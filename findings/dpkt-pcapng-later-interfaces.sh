#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# dpkt 1.9.8 reads a pcapng file by its first interface and its first section only.
#
# pcapng has a time resolution for each interface (if_tsresol), and a byte order for each section; files
# may be put one behind the other. dpkt's pcapng.Reader takes the first interface's resolution for
# the packets of all: what a second one captured in nanoseconds, beside one in microseconds, is dated a thousand times
# too late. At a section of the other byte order it ends, without an error, as if the file ended there.
#
# Seen with dpkt 1.9.8, Python 3.11. Exit code 0: still so.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
python3 -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet --disable-pip-version-check dpkt==1.9.8
"$room/venv/bin/python" - "$room/file" <<'PYTHON'
import struct
import sys

import dpkt

SECONDS = 1_700_000_000
FRAME = bytes(60)


def block(kind, body, order="<"):
    length = struct.pack(order + "I", len(body) + 12)
    return struct.pack(order + "I", kind) + length + body + length


def section(order="<"):
    return block(0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1), order)


def interface(resolution=6, order="<"):
    option = struct.pack(order + "HHB3xHH", 9, 1, resolution, 0, 0)
    return block(1, struct.pack(order + "HHI", 1, 0, 0) + option, order)


def packet(number, time, order="<"):
    head = struct.pack(order + "IIIII", number, time >> 32, time & 0xFFFFFFFF, len(FRAME), len(FRAME))
    return block(6, head + FRAME, order)


def times(data):
    with open(sys.argv[1], "wb") as file:
        file.write(data)
    with open(sys.argv[1], "rb") as file:
        return [time for time, _ in dpkt.pcapng.Reader(file)]


micro, nano = packet(0, SECONDS * 10**6), packet(1, SECONDS * 10**9)
found = times(section() + interface(6) + interface(9) + micro + nano)
print(f"dpkt {dpkt.__version__}: two packets of one moment, {SECONDS} s, by two interfaces: {found}")
assert found == [SECONDS, SECONDS * 1000]
one = section() + interface() + micro
other = section(">") + interface(6, ">") + packet(0, SECONDS * 10**6, ">")
found = times(one + other), times(other + one), times(one + one)
print("packets of two sections, little and big endian, big and little, both little:", [len(f) for f in found])
assert [len(each) for each in found] == [1, 1, 2]
PYTHON
