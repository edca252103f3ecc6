# SPDX-License-Identifier: Apache-2.0
"""Where a call would go, and why; and, live, where it does go."""

from __future__ import annotations

import json
import subprocess
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from towpath.children import python
from towpath.datapath.address import unpack
from towpath.datapath.errors import DatapathError
from towpath.datapath.socket.trial import Question, ask
from towpath.documents import SocketTrace
from towpath.kernel.cgroup import cgroup_id, lineage
from towpath.kernel.net.netns import in_netns, netns_cookie
from towpath.model.service import endpoint

if TYPE_CHECKING:
    from pathlib import Path

    from towpath.datapath.address import Address
    from towpath.datapath.socket.balancer import SocketBalancer
    from towpath.model.service import Protocol

CHILD = "towpath.datapath.socket.probe"


@dataclass(frozen=True, slots=True)
class Call:
    """A connect(), or a datagram that is sent."""

    address: Address
    port: int
    protocol: Protocol
    cgroup: Path | None = None
    """That its process is in."""
    netns: str | None = None
    """Its network namespace, by the name that ``ip netns`` has for it or by a path; None: ours."""
    client: int | None = None
    """That namespace's cookie, if it is known."""
    socket: int = 0
    """The socket's cookie: which backend it is follows from this, unless by the client."""


def trace(sockets: SocketBalancer, call: Call) -> SocketTrace:
    """Where a call would go, and why. Counts and remembers nothing.

    KernelError: there is no such cgroup or network namespace.
    """
    program = sockets.program
    ids = [cgroup_id(each) for each in lineage(call.cgroup)][::-1] if call.cgroup else ()
    question = Question(
        call.address, call.port, call.protocol, call.socket, _client(call), cgroups=ids
    )
    answer, _ = ask(program, question)
    verdicts = program.names("socket_verdict", "SOCKET_", "SOCKET_VERDICTS")
    found = SocketTrace(verdicts[int(answer["verdict"])])
    service = next(
        (each for each in sockets.contents.installed if each.index == int(answer["service"])), None
    )
    if service is not None:
        named = sockets.contents.by_key.get(service.key)
        found = replace(found, service=named.name if named else str(service.key))
    if int(answer["handle"]):
        found = replace(
            found,
            backend=unpack(answer["addr"].tobytes(), int(answer["family"])),
            port=int(answer["port"]),
            by=_by(sockets, int(answer["by"])),
        )
    if found.by == "maglev":
        found = replace(
            found,
            hash=int(answer["hash"]),
            slot=int(answer["slot"]),
            table_size=int(answer["table_size"]),
        )
    return found


def _client(call: Call) -> int:
    if call.client is not None:
        return call.client
    with in_netns(call.netns) if call.netns else nullcontext():
        return netns_cookie() or 0


def _by(sockets: SocketBalancer, number: int) -> str | None:
    for name in ("maglev", "client", "note"):
        if number == sockets.program.constant("socket_decision", f"SOCKET_BY_{name.upper()}"):
            return name
    return None


def live(sockets: SocketBalancer, call: Call) -> str:
    """Have a process there connect, and say where to it thinks it is, and where it is.

    Of UDP nothing is sent; of TCP a connection is begun and reset. For any thread. DatapathError,
    KernelError: it can't be done.
    """
    cgroup = call.cgroup or sockets.node
    if cgroup is None:
        raise DatapathError("no process can connect: there is no cgroup whose sockets are balanced")
    with ExitStack() as undo:
        if call.netns is not None:
            undo.enter_context(in_netns(call.netns))
        child = undo.enter_context(
            subprocess.Popen(
                python(CHILD, str(call.address), str(call.port), str(call.protocol)),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        undo.callback(_end, child)
        return _told(sockets, child, cgroup)


def _told(sockets: SocketBalancer, child: subprocess.Popen[str], cgroup: Path) -> str:
    try:
        (cgroup / "cgroup.procs").write_text(str(child.pid), encoding="ascii")
    except OSError as error:
        what = f"can't put a process into {cgroup}: {error.strerror}; allowed: a cgroup that takes"
        raise DatapathError(f"{what} processes") from error
    said = _said(child)
    if "error" in said:
        return f"connect() failed: {said['error']}"
    peer = endpoint(ip_address(said["peer"][0]), said["peer"][1])
    found = sockets.listing().read("notes")
    mine = found[found["cookie"] == said["cookie"]]
    if not len(mine):
        return f"connected to {peer}: no program of ours ran, or it left the address as it was"
    note = mine[0]["note"]
    backend = unpack(note["backend"].tobytes(), int(note["family"]))
    real = endpoint(backend, int(note["backend_port"]))
    return f"getpeername() says {peer}, and it is connected to {real}"


def _said(child: subprocess.Popen[str]) -> dict[str, Any]:
    """What it has to say, once it is told to connect. It stays connected."""
    ways = child.stdin, child.stdout
    if ways[0] is None or ways[1] is None:
        raise TypeError("its standard input and output are pipes")
    print(file=ways[0], flush=True)
    line = ways[1].readline()
    if not line:
        raise DatapathError("the process that was to connect has ended")
    said: dict[str, Any] = json.loads(line)
    return said


def _end(child: subprocess.Popen[str]) -> None:
    with suppress(OSError):
        child.kill()
    child.wait()
