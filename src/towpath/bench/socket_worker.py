# SPDX-License-Identifier: Apache-2.0
"""A process of the benchmark of sockets: it connects, or it serves. Run as a module.

`serve` accepts connections at addresses and sends back what it receives. `connect` reads
commands, one a line as JSON, and answers each with a line.
"""

from __future__ import annotations

import json
import resource
import select
import socket
import struct
import sys
import time
from typing import TYPE_CHECKING, Any

from towpath.kernel.net.netns import in_netns

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_RESET = struct.pack("ii", 1, 0)
_WHO = b"w"
"""Asks a backend for the address that it was connected to by."""
_SECONDS = 60
_BACKLOG = 4096


def _family(address: str) -> int:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _made(address: str) -> socket.socket:
    made = socket.socket(_family(address), socket.SOCK_STREAM)
    made.settimeout(_SECONDS)
    # Reset when it is closed: no port waits.
    made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    return made


_connected = 0


def _connect(address: str, port: int) -> socket.socket:
    global _connected  # noqa: PLW0603 - of this process, which does nothing else
    made = _made(address)
    made.connect((address, port))
    _connected += 1
    return made


def served_by(address: str, port: int) -> dict[str, Any]:
    """Which backend is connected to, by its own word."""
    with _connect(address, port) as made:
        made.send(_WHO)
        return {"backend": made.recv(100).decode("ascii")}


def connected() -> dict[str, Any]:
    """How many connections of TCP this process has had."""
    return {"connections": _connected}


def connections(address: str, port: int, number: int) -> dict[str, Any]:
    """Connect and reset: nanoseconds of each connect(), and of all."""
    global _connected  # noqa: PLW0603
    took, clock = [], time.perf_counter_ns
    begun = clock()
    for _ in range(number):
        made = _made(address)
        before = clock()
        made.connect((address, port))
        took.append(clock() - before)
        made.close()
    whole = clock() - begun
    _connected += number
    return {"connect": took, "all": whole}


def requests(address: str, port: int, number: int) -> dict[str, Any]:
    """Send a byte and wait for it, over one connection: nanoseconds of all."""
    with _connect(address, port) as made:
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        begun = time.perf_counter_ns()
        for _ in range(number):
            made.send(b"?")
            made.recv(1)
        return {"all": time.perf_counter_ns() - begun}


def datagram_connects(
    address: str, port: int, number: int, *, anew: bool = False
) -> dict[str, Any]:
    """Connect by UDP, which sends nothing, each time anew or with one socket: nanoseconds."""
    begun = time.perf_counter_ns()
    made = socket.socket(_family(address), socket.SOCK_DGRAM)
    for _ in range(number):
        if anew:
            made.close()
            made = socket.socket(_family(address), socket.SOCK_DGRAM)
        made.connect((address, port))
    made.close()
    return {"all": time.perf_counter_ns() - begun}


_kept: list[socket.socket] = []


def keep(
    address: str, port: int, number: int, *, connected: bool, namespace: str
) -> dict[str, Any]:
    """Have sockets of UDP in a network namespace: connected, or having sent something."""
    with in_netns(namespace):
        for _ in range(number):
            made = socket.socket(_family(address), socket.SOCK_DGRAM)
            if connected:
                made.connect((address, port))
            else:
                made.sendto(b"?", (address, port))
            _kept.append(made)
    return {}


def errors() -> dict[str, Any]:
    """How many of those that are kept have an error."""
    found = [made.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) for made in _kept]
    return {"errors": sum(map(bool, found)), "sockets": len(found)}


_COMMANDS: dict[str, Callable[..., dict[str, Any]]] = {
    "connections": connections,
    "served_by": served_by,
    "connected": connected,
    "requests": requests,
    "datagram_connects": datagram_connects,
    "keep": keep,
    "errors": errors,
}


def obey() -> None:
    """Do what is asked until nobody asks."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            answer = _COMMANDS[asked.pop("do")](**asked)
        except OSError as error:
            answer = {"error": str(error)}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def serve(port: str, *addresses: str) -> None:
    """Accept and send back, until standard input ends."""
    poll, listeners = select.epoll(), {}
    clients: dict[int, socket.socket] = {}
    for address in addresses:
        made = socket.socket(_family(address), socket.SOCK_STREAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((address, int(port)))
        made.listen(_BACKLOG)
        listeners[made.fileno()] = made
        poll.register(made, select.EPOLLIN)
    poll.register(sys.stdin, select.EPOLLIN)
    sys.stdout.write("\n")
    sys.stdout.flush()
    while True:
        for fd, _ in poll.poll():
            if fd == sys.stdin.fileno():
                return
            if fd in listeners:
                client, _ = listeners[fd].accept()
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                clients[client.fileno()] = client
                poll.register(client, select.EPOLLIN)
            else:
                _send_back(clients, fd)


def _own_address(client: socket.socket) -> bytes:
    address: str = client.getsockname()[0]
    return address.encode("ascii")


def _send_back(clients: dict[int, socket.socket], fd: int) -> None:
    try:
        data = clients[fd].recv(100)
        if data:
            clients[fd].send(_own_address(clients[fd]) if data == _WHO else data)
            return
    except OSError:
        pass  # it was reset
    clients.pop(fd).close()


def main(arguments: Sequence[str]) -> None:
    """Serve, or obey."""
    if arguments[0] == "serve":
        serve(*arguments[1:])
    else:
        obey()


if __name__ == "__main__":
    main(sys.argv[1:])
