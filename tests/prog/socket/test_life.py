# SPDX-License-Identifier: Apache-2.0
"""Programs at sockets outlive their process, are taken over, and leave others' programs alone."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np
import pytest
from tests.listed import needs_lists
from tests.prog.kernel.harness_cgroups import (
    MULTI,
    NONE,
    attached_legacy,
    loaded,
    new_cgroup,
    remove,
)
from tests.prog.socket.harness import BACKENDS, LIMITS, PORT, VIP, Child, service

from towpath.datapath.lb.contents import Contents
from towpath.datapath.maps.shared import SharedMaps
from towpath.datapath.socket.balancer import HOOKS, SocketBalancer, detach
from towpath.kernel.bpf import bpffs, links
from towpath.kernel.bpf.attach_types import AttachType, hook_name
from towpath.kernel.bpf.attached import Inventory
from towpath.kernel.bpf.cgroups import attach_cgroup
from towpath.kernel.errors import KernelError
from towpath.lab.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.prog.socket.harness import Servers

    from towpath.model.service import Service
    from towpath.model.settings import Limits

NAMES = [hook_name(each) for each in HOOKS]
CONNECT4 = AttachType.CGROUP_INET4_CONNECT


class Process:
    """What a process has: tables that are pinned, and programs."""

    def __init__(self, pins: Path, cgroup: Path, limits: Limits = LIMITS) -> None:
        self.tables = SharedMaps(limits, pins / "lb")
        self.contents = Contents(self.tables)
        if self.tables.adopted:
            self.contents.adopt()
        self.sockets = SocketBalancer(self.tables, self.contents, cgroup, pins / "socket")

    def apply(self, *services: Service) -> None:
        """Have these services and no others."""
        self.sockets.changed(self.contents.apply(services))

    def die(self) -> None:
        """Close all files, as the kernel does for who is killed."""
        self.sockets.close()
        self.tables.close()


@pytest.fixture
def cgroup(servers: Servers) -> Iterator[Path]:
    """A cgroup of the test's own."""
    assert servers
    with new_cgroup() as path:
        yield path


def ids(pins: Path) -> dict[str, int]:
    """The links that are pinned."""
    found = {}
    for name in NAMES:
        link = links.from_pin(pins / "socket" / "links" / name)
        found[name] = link.id if isinstance(link, links.Link) else 0
        link.close()
    return found


@needs_lists
def test_it_works_on_without_its_process_and_is_taken_over(cgroup: Path, pins: Path) -> None:
    """Links, notes and counters stay; the programs in the links are the next process's."""
    first = Process(pins, cgroup)
    first.apply(service(), service(protocol="udp"))
    with Child(cgroup) as child:
        child.run("make('u', AF_INET, SOCK_DGRAM)")
        child.run(f"S['u'].connect(('{VIP}', {PORT}))")
        before = ids(pins)
        first.die()
        assert child.run(f"tcp('{VIP}', {PORT})")[1] == [VIP, PORT]
        second = Process(pins, cgroup)
        assert ids(pins) == before
        assert child.run("S['u'].getpeername()") == [VIP, PORT]
        assert child.run(f"tcp('{VIP}', {PORT})")[1] == [VIP, PORT]
        counted = second.sockets.counters()
        assert counted.verdicts["connect"]["balanced"] == 3
        assert sum(each.connects for found in counted.services for each in found.backends) == 3
        second.apply()
        assert second.sockets.end_stale()[:2] == (1, 0)
        second.sockets.detach()
        second.die()
        assert "errno" in child.run(f"tcp('{VIP}', {PORT})")
    assert not (pins / "socket").exists()


@needs_lists
def test_one_that_had_no_table_of_connections_is_taken_over(cgroup: Path, pins: Path) -> None:
    """Whose notes are all at the sockets, and whose sockets' end no program sees."""
    first = Process(pins, cgroup)
    first.apply(service())
    slots = first.sockets.program.maps["socket_slots"]
    with Child(cgroup) as child:
        cookie = child.run("make('before')")
        record = np.zeros((), slots.value_dtype)
        record["cookie"] = cookie + 1
        slots.update(cookie % slots.max_entries, record)
        child.run(f"S['before'].connect(('{VIP}', {PORT}))")
        (pins / "socket" / "links" / "sock_release").unlink()
        (pins / "socket" / "maps" / "socket_slots").unlink()
        first.die()
        second = Process(pins, cgroup)
        assert child.run("S['before'].getpeername()") == [VIP, PORT]
        after = child.run("make('after')")
        child.run(f"S['after'].connect(('{VIP}', {PORT}))")
        second.die()
        third = Process(pins, cgroup)
        for name in ("before", "after"):
            assert child.run(f"S['{name}'].getpeername()") == [VIP, PORT]
        listed = third.sockets.listing().read("notes")
        assert {cookie, after} == set(listed["cookie"].tolist())
        child.run("S.pop('after').close()")
        _, left = third.sockets.program.maps["socket_slots"].snapshot()
        assert not left["cookie"].any()
        third.sockets.detach()
        third.die()


@needs_lists
@pytest.mark.thorough
def test_tables_of_another_size_are_taken_over(cgroup: Path, pins: Path) -> None:
    """No connection fails meanwhile; notes, clients and counters come along."""
    from dataclasses import replace  # noqa: PLC0415

    first = Process(pins, cgroup)
    first.apply(service("192.0.2.99"), service(), service(protocol="udp"))
    with Child(cgroup) as child:
        child.run("make('u', AF_INET, SOCK_DGRAM)")
        child.run(f"S['u'].connect(('{VIP}', {PORT}))")
        for _ in range(9):
            child.run(f"tcp('{VIP}', {PORT})")
        by_backend = _by_backend(first)
        first.die()
        larger = SharedMaps(replace(LIMITS, services=128, backends=512), pins / "lb2")
        contents = Contents(larger)
        contents.apply([service(protocol="udp"), service()])
        second = SocketBalancer(larger, contents, cgroup, pins / "socket")
        assert child.run("S['u'].getpeername()") == [VIP, PORT]
        found = second.counters()
        assert found.verdicts["connect"]["balanced"] == 10
        carried = {each.service: each.verdicts["connect"]["balanced"] for each in found.services}
        assert carried == {"tcp-192.0.2.10-8080": 9, "udp-192.0.2.10-8080": 1}
        assert {
            (each.service, str(backend.address)): backend.connects
            for each in found.services
            for backend in each.backends
        } == by_backend
        second.changed(contents.apply([service()]))
        assert second.end_stale()[:2] == (1, 0)
        second.detach()
        second.close()
        larger.close()


def _by_backend(process: Process) -> dict[tuple[str, str], int]:
    return {
        (each.service, str(backend.address)): backend.connects
        for each in process.sockets.counters().services
        for backend in each.backends
        if "192.0.2.99" not in each.service
    }


@pytest.mark.thorough
def test_no_connection_fails_while_processes_come_and_go(cgroup: Path, pins: Path) -> None:
    """Backends too."""
    with Child(cgroup) as child:
        code = (
            "def many(n):\n"
            f"    return [tcp('{VIP}', {PORT})[1] for _ in range(n)]\n"
        )  # fmt: skip
        child.run(code)
        for turn in range(10):
            process = Process(pins, cgroup)
            process.apply(service(backends=BACKENDS[turn % 3 : turn % 3 + 3]))
            process.die()
            assert child.run("many(100)") == [[VIP, PORT]] * 100
    detach(pins / "socket")


def test_without_pins_it_ends_with_its_object(cgroup: Path) -> None:
    """And nothing is left."""
    with closing(SharedMaps(LIMITS)) as tables, Child(cgroup) as child:
        contents = Contents(tables)
        with SocketBalancer(tables, contents, cgroup) as sockets:
            sockets.changed(contents.apply([service()]))
            assert child.run(f"tcp('{VIP}', {PORT})")[1] == [VIP, PORT]
        assert "errno" in child.run(f"tcp('{VIP}', {PORT})")
        assert Inventory().cgroup(cgroup, CONNECT4) == []


def test_others_programs_are_untouched(cgroup: Path, pins: Path, objects: Path) -> None:
    """They run before and after it, however they are attached, and stay when it goes."""
    with (
        loaded(objects) as theirs,
        attached_legacy(theirs.programs["connect4"], cgroup, CONNECT4, MULTI),
        Child(cgroup) as child,
    ):
        process = Process(pins, cgroup)
        process.apply(service())
        with attach_cgroup(theirs.programs["also_connect4"], cgroup, CONNECT4):
            names = [each.name for each in Inventory().cgroup(cgroup, CONNECT4)]
            assert names == ["connect4", "socket_connect4", "also_connect4"]
            assert child.run(f"tcp('{VIP}', {PORT})")[1] == [VIP, PORT]
            assert int(theirs.maps["calls"].lookup(CONNECT4)) == 1
            process.sockets.detach()
            process.die()
            names = [each.name for each in Inventory().cgroup(cgroup, CONNECT4)]
            assert names == ["connect4", "also_connect4"]


def test_what_lets_no_other_be_beside_it_is_named(cgroup: Path, objects: Path) -> None:
    """Nothing of ours is left then at any hook."""
    with (
        loaded(objects) as theirs,
        attached_legacy(theirs.programs["connect4"], cgroup, CONNECT4, NONE),
        closing(SharedMaps(LIMITS)) as tables,
    ):
        with pytest.raises(KernelError, match=r"program connect4 .*without a link and without"):
            SocketBalancer(tables, Contents(tables), cgroup)
        attached = [each.name for hook in HOOKS for each in Inventory().cgroup(cgroup, hook)]
        assert attached == ["connect4"]


def test_a_cgroup_that_is_removed_is_told_and_attached_to_again(pins: Path) -> None:
    """Once there is one of its name."""
    with new_cgroup() as above:
        path = above / "app"
        path.mkdir()
        process = Process(pins, path)
        process.apply(service())
        remove(path)
        wait_until(lambda: bool(process.sockets.places.lost()), seconds=60, what="it to be lost")
        process.sockets.follow()
        (trouble,) = process.sockets.troubles
        assert f"open cgroup {path}: No such file" in trouble
        path.mkdir()
        process.sockets.follow()
        assert process.sockets.troubles == ()
        with Child(path) as child:
            assert child.run("1") == 1
            before = process.sockets.counters().verdicts["connect"]
            child.run(f"tcp('{VIP}', {PORT})")
            assert process.sockets.counters().verdicts["connect"] != before
        process.sockets.detach()
        process.die()


@pytest.mark.thorough
def test_pins_that_are_removed_are_made_again(cgroup: Path, pins: Path) -> None:
    """So that its end costs nothing."""
    process = Process(pins, cgroup)
    process.apply(service())
    bpffs.remove_pins(pins / "socket")
    process.sockets.follow()
    before = ids(pins)
    process.die()
    with Child(cgroup) as child:
        assert child.run(f"tcp('{VIP}', {PORT})")[1] == [VIP, PORT]
    second = Process(pins, cgroup)
    assert ids(pins) == before
    second.sockets.detach()
    second.die()
