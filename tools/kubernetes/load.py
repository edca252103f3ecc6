# SPDX-License-Identifier: Apache-2.0
"""Many small servers, and clients that count what fails.

    load.py serve PORTS ADDRESS...        one on each; "down ADDRESS" and "up ADDRESS" on stdin,
                                          "report -": when connections were asked of each address
    load.py ask ADDRESS PORT SECONDS RATE a connection for each request, and some that are kept

What clients got is said as JSON. Standard library only: it is run by whatever Python there is.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import socket
import struct
import sys
import time
from collections import Counter
from contextlib import closing, suppress

TIMEOUT = 20.0
KEPT = 32
"""Connections that are kept, and asked on ten times a second."""


MOST_TOLD = 20
"""Failures, and slow requests, that are told one by one."""
SLOW = 1.0
"""Seconds."""


class _Asked:
    """When connections were asked of which address: SYNs, as they reach this namespace."""

    # Of a packet of TCP that is no later fragment, the flags SYN and ACK: SYN alone.
    _FILTER = (
        (0x30, 0, 0, 9),  # the protocol
        (0x15, 0, 7, socket.IPPROTO_TCP),
        (0x28, 0, 0, 6),  # the fragment's offset
        (0x45, 5, 0, 0x1FFF),
        (0xB1, 0, 0, 0),  # the header's length
        (0x50, 0, 0, 13),  # flags
        (0x54, 0, 0, 0x12),
        (0x15, 0, 1, 0x02),
        (0x06, 0, 0, 0xFFFF),
        (0x06, 0, 0, 0),
    )
    _ATTACH_FILTER, _ETH_P_IP, _OUTGOING, _SO_TIMESTAMPNS = 26, 0x0800, 4, 35
    _TIME = struct.Struct("@ll")

    def __init__(self) -> None:
        self.at: dict[str, list[tuple[float, int, str, float]]] = {}
        """By address: when, the client's port and address, and when it was asked first."""
        self.late = 0.0
        """How long at most one has waited for this program."""
        self._first: dict[tuple[bytes, bytes], tuple[bytes, float]] = {}
        """By addresses and ports: what number a connection begins with, and when it was asked."""
        every_ip = socket.htons(self._ETH_P_IP)
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, every_ip)
        program = b"".join(struct.pack("=HBBI", *each) for each in self._FILTER)
        held = ctypes.create_string_buffer(program)
        given = struct.pack("@HP", len(self._FILTER), ctypes.addressof(held))
        self._socket.setsockopt(socket.SOL_SOCKET, self._ATTACH_FILTER, given)
        # When they came, and not when this program has time for them.
        self._socket.setsockopt(socket.SOL_SOCKET, self._SO_TIMESTAMPNS, 1)
        self._socket.setblocking(False)  # noqa: FBT003 - as it is called

    def follow(self) -> None:
        """Note them from now on."""
        asyncio.get_running_loop().add_reader(self._socket.fileno(), self._read)

    def _read(self) -> None:
        with suppress(BlockingIOError):
            while True:
                room = socket.CMSG_SPACE(self._TIME.size)
                packet, told, _, where = self._socket.recvmsg(128, room)
                if where[2] != self._OUTGOING:
                    self._note(packet, self._when(told[0][2]))

    def _when(self, told: bytes) -> float:
        seconds, nanoseconds = self._TIME.unpack(told)
        ago: float = time.time() - seconds - nanoseconds / 1e9
        self.late = max(self.late, ago)
        return time.monotonic() - ago

    def _note(self, packet: bytes, now: float) -> None:
        header = (packet[0] & 15) * 4
        source, address = socket.inet_ntoa(packet[12:16]), socket.inet_ntoa(packet[16:20])
        (port,) = struct.unpack_from("!H", packet, header)
        who, number = (packet[12:20], packet[header : header + 4]), packet[header + 4 : header + 8]
        # Asked again it is the same number.
        if self._first.get(who, (b"", 0.0))[0] != number:
            self._first[who] = number, now
        self.at.setdefault(address, []).append((now, port, source, self._first[who][1]))

    def report(self) -> str:
        """All that was noted since this was last asked."""
        found, late, self.at, self.late = self.at, self.late, {}, 0.0
        return json.dumps({"asked": found, "late": late})


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while await reader.readline():
            writer.write(b"!\n")
            await writer.drain()
    writer.close()


class _Servers:
    """A server down is as one whose process has ended: it refuses, and ends what it had."""

    def __init__(self, ports: list[int]) -> None:
        self._ports = ports
        self._up: dict[str, list[asyncio.Server]] = {}
        self._talks: dict[str, set[asyncio.StreamWriter]] = {}
        self._asked = _Asked()

    async def up(self, address: str) -> None:
        """Serve at an address."""
        talks = self._talks.setdefault(address, set())

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            talks.add(writer)
            await _answer(reader, writer)
            talks.discard(writer)

        self._up[address] = [
            await asyncio.start_server(answer, address, each, backlog=512) for each in self._ports
        ]

    def down(self, address: str) -> None:
        """Serve there no more."""
        for each in self._up.pop(address, ()):
            each.close()
        for talk in tuple(self._talks[address]):
            talk.close()

    async def run(self, addresses: list[str]) -> None:
        """Serve, and do what is said."""
        for each in addresses:
            await self.up(each)
        self._asked.follow()
        print("ready", flush=True)
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        protocol = asyncio.StreamReaderProtocol(reader)
        await loop.connect_read_pipe(lambda: protocol, sys.stdin)
        while line := (await reader.readline()).decode():
            verb, address = line.split()
            if verb == "report":
                print(self._asked.report(), flush=True)
                continue
            if verb == "down":
                self.down(address)
            elif address not in self._up:
                await self.up(address)
            print("done", flush=True)


class _Clients:
    """What they have got."""

    def __init__(self, address: str, port: int, seconds: float) -> None:
        self._end = (address, port)
        self._until = time.monotonic() + seconds
        self.requests = 0
        self.failed: Counter[str] = Counter()
        self.which: list[tuple[float, float, str, int]] = []
        """Some that failed: when they began and ended, how, and from which port."""
        self.cut: Counter[str] = Counter()
        """Connections that were kept and ended otherwise than by their server's close."""
        self.closed = 0
        self.took: list[float] = []
        self.slow: list[tuple[float, float, str, int]] = []
        """Those that were answered after SLOW seconds and more."""

    async def _once(self) -> None:
        began = time.monotonic()
        with closing(socket.socket()) as made:
            made.setblocking(False)  # noqa: FBT003 - as it is called
            try:
                async with asyncio.timeout(TIMEOUT):
                    why = await self._ask(made)
            except OSError as error:  # TimeoutError is one
                why = type(error).__name__
            ended = time.monotonic()
            if why is None and ended - began >= SLOW:
                self.slow.append((began, ended, "slow", made.getsockname()[1]))
            if why is not None:
                self.failed[why] += 1
                if len(self.which) < MOST_TOLD:
                    self.which.append((began, ended, why, made.getsockname()[1]))
        self.requests += 1
        self.took.append(ended - began)

    async def _ask(self, made: socket.socket) -> str | None:
        loop = asyncio.get_running_loop()
        await loop.sock_connect(made, self._end)
        await loop.sock_sendall(made, b"?\n")
        return None if await loop.sock_recv(made, 16) else "closed"

    async def requests_at(self, rate: float) -> None:
        """Begin so many a second."""
        async with asyncio.TaskGroup() as group:
            due = time.monotonic()
            while due < self._until:
                await asyncio.sleep(max(0, due - time.monotonic()))
                group.create_task(self._once())
                due += 1 / rate

    async def keep_one(self) -> None:
        """Ask on one connection again and again."""
        while time.monotonic() < self._until:
            try:
                async with asyncio.timeout(TIMEOUT):
                    reader, writer = await asyncio.open_connection(*self._end)
                while time.monotonic() < self._until:
                    async with asyncio.timeout(TIMEOUT):
                        writer.write(b"?\n")
                        if not await reader.readline():
                            self.closed += 1
                            break
                    await asyncio.sleep(0.1)
                writer.close()
            except OSError as error:
                self.cut[type(error).__name__] += 1
                await asyncio.sleep(0.1)

    async def run(self, rate: float) -> None:
        """All of it."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.requests_at(rate))
            for _ in range(KEPT):
                group.create_task(self.keep_one())
        took = sorted(self.took) or [0.0]
        found = {
            "requests": self.requests,
            "failed": dict(self.failed),
            "which": self.which,
            "slow": sorted(self.slow, key=lambda each: each[0] - each[1])[:MOST_TOLD],
            "cut": dict(self.cut),
            "closed": self.closed,
            "p50_ms": round(1000 * took[len(took) // 2], 2),
            "p99_ms": round(1000 * took[int(len(took) * 0.99)], 2),
            "max_ms": round(1000 * took[-1], 2),
        }
        print(json.dumps(found))


def main() -> None:
    """As the command line says."""
    verb, *words = sys.argv[1:]
    if verb == "serve":
        ports = [int(each) for each in words[0].split(",")]
        asyncio.run(_Servers(ports).run(words[1:]))
        return
    address, port, seconds, rate = words
    asyncio.run(_Clients(address, int(port), float(seconds)).run(float(rate)))


if __name__ == "__main__":
    main()
