# SPDX-License-Identifier: Apache-2.0
"""Traffic from a pod to a remote: bulk by TCP and UDP, and small requests beside it."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from towpath.bench.bandwidth_world import REMOTE
from towpath.kernel.net.netns import in_netns

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from towpath.bench.bandwidth_world import World

PORT = 9000
_TCP_CONGESTION = 13
_LIMIT = 30.0  # seconds; ends a hang
_BULK, _REQUESTS = b"B", b"R"
_DATAGRAM = 1430
_TCP_OVERHEAD = 1514 / 1448  # of full segments with timestamps
_UDP_OVERHEAD = (_DATAGRAM + 42) / _DATAGRAM
_REQUEST = 64


@dataclass(frozen=True, slots=True)
class Bulk:
    """Flows that fill the limit: of TCP, or UDP at so many times the limit (``offered``)."""

    flows: int = 1
    control: str = "cubic"
    offered: float = 0.0

    @property
    def overhead(self) -> float:
        """Bytes on the wire for each that arrives."""
        return _UDP_OVERHEAD if self.offered else _TCP_OVERHEAD

    @property
    def name(self) -> str:
        """As reports have it."""
        return f"udp-{self.offered:g}" if self.offered else f"tcp-{self.control}-{self.flows}"


class Sink:
    """The remote: takes what comes, and answers requests."""

    def __init__(self, netns: int, undo: ExitStack) -> None:
        self.received: list[int] = []
        """Bytes of each flow."""
        self._undo = undo
        with in_netns(netns):
            self._stream = undo.enter_context(socket.create_server(("0.0.0.0", PORT)))  # noqa: S104
            self._datagrams = undo.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        self._datagrams.bind(("0.0.0.0", PORT))  # noqa: S104
        self._datagrams.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        for each in (self._accept, self._receive):
            threading.Thread(target=each, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                made, _ = self._stream.accept()
                threading.Thread(target=self._serve, args=(made,), daemon=True).start()

    def _serve(self, made: socket.socket) -> None:
        with made, suppress(OSError):
            if made.recv(1) == _REQUESTS:
                while data := made.recv(_REQUEST):
                    made.sendall(data)
                return
            flow = self._flow()
            while data := made.recv(1 << 18):
                self.received[flow] += len(data)

    def _receive(self) -> None:
        flow, buffer = self._flow(), bytearray(1 << 16)
        with suppress(OSError):
            while True:
                self.received[flow] += self._datagrams.recv_into(buffer)

    def _flow(self) -> int:
        self.received.append(0)
        return len(self.received) - 1


@contextmanager
def traffic(here: World, bulk: Bulk, rate: int) -> Iterator[None]:
    """Have the pod send it, until the block ends."""
    stop = threading.Event()
    threads = []
    for _ in range(bulk.flows):
        work: Callable[[], None] = (
            (lambda: _send_datagrams(here.pod, stop, bulk.offered * rate))
            if bulk.offered
            else (lambda: _send_stream(here.pod, stop, bulk.control))
        )
        threads.append(threading.Thread(target=work))
    for each in threads:
        each.start()
    try:
        yield
    finally:
        stop.set()
        for each in threads:
            each.join()


def _send_stream(netns: int, stop: threading.Event, control: str) -> None:
    with in_netns(netns):
        made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    with made, suppress(OSError):
        made.setsockopt(socket.IPPROTO_TCP, _TCP_CONGESTION, control.encode())
        made.settimeout(_LIMIT)
        made.connect((REMOTE, PORT))
        made.sendall(_BULK)
        made.settimeout(1.0)
        data = bytes(1 << 16)
        while not stop.is_set():
            with suppress(TimeoutError):
                made.send(data)


def _send_datagrams(netns: int, stop: threading.Event, rate: float) -> None:
    """Frames of so many bits a second, each at its time; more than a second isn't made up for."""
    with in_netns(netns):
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with made:
        made.connect((REMOTE, PORT))
        data, apart = bytes(_DATAGRAM), 8 * (_DATAGRAM + 42) / rate
        due = time.monotonic()
        while not stop.is_set():
            now = time.monotonic()
            if now < due:
                time.sleep(due - now)
            elif now > due + 1:
                due = now
            with suppress(OSError):
                made.send(data)
            due += apart


def achieved(sink: Sink, bulk: Bulk, seconds: float, warm: float) -> float:
    """Bits a second on the wire, after ``warm`` seconds."""
    time.sleep(warm)
    before, began = sum(sink.received), time.monotonic()
    time.sleep(seconds)
    took = time.monotonic() - began
    return 8 * (sum(sink.received) - before) * bulk.overhead / took


def latencies(here: World, seconds: float, pause: float = 0.01) -> list[float]:
    """Seconds from a small request to its answer, sorted; one after the other."""
    with in_netns(here.pod):
        made = socket.create_connection((REMOTE, PORT), timeout=_LIMIT)
    found = []
    with made:
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        made.sendall(_REQUESTS)
        end = time.monotonic() + seconds
        while (began := time.monotonic()) < end:
            made.sendall(bytes(_REQUEST))
            left = _REQUEST
            while left:
                left -= len(made.recv(left))
            found.append(time.monotonic() - began)
            time.sleep(pause)
    return sorted(found)
