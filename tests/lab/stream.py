# SPDX-License-Identifier: Apache-2.0
"""Flows that never stop, seen from their clients' and their backends' side at once.

A process of its own: ``python -m tests.lab.stream DEVICE VIP PORT``. It sends on the device, whose
other end is the load balancer's, and takes what comes back encapsulated. Old flows go round; with
every ten of them a new one comes. At a line on its standard input it waits for what is still on its
way, prints what it has seen, and ends.
"""

from __future__ import annotations

import json
import select
import struct
import sys
import time
from collections import defaultdict
from ipaddress import ip_address
from socket import AF_PACKET, SO_RCVBUF, SOCK_RAW, SOL_SOCKET, htons, socket

ETH_P_IP = 0x0800
IPIP = 4
OLD_FLOWS = 200
PAUSE = 0.0001
QUIET = 30.0
INNER = 14 + 20
PAYLOAD = INNER + 20 + 20


def template(vip: str, port: int) -> bytearray:
    """A TCP segment from 198.51.100.7, of which source port and sequence are filled in later."""
    link = bytes.fromhex("020000000002020000000001") + struct.pack("!H", ETH_P_IP)
    header = struct.pack("!BBHHHBBH", 0x45, 0, 48, 0, 0x4000, 64, 6, 0)
    addresses = ip_address("198.51.100.7").packed + ip_address(vip).packed
    total = sum(struct.unpack("!10H", header + addresses))
    total = (total & 0xFFFF) + (total >> 16)
    checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    header = header[:10] + struct.pack("!H", checksum)
    segment = struct.pack("!HHIIHHHH", 0, port, 0, 0, 0x5010, 512, 0, 0) + bytes(8)
    return bytearray(link + header + addresses + segment)


class Stream:
    """What was sent, and what came of it."""

    def __init__(self, device: str, vip: str, port: int) -> None:
        self.frame = template(vip, port)
        self.out = socket(AF_PACKET, SOCK_RAW)
        self.out.bind((device, 0))
        self.back = socket(AF_PACKET, SOCK_RAW, htons(ETH_P_IP))
        self.back.setsockopt(SOL_SOCKET, SO_RCVBUF, 64 << 20)
        self.back.bind((device, ETH_P_IP))
        self.back.setblocking(False)  # noqa: FBT003 - its only way
        self.sent = 0
        self.waiting: set[int] = set()
        self.twice = 0
        self.backends: defaultdict[int, set[str]] = defaultdict(set)

    def send(self, flow: int) -> None:
        """One packet of a flow, which is its client's port."""
        self.frame[34:36] = flow.to_bytes(2, "big")
        self.frame[54:62] = self.sent.to_bytes(8, "big")
        self.waiting.add(self.sent)
        self.out.send(self.frame)
        self.sent += 1

    def take(self) -> None:
        """Whatever has come back."""
        while True:
            try:
                frame = self.back.recv(2048)
            except BlockingIOError:
                return
            if frame[23] != IPIP:
                continue
            number = int.from_bytes(frame[PAYLOAD : PAYLOAD + 8], "big")
            flow = int.from_bytes(frame[INNER + 20 : INNER + 22], "big")
            if number in self.waiting:
                self.waiting.remove(number)
            else:
                self.twice += 1
            self.backends[flow].add(str(ip_address(frame[30:34])))

    def report(self) -> None:
        """After the last of what is on its way."""
        until = time.monotonic() + QUIET
        while self.waiting and time.monotonic() < until:
            self.take()
        moved = {flow: sorted(each) for flow, each in self.backends.items() if len(each) > 1}
        found = {
            "sent": self.sent,
            "lost": len(self.waiting),
            "twice": self.twice,
            "flows": len(self.backends),
            "moved": moved,
        }
        print(json.dumps(found), flush=True)  # noqa: T201 - this is its answer


def main(device: str, vip: str, port: str) -> None:
    """Send until told to end; say "known" when every old flow has a backend."""
    stream = Stream(device, vip, int(port))
    old, new = range(1000, 1000 + OLD_FLOWS), 2000
    known = False
    while True:
        for flow in old:
            stream.send(flow)
            if flow % 10 == 0:
                new += 1
            # The newest ones again and again, so that these are old soon.
            if flow % 2 == 0:
                stream.send(max(2000, new - flow % 100))
            stream.take()
            time.sleep(PAUSE)
        if not known and stream.backends.keys() >= set(old):
            known = True
            print("known", flush=True)  # noqa: T201 - as above
        if select.select([sys.stdin], [], [], 0)[0]:
            stream.report()
            return


if __name__ == "__main__":
    main(*sys.argv[1:])
