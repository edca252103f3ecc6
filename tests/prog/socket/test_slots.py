# SPDX-License-Identifier: Apache-2.0
"""Notes of connections of TCP: in a table while there is a place, else at the socket."""

from __future__ import annotations

import os
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np
import pytest
from tests.listed import needs_lists
from tests.prog.socket.harness import BACKENDS, PORT, VIP, VIP6, Child, Rig, service
from tests.prog.socket.test_stale import namespace_with_servers

from towpath.datapath.socket import listing
from towpath.datapath.socket.program import has_mptcp, tells_mptcp

if TYPE_CHECKING:
    from collections.abc import Iterator

# Where the kernel doesn't tell which sockets are MPTCP's, all may be.
IN_TABLE = int(not has_mptcp() or tells_mptcp())
CONNECT = f"S['s'].connect(('{VIP}', {PORT}))"


def table(rig: Rig) -> Any:
    """The table's places that are somebody's."""
    _, slots = rig.sockets.program.maps["socket_slots"].snapshot()
    return slots[slots["cookie"] != 0]


def cookies(rig: Rig) -> list[int]:
    """Those of the sockets that are listed as connected."""
    found: list[int] = rig.sockets.listing().read("notes")["cookie"].tolist()
    return found


@contextmanager
def taken(rig: Rig, cookie: int) -> Iterator[None]:
    """Have another socket in the place of one during the block."""
    slots = rig.sockets.program.maps["socket_slots"]
    at = cookie % slots.max_entries
    record = np.zeros((), slots.value_dtype)
    record["cookie"] = cookie + slots.max_entries
    slots.update(at, record)
    yield
    assert int(slots.lookup(at)["cookie"]) == cookie + slots.max_entries
    record["cookie"] = 0
    slots.update(at, record)


@needs_lists
@pytest.mark.parametrize(("host", "family"), [(VIP, "AF_INET"), (VIP6, "AF_INET6")])
def test_a_connection_has_a_place_until_its_socket_is_closed(
    rig: Rig, host: str, family: str
) -> None:
    """Whoever else closes a descriptor of it; nothing of it is left in its place."""
    rig.apply(service(), service(VIP6, ["fd77::1"]))
    cookie = rig.run(f"make('s', {family})")
    rig.run(f"S['s'].connect(('{host}', {PORT}))")
    rig.run("S.update(copy=S['s'].dup())")
    assert table(rig)["cookie"].tolist() == [cookie] * IN_TABLE
    assert rig.run("S.pop('s').close()") is None
    assert rig.run("S['copy'].getpeername()[:2]") == [host, PORT]
    assert cookies(rig) == [cookie]
    rig.run("S.pop('copy').close()")
    assert len(table(rig)) == 0
    slots = rig.sockets.program.maps["socket_slots"]
    left = slots.lookup(cookie % slots.max_entries)["note"]
    assert (int(left["family"]), int(left["connects"])) == (0, 0)


@needs_lists
def test_one_whose_place_is_taken_has_its_note_at_the_socket(rig: Rig) -> None:
    """And keeps it there, though the place becomes free."""
    rig.apply(service())
    with taken(rig, cookie := rig.run("make('s')")):
        assert rig.run(CONNECT) is None
        assert rig.run("S['s'].getpeername()") == [VIP, PORT]
    assert rig.run("S['s'].getpeername()") == [VIP, PORT]
    assert cookies(rig) == [cookie]
    rig.run("unspec('s')")
    assert rig.run(CONNECT) is None
    assert len(table(rig)) == 0
    assert rig.run("S['s'].getpeername()") == [VIP, PORT]
    rig.run("S.pop('s').close()")
    assert len(table(rig)) == 0


@needs_lists
def test_a_connection_to_a_backend_itself_forgets_the_service(rig: Rig) -> None:
    """With the socket that was connected to the service before."""
    rig.apply(service(backends=BACKENDS[:1]))
    rig.run("make('s')")
    rig.run(CONNECT)
    rig.run("unspec('s')")
    rig.run(f"S['s'].connect(('{BACKENDS[0]}', {PORT}))")
    assert rig.run("S['s'].getpeername()") == [BACKENDS[0], PORT]
    assert cookies(rig) == []


@needs_lists
def test_mptcp_has_no_place(rig: Rig) -> None:
    """No hook tells the end of the kernel's own socket that connects for it."""
    rig.apply(service())
    made = rig.run("make('m', AF_INET, SOCK_STREAM, IPPROTO_MPTCP)")
    if isinstance(made, dict):
        pytest.skip(f"no MPTCP in this kernel ({made['errno']})")
    rig.run(f"S['m'].connect(('{VIP}', {PORT}))")
    assert rig.run("S['m'].getpeername()") == [VIP, PORT]
    assert len(table(rig)) == 0
    assert len(cookies(rig)) == 1


@needs_lists
def test_connections_of_all_namespaces_are_ended(rig: Rig) -> None:
    """If that is asked for; those to the backend's own address stay."""
    rig.apply(service(backends=BACKENDS[:1]))
    rig.run("make('s')")
    rig.run(CONNECT)
    with namespace_with_servers() as fd, Child(rig.cgroup) as child:
        os.close(fd)
        child.run("make('s')")
        child.run(CONNECT)
        child.run("make('own')")
        child.run(f"S['own'].connect(('{BACKENDS[0]}', {PORT}))")
        rig.apply(service(backends=BACKENDS[1:2]))
        assert rig.sockets.end_stale().ended == 0
        assert rig.sockets.end_stale(tcp=True)[:2] == (2, 0)
        for run in (rig.run, child.run):
            assert run("S['s'].getsockopt(SOL_SOCKET, SO_ERROR)")
        assert child.run("S['own'].getpeername()") == [BACKENDS[0], PORT]


@needs_lists
def test_one_whose_namespace_nothing_else_leads_to_is_listed(rig: Rig) -> None:
    """By where it is."""
    rig.apply(service(backends=BACKENDS[:1]))
    with namespace_with_servers() as fd:
        os.close(fd)
        child = Child(rig.cgroup)
        cookie = child.run("make('s')")
        child.run(CONNECT)
        inode = child.run("__import__('os').stat('/proc/self/ns/net').st_ino")
    with closing(child):
        assert child.run(f"leave_for({os.getpid()})") == 0
        (seen,) = rig.sockets.listing().read("notes")
        assert (int(seen["cookie"]), int(seen["netns"])) == (cookie, inode)
        assert int(seen["local_port"])


@needs_lists
@pytest.mark.skipif(not IN_TABLE, reason="this kernel doesn't tell MPTCP's sockets")
def test_one_in_a_namespace_that_cant_be_seen_is_told_by_its_note(rig: Rig) -> None:
    """And isn't ended, which would take its addresses."""
    rig.apply(service(backends=BACKENDS[:1]))
    cookie = rig.run("make('s')")
    rig.run(CONNECT)
    with patch.object(listing, "with_cookies", lambda _: iter(())):
        (seen,) = rig.sockets.listing().read("notes")
        assert (int(seen["cookie"]), int(seen["netns"]), int(seen["state"])) == (cookie, 0, 0)
        assert int(seen["note"]["backend_port"]) == int(seen["remote_port"])
        rig.apply()
        assert rig.sockets.end_stale(tcp=True).ended == 0
    assert rig.run("S['s'].getpeername()") == [VIP, PORT]
