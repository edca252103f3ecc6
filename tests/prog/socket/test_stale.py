# SPDX-License-Identifier: Apache-2.0
"""Connected sockets of UDP whose backend goes, or is found down, are ended; no other is touched."""

from __future__ import annotations

import errno
import os
import subprocess
from contextlib import ExitStack, closing, contextmanager
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import pytest
from tests.listed import needs_lists
from tests.prog.socket.harness import (
    BACKENDS,
    BACKENDS6,
    OTHER_VIP,
    PORT,
    VIP,
    VIP6,
    Child,
    Servers,
    down,
    service,
)

from towpath.kernel.net.netns import new_netns
from towpath.model.service import Backend, BackendState

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.prog.socket.harness import Rig

pytestmark = needs_lists
ABORTED = errno.ECONNABORTED
GONE, STAYS = BACKENDS[:2]


def connect(
    rig: Rig, name: str, host: str = VIP, family: str = "AF_INET", child: Any = None
) -> str:
    """Make a connected socket of UDP; the backend that answers it."""
    run = rig.run if child is None else child.run
    run(f"make('{name}', {family}, SOCK_DGRAM)")
    run(f"S['{name}'].connect(('{host}', {PORT}))")
    return str(run(f"ask('{name}')"))


def state(rig: Rig, name: str, child: Any = None) -> Any:
    """The error that a socket has, or who answers it."""
    run = rig.run if child is None else child.run
    found = run(f"S['{name}'].getsockopt(SOL_SOCKET, SO_ERROR)")
    return found or run(f"ask('{name}')")


@pytest.mark.parametrize(
    ("host", "family"),
    [(VIP, "AF_INET"), (VIP6, "AF_INET6"), (f"::ffff:{VIP}", "AF_INET6")],
)
@pytest.mark.parametrize("how", ["removed", "down", "service removed"])
def test_they_are_ended(rig: Rig, host: str, family: str, how: str) -> None:
    """Whatever has become of the backend; then they connect to another one."""
    v6 = host == VIP6
    vip, (gone, stays) = (VIP6, BACKENDS6[:2]) if v6 else (VIP, BACKENDS[:2])
    rig.apply(service(vip, [gone], protocol="udp"))
    assert connect(rig, "u", host, family) == gone
    left = {
        "removed": [service(vip, [stays], protocol="udp")],
        "down": [service(vip, [stays, down(gone)], protocol="udp")],
        "service removed": [],
    }
    rig.apply(*left[how])
    ended = rig.sockets.end_stale()
    assert (ended.ended, ended.left) == (1, 0)
    assert state(rig, "u") == ABORTED
    if left[how]:
        rig.run(f"S['u'].connect(('{host}', {PORT}))")
        assert rig.run("ask('u')") == stays
    assert rig.sockets.end_stale().ended == 0


@pytest.mark.parametrize("how", [BackendState.DRAINING, BackendState.QUARANTINED, "weight"])
def test_those_whose_flows_go_on_stay(rig: Rig, how: Any) -> None:
    """On a backend that drains, or is in quarantine, or has weight 0."""
    rig.apply(service(protocol="udp", backends=[GONE]))
    assert connect(rig, "u") == GONE
    weight, kept = (0, BackendState.ACTIVE) if how == "weight" else (1, how)
    leaving = Backend(ip_address(GONE), weight, kept)
    rig.apply(service(protocol="udp", backends=[STAYS, leaving]))
    assert rig.sockets.end_stale().ended == 0
    assert state(rig, "u") == GONE


def test_no_other_socket_is_touched(rig: Rig) -> None:
    """None that isn't connected, of another service on that backend, its own client, or of TCP."""
    rig.apply(
        service(protocol="udp", backends=[GONE]),
        service(OTHER_VIP, [GONE], protocol="udp"),
        service(backends=[GONE]),
    )
    assert connect(rig, "stale") == GONE
    assert connect(rig, "other service", OTHER_VIP) == GONE
    assert connect(rig, "its own", GONE) == GONE
    rig.run("make('unconnected', AF_INET, SOCK_DGRAM)")
    assert rig.run(f"send('unconnected', '{VIP}', {PORT})")[0] == GONE
    assert connect(rig, "disconnected") == GONE
    rig.run("unspec('disconnected')")
    assert connect(rig, "elsewhere") == GONE
    rig.run(f"S['elsewhere'].connect(('{STAYS}', {PORT}))")
    rig.run("make('tcp')")
    rig.run(f"S['tcp'].connect(('{VIP}', {PORT}))")
    with Child() as outside:
        assert connect(rig, "outside", GONE, child=outside) == GONE
        rig.apply(
            service(protocol="udp", backends=[STAYS]),
            service(OTHER_VIP, [GONE], protocol="udp"),
            service(backends=[STAYS]),
        )
        assert rig.sockets.end_stale()[:2] == (1, 0)
        assert state(rig, "outside", outside) == GONE
    assert state(rig, "stale") == ABORTED
    assert state(rig, "other service") == GONE
    assert state(rig, "its own") == GONE
    assert rig.run("S['unconnected'].getsockopt(SOL_SOCKET, SO_ERROR)") == 0
    assert rig.run(f"send('unconnected', '{VIP}', {PORT})") == [STAYS, [VIP, PORT]]
    assert rig.run("S['disconnected'].getsockopt(SOL_SOCKET, SO_ERROR)") == 0
    assert state(rig, "elsewhere") == STAYS
    assert rig.run("S['tcp'].recv(100).decode()") == GONE
    assert rig.run("S['tcp'].getpeername()") == [VIP, PORT]


def test_sockets_bound_to_a_device_are_ended_too(rig: Rig) -> None:
    """The kernel wants to be told which one."""
    rig.apply(service(protocol="udp", backends=[GONE]))
    rig.run("make('u', AF_INET, SOCK_DGRAM)")
    rig.run("S['u'].setsockopt(SOL_SOCKET, SO_BINDTODEVICE, b'lo')")
    rig.run(f"S['u'].connect(('{VIP}', {PORT}))")
    assert rig.run("ask('u')") == GONE
    rig.apply()
    assert rig.sockets.end_stale()[:2] == (1, 0)
    assert state(rig, "u") == ABORTED


@contextmanager
def namespace_with_servers() -> Iterator[int]:
    """Another network namespace, whose loopback device has the backends' addresses too."""
    with new_netns() as fd:
        lines = ["link set lo up", *(f"addr add {each}/32 dev lo" for each in BACKENDS[:2])]
        subprocess.run(["ip", "-batch", "-"], input="\n".join(lines), text=True, check=True)
        with Servers(BACKENDS[:2]):
            yield os.dup(fd)


def test_every_network_namespace_is_looked_at(rig: Rig) -> None:
    """By sockets whose process is in it, and by one whose process has left it."""
    rig.apply(service(protocol="udp", backends=[GONE]))
    with ExitStack() as undo:
        children = []
        for n in range(3):
            undo.enter_context(namespace_with_servers())
            child = undo.enter_context(Child(rig.cgroup))
            children.append(child)
            for each in range(5):
                assert connect(rig, f"u{n}{each}", child=child) == GONE
        rig.apply(service(protocol="udp", backends=[STAYS]))
        assert rig.sockets.end_stale()[:2] == (15, 0)
        for n, child in enumerate(children):
            assert {state(rig, f"u{n}{each}", child) for each in range(5)} == {ABORTED}


def test_a_namespace_is_found_by_nothing_but_its_socket(rig: Rig) -> None:
    """Its process is in another one by now, and nobody else has been there."""
    rig.apply(service(protocol="udp", backends=[GONE]))
    with namespace_with_servers() as fd:
        os.close(fd)
        child = Child(rig.cgroup)
        assert connect(rig, "u", child=child) == GONE
    with closing(child):
        assert child.run(f"leave_for({os.getpid()})") == 0
        rig.apply()
        assert rig.sockets.end_stale()[:2] == (1, 0)
        assert child.run("S['u'].getsockopt(SOL_SOCKET, SO_ERROR)") == ABORTED


def test_what_comes_meanwhile_is_not_stale(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket that connects, while it is looked for, to a service that was not there before."""
    rig.apply(service(VIP, [STAYS], protocol="udp"))
    listing = rig.sockets.listing()
    read = listing.read

    def meanwhile(kind: Any) -> Any:
        rig.apply(
            service(VIP, [STAYS], protocol="udp"),
            service(OTHER_VIP, [GONE], name="other", protocol="udp"),
        )
        connect(rig, "late", OTHER_VIP)
        return read(kind)

    monkeypatch.setattr(listing, "read", meanwhile)
    assert rig.sockets.end_stale().ended == 0
    assert state(rig, "late") == GONE
