#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# scapy 2.8.0 takes the interfaces of a pcapng file's second section for further ones of the first.
#
# Interfaces are numbered anew in each section, so that files can be put one behind the other. Scapy's PcapNgReader goes
# on with the list that it has: a packet of the second section's interface 0 gets the name, and the time resolution, of the first
# section's. Of a capture in microseconds followed by one in nanoseconds, packets of the second are dated a thousand times
# too late, and on the wrong device.
#
# Seen with scapy 2.8.0, Python 3.11. Exit code 0: still so.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
python3 -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet --disable-pip-version-check scapy==2.8.0
"$room/venv/bin/python" - "$room/file" <<'PYTHON'
import logging
import struct
import sys

logging.disable(logging.CRITICAL)
from scapy.utils import PcapNgReader

SECONDS = 1_700_000_000
FRAME = bytes(12) + b"\x88\xb5" + bytes(46)


def block(kind, body):
    length = struct.pack("<I", len(body) + 12)
    return struct.pack("<I", kind) + length + body + length


def capture(name, resolution):
    time = SECONDS * 10**resolution
    section = block(0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1))
    options = struct.pack("<HH4sHHB3xHH", 2, 4, name, 9, 1, resolution, 0, 0)
    interface = block(1, struct.pack("<HHI", 1, 0, 0) + options)
    head = struct.pack("<IIIII", 0, time >> 32, time & 0xFFFFFFFF, len(FRAME), len(FRAME))
    return section + interface + block(6, head + FRAME)


with open(sys.argv[1], "wb") as file:
    file.write(capture(b"eth0", 6) + capture(b"eth1", 9))
found = [(each.sniffed_on, float(each.time)) for each in PcapNgReader(sys.argv[1])]
print(f"one packet on eth0, one on eth1, both at {SECONDS} s: {found}")
assert found == [("eth0", SECONDS), ("eth0", SECONDS * 1000)]
PYTHON
