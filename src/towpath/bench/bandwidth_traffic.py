# SPDX-License-Identifier: Apache-2.0
"""Traffic from a pod to a remote: bulk by TCP and UDP, and small requests beside it."""

from __future__ import annotations

import socket
import struct
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from towpath.bench.bandwidth_world import REMOTE
from towpath.bench.errors import BenchError
from towpath.kernel.net.netns import in_netns

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from towpath.bench.bandwidth_world import World

PORT = 9000
_TCP_CONGESTION = 13
_LINGER_NONE = struct.pack("ii", 1, 0)  # struct linger: on, for no time
_LIMIT = 30.0  # seconds; ends a hang
_BULK, _REQUESTS = b"B", b"R"
DATAGRAM, _SEGMENT = 1430, 1448
_TCP_OVERHEAD = 1514 / _SEGMENT  # of full segments with timestamps
UDP_OVERHEAD = (DATAGRAM + 42) / DATAGRAM
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
        return UDP_OVERHEAD if self.offered else _TCP_OVERHEAD

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
        self._datagram_flow = self._flow()
        for each in (self._accept, self._receive):
            threading.Thread(target=each, daemon=True).start()

    def wait_for(self, flows: int) -> None:
        """Wait until so many have begun, that of all datagrams among them. BenchError."""
        deadline = time.monotonic() + _LIMIT
        while len(self.received) < flows:
            if time.monotonic() > deadline:
                raise BenchError(f"of {flows} flows {len(self.received)} have begun in {_LIMIT} s")
            time.sleep(0.01)

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
        flow, buffer = self._datagram_flow, bytearray(1 << 16)
        with suppress(OSError):
            while True:
                self.received[flow] += self._datagrams.recv_into(buffer)

    def _flow(self) -> int:
        self.received.append(0)
        return len(self.received) - 1


@contextmanager
def traffic(here: World, bulk: Bulk, rate: int) -> Iterator[None]:
    """Have the pod send it, until the block ends."""
    with Sender() as sender:
        for _ in range(bulk.flows):
            if bulk.offered:
                sender.datagrams(here.pod, bulk.offered * rate)
            else:
                sender.stream(here.pod, bulk.control)
        yield


class Sender:
    """Flows of pods, each with a thread of its own, until the block ends."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for each in self._threads:
            each.join()

    def _start(self, work: Callable[[], None]) -> None:
        self._threads.append(threading.Thread(target=work))
        self._threads[-1].start()

    def datagrams(self, netns: int, rate: float) -> None:
        """Send frames of UDP, of so many bits a second."""
        self._start(lambda: self._send_datagrams(netns, rate))

    def stream(self, netns: int, control: str = "cubic", *, rate: float = 0) -> None:
        """Send by TCP, as much as there is room for.

        ``rate``: the application has only so many bits a second on the wire; 0: any number.
        """
        self._start(lambda: self._send_stream(netns, control, rate))

    def _send_stream(self, netns: int, control: str, rate: float) -> None:
        with in_netns(netns):
            made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        with made, suppress(OSError):
            made.setsockopt(socket.IPPROTO_TCP, _TCP_CONGESTION, control.encode())
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # Or what is left to send would be sent by the next measurement's limit.
            made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NONE)
            made.settimeout(_LIMIT)
            made.connect((REMOTE, PORT))
            made.sendall(_BULK)
            made.settimeout(1.0)
            data = bytes(_SEGMENT if rate else 1 << 16)
            for _ in self._turns(8 * _SEGMENT * _TCP_OVERHEAD / rate if rate else 0):
                with suppress(TimeoutError):
                    made.send(data)

    def _send_datagrams(self, netns: int, rate: float) -> None:
        with in_netns(netns):
            made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with made:
            made.connect((REMOTE, PORT))
            data = bytes(DATAGRAM)
            for _ in self._turns(8 * (DATAGRAM + 42) / rate):
                with suppress(OSError):
                    made.send(data)

    def _turns(self, apart: float) -> Iterator[None]:
        """Until the end: so many seconds apart; more than a second isn't made up for."""
        due = time.monotonic()
        while not self._stop.is_set():
            now = time.monotonic()
            if now < due:
                time.sleep(due - now)
            elif now > due + 1:
                due = now
            yield
            due += apart


def achieved(sink: Sink, bulk: Bulk, seconds: float, warm: float) -> float:
    """Bits a second on the wire, after ``warm`` seconds."""
    return sum(each_achieved(sink, seconds, warm)) * bulk.overhead


def each_achieved(sink: Sink, seconds: float, warm: float) -> list[float]:
    """The same of each flow there has been, without headers; all datagrams are the first one."""
    time.sleep(warm)
    before, began = list(sink.received), time.monotonic()
    time.sleep(seconds)
    took, after = time.monotonic() - began, list(sink.received)
    before += [0] * (len(after) - len(before))
    return [8 * (now - then) / took for then, now in zip(before, after, strict=True)]


def tcp_on_wire(rate: float) -> float:
    """Return bits on the wire of so many that arrive by full segments."""
    return rate * _TCP_OVERHEAD


def udp_on_wire(rate: float) -> float:
    """The same of datagrams that this module sends."""
    return rate * UDP_OVERHEAD


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
