#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# scapy 2.8.0 and python-pcapng 2.1.1 leave out the offset of an interface's times.
#
# An interface of a pcapng file may have an offset in seconds (if_tsoffset) that is to be added to all of its times, such
# as the moment at which a device's own clock began. Both packages date packets without it, by decades too early; neither
# says that there was one. dpkt 1.9.8, gopacket 1.6.0 and Wireshark 4.0 add it.
#
# Seen with scapy 2.8.0, python-pcapng 2.1.1, dpkt 1.9.8, Python 3.11. Exit code 0: still so.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
python3 -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet --disable-pip-version-check \
    scapy==2.8.0 python-pcapng==2.1.1 dpkt==1.9.8
"$room/venv/bin/python" - "$room/file" <<'PYTHON'
import logging
import struct
import sys

logging.disable(logging.CRITICAL)
import dpkt
import pcapng
from scapy.utils import PcapNgReader

OFFSET, TIME = 1_700_000_000, 5  # seconds
FRAME = bytes(12) + b"\x88\xb5" + bytes(46)


def block(kind, body):
    length = struct.pack("<I", len(body) + 12)
    return struct.pack("<I", kind) + length + body + length


section = block(0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1))
interface = block(1, struct.pack("<HHIHHqHH", 1, 0, 0, 14, 8, OFFSET, 0, 0))
packet = block(6, struct.pack("<IIIII", 0, 0, TIME * 10**6, len(FRAME), len(FRAME)) + FRAME)
with open(sys.argv[1], "wb") as file:
    file.write(section + interface + packet)

with open(sys.argv[1], "rb") as file:
    by_dpkt = [time for time, _ in dpkt.pcapng.Reader(file)]
with open(sys.argv[1], "rb") as file:
    blocks = list(pcapng.FileScanner(file))
by_pcapng = [each.timestamp for each in blocks if isinstance(each, pcapng.blocks.EnhancedPacket)]
by_scapy = [float(each.time) for each in PcapNgReader(sys.argv[1])]
print(f"a packet at {TIME} s by a clock that began at {OFFSET}:")
print(f"dpkt {by_dpkt}, python-pcapng {by_pcapng}, scapy {by_scapy}")
assert by_dpkt == [OFFSET + TIME]
assert by_pcapng == by_scapy == [TIME]
PYTHON
