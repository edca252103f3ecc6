# SPDX-License-Identifier: Apache-2.0
"""Services whose backends are servers on addresses of this namespace, and a process in a cgroup."""

from __future__ import annotations

import json
import select
import socket
import subprocess
import sys
import threading
from contextlib import ExitStack, contextmanager, suppress
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Any, Self

from tests.prog.kernel.harness_cgroups import new_cgroup

from towpath.closeable import Closeable
from towpath.datapath.lb.contents import Contents
from towpath.datapath.maps.shared import SharedMaps
from towpath.datapath.socket.balancer import SocketBalancer
from towpath.model.service import Affinity, Backend, BackendState, Protocol, Service
from towpath.model.settings import Limits

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

SECONDS = 60
"""Ends a hang."""
_STILL = 64
PORT = 8080
BACKENDS = tuple(f"10.77.0.{n}" for n in range(1, 6))
BACKENDS6 = tuple(f"fd77::{n}" for n in range(1, 6))
VIP, OTHER_VIP, CIDR = "192.0.2.10", "192.0.2.11", "192.0.2.128/28"
VIP6, OTHER_VIP6 = "2001:db8:77::10", "2001:db8:77::11"
LIMITS = Limits(
    services=64, backends=256, flows=1024, nat_flows=1024, fragments=128, clients=1024, sources=64,
    port_pages=64, table_slots=65536,
)  # fmt: skip

# Reads expressions, one a line as JSON; answers each with what it is, or the error's name.
_INSIDE = """
import errno, json, socket, struct, sys
from socket import *
SO_COOKIE, SO_NETNS_COOKIE, IPPROTO_MPTCP, MSG_FASTOPEN = 57, 71, 262, 0x20000000
S = {}

def make(name, family=AF_INET, kind=SOCK_STREAM, protocol=0):
    S[name] = made = socket(family, kind, protocol)
    made.settimeout(30)
    return struct.unpack("=Q", made.getsockopt(SOL_SOCKET, SO_COOKIE, 8))[0]

def netns():
    with socket() as some:
        return struct.unpack("=Q", some.getsockopt(SOL_SOCKET, SO_NETNS_COOKIE, 8))[0]

def tcp(host, port, family=AF_INET, protocol=0):
    "Connect, and be told by whom: its name, and the peer's address as this side has it."
    with socket(family, SOCK_STREAM, protocol) as made:
        made.settimeout(30)
        made.connect((host, port))
        return made.recv(100).decode(), made.getpeername()[:2]

def ask(name):
    S[name].send(b"?")
    return S[name].recv(100).decode()

def send(name, host, port, text=b"?"):
    S[name].sendto(text, (host, port))
    answer, source = S[name].recvfrom(100)
    return answer.decode(), source[:2]

def unspec(name):
    import ctypes
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.connect(S[name].fileno(), bytes(16), 16):
        raise OSError(ctypes.get_errno(), "connect")

def leave_for(pid):
    "Enter the network namespace of another process."
    import ctypes
    with open(f"/proc/{pid}/ns/net") as other:
        return ctypes.CDLL(None).setns(other.fileno(), 0)

for line in sys.stdin:
    try:
        code = json.loads(line)
        try:
            result = eval(code)
        except SyntaxError:
            exec(code)
            result = None
    except OSError as error:
        result = {"errno": errno.errorcode.get(error.errno, str(error))}
    print(json.dumps(result), flush=True)
"""


class Child(Closeable):
    """A Python process that is told what to do with sockets."""

    def __init__(self, cgroup: Path | None = None) -> None:
        command = [sys.executable, "-u", "-c", _INSIDE]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        if cgroup is not None:
            (cgroup / "cgroup.procs").write_text(str(self.process.pid))

    def run(self, code: str) -> Any:
        """What an expression is there; ``{"errno": …}`` where it failed."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(code), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.communicate()


class Servers(Closeable):
    """At each address a server of TCP and of UDP, which say the address to all who come."""

    def __init__(self, addresses: Iterable[str], ports: Iterable[int] = (PORT,)) -> None:
        self._poll = select.epoll()
        self._sockets: dict[int, tuple[socket.socket, bytes]] = {}
        self._stop = socket.socketpair()
        self._open_still: list[socket.socket] = []
        self._poll.register(self._stop[0], select.EPOLLIN)
        for address in addresses:
            for port in ports:
                self._open(address, port)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _open(self, address: str, port: int) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            made = socket.socket(family, kind)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind((address, port))
            if kind == socket.SOCK_STREAM:
                made.listen(512)
            self._sockets[made.fileno()] = made, address.encode()
            self._poll.register(made, select.EPOLLIN)

    def _serve(self) -> None:
        while True:
            for fd, _ in self._poll.poll():
                if fd not in self._sockets:
                    return
                self._answer(*self._sockets[fd])

    def _answer(self, server: socket.socket, name: bytes) -> None:
        if server.type == socket.SOCK_DGRAM:
            _, client = server.recvfrom(100)
            server.sendto(name, client)
            return
        client, _ = server.accept()
        with suppress(ConnectionError):  # who has asked may be gone
            client.send(name)
        # Closed at once it would be reset, where nobody has read what the client has sent.
        self._open_still.append(client)
        if len(self._open_still) > _STILL:
            self._open_still.pop(0).close()

    def close(self) -> None:
        """End them."""
        self._stop[1].close()
        self._thread.join()
        for made in (*self._open_still, *(made for made, _ in self._sockets.values())):
            made.close()
        self._stop[0].close()
        self._poll.close()


def service(
    vip: str = VIP,
    backends: Iterable[str | Backend] = BACKENDS[:3],
    *,
    protocol: str = "tcp",
    port: Any = PORT,
    name: str = "",
    affinity: int | None = None,
    **options: Any,
) -> Service:
    """A service as tests want it."""
    address: Any = ip_network(vip) if "/" in vip else ip_address(vip)
    made = (each if isinstance(each, Backend) else Backend(ip_address(each)) for each in backends)
    return Service(
        name or f"{protocol}-{vip}-{port}".replace("/", "-"),
        address,
        port,
        Protocol(protocol),
        tuple(made),
        table_size=251,
        affinity=None if affinity is None else Affinity(affinity),
        **options,
    )


def down(address: str) -> Backend:
    """A backend that has been found down."""
    return Backend(ip_address(address), state=BackendState.DOWN)


class Rig(Closeable):
    """Tables, programs at a cgroup of its own, and a process in it."""

    def __init__(self, pins: Path | None = None, **options: Any) -> None:
        with ExitStack() as undo:
            self.cgroup = undo.enter_context(new_cgroup())
            self.tables = SharedMaps(LIMITS)
            undo.callback(self.tables.close)
            self.contents = Contents(self.tables)
            self.sockets = undo.enter_context(
                SocketBalancer(self.tables, self.contents, self.cgroup, pins, **options)
            )
            self._undo = undo.pop_all()
        self.child = Child(self.cgroup)

    def renew(self) -> None:
        """Have no services, and another process: nothing of before is known any more."""
        self.child.close()
        self.sockets.replace_excluded([])
        self.apply()
        self.tables.rows("clients")["way"]["ref"][:] = 0
        self.child = Child(self.cgroup)

    def apply(self, *services: Service) -> None:
        """Have these services and no others."""
        self.sockets.changed(self.contents.apply(services))

    def run(self, code: str) -> Any:
        """What an expression is in the process in the cgroup."""
        return self.child.run(code)

    @contextmanager
    def counting(self) -> Iterator[dict[str, int]]:
        """What was counted in the block, when it is over: all that moved, of every counter."""
        before, moved = self._all(), dict[str, int]()
        yield moved
        after = self._all()
        moved |= {name: after[name] - before.get(name, 0) for name in after}
        for name in [name for name, number in moved.items() if not number]:
            del moved[name]

    def _all(self) -> dict[str, int]:
        found = self.sockets.counters()
        counted = {
            f"{h} {v}": n for h, verdicts in found.verdicts.items() for v, n in verdicts.items()
        }
        for each in found.services:
            for hook, verdicts in each.verdicts.items():
                counted |= {f"{each.service}: {hook} {v}": n for v, n in verdicts.items()}
            for backend in each.backends:
                where = f"{each.service}, {backend.address}"
                counted |= {
                    f"{where}: connects": backend.connects,
                    f"{where}: datagrams": backend.datagrams,
                }
        return counted

    def close(self) -> None:
        """End all of it."""
        self.child.close()
        self._undo.close()

    def __enter__(self) -> Self:
        return self
