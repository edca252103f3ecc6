# SPDX-License-Identifier: Apache-2.0
"""What is attached, by whomever and in whichever way; iproute2 says the same of devices."""

from __future__ import annotations

import ctypes
import json
import socket
import subprocess
import threading
import time
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
from tests.prog.kernel.conftest import ip
from tests.prog.kernel.harness_caps import only
from tests.prog.kernel.harness_cgroups import (
    MULTI,
    NONE,
    OVERRIDE,
    attached_legacy,
    new_cgroup,
)

from towpath.kernel import _libc
from towpath.kernel.bpf import probe
from towpath.kernel.bpf.attach_types import AttachType
from towpath.kernel.bpf.attached import AttachedProgram, Inventory
from towpath.kernel.bpf.cgroups import attach_cgroup
from towpath.kernel.bpf.libbpf import _shared_object
from towpath.kernel.bpf.links import Link, attach_tc_egress, attach_tc_ingress, attach_xdp
from towpath.kernel.bpf.object import BpfObject
from towpath.kernel.bpf.query import query
from towpath.kernel.cgroup import mount_point, opened
from towpath.kernel.errors import CAP_BPF, CAP_NET_ADMIN, KernelError
from towpath.kernel.net import clsact
from towpath.kernel.net.netns import new_netns, unshare

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from towpath.kernel.bpf.programs import Program

CONNECT4 = AttachType.CGROUP_INET4_CONNECT
MS_BIND = 4096
ACCEPT_ALL = "1,6 0 0 4294967295,"  # classic BPF

T = TypeVar("T")


def told_filters(side: clsact.Side) -> list[tuple[int, int, int]]:
    """Priority, handle and program of the BPF filters that iproute2 sees on tp0."""
    command = ["tc", "-j", "filter", "show", "dev", "tp0", side]
    shown = subprocess.run(command, check=True, capture_output=True).stdout
    filters = [each for each in json.loads(shown) if each["kind"] == "bpf" and "options" in each]
    options = [(each["pref"], each["options"]) for each in filters]
    return [
        (priority, int(each["handle"], 16), each.get("prog", {}).get("id", 0))
        for priority, each in options
    ]


def tc(arguments: str, *more: str) -> None:
    """Run iproute2's other command."""
    subprocess.run(["tc", *arguments.split(), *more], check=True)


def brief(rows: list[AttachedProgram]) -> list[tuple[str, str, str]]:
    """Hook, how, and the program's name."""
    return [(each.hook, each.how, each.name) for each in rows]


def in_a_part(path: Path, ask: Callable[[Path], T]) -> T:
    """What a thread answers that sees a cgroup as the root of all."""
    found: list[T | Exception] = []

    def alone() -> None:
        try:
            unshare(mounts=True)
            Path("/run/part").mkdir()
            _libc.mount(str(path), "/run/part", None, MS_BIND)
            found.append(ask(Path("/run/part")))
        except Exception as error:  # noqa: BLE001 -- raised again below
            found.append(error)

    thread = threading.Thread(target=alone)
    thread.start()
    thread.join()
    if isinstance(found[0], Exception):
        raise found[0]
    return found[0]


# ---- XDP -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["native", "generic"])
def test_xdp_by_a_link(sample: BpfObject, veth: int, pins: Path, mode: Any) -> None:
    """All that is known of it."""
    program = sample.programs["count"]
    before = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    with attach_xdp(program, veth, mode) as link:
        link.pin(pins / "link")
        program.pin(pins / "program")
        (found,) = Inventory().xdp(veth)
        there = tuple(str(pins / name) for name in ("link", "program"))
        assert (found.hook, found.place, found.how) == ("xdp", "tp0", mode)
        assert (found.program_id, found.name) == (program.id, "count")
        assert (found.link_id, found.pins) == (link.id, there)
        assert str(found) == f"count (id {program.id}, link {link.id}, pinned at {there[0]})"
        command = ["ip", "-j", "-d", "link", "show", "tp0"]
        (told,) = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        assert told["xdp"]["prog"]["id"] == found.program_id
        assert told["xdp"]["prog"]["tag"] == found.tag == program.tag
    assert program.loaded_ns < before
    ago = datetime.now(UTC) - datetime.fromisoformat(found.loaded)
    assert abs(ago.total_seconds() - (before - program.loaded_ns) / 1e9) < 600
    assert Inventory().xdp(veth) == []


def test_xdp_without_a_link(sample: BpfObject, veth: int, pins: Path) -> None:
    """As `ip link` attaches it."""
    sample.programs["count"].pin(pins / "program")
    ip(f"link set dev tp0 xdpgeneric pinned {pins / 'program'}")
    (found,) = Inventory().xdp(veth)
    assert (found.how, found.name, found.link_id) == ("generic", "count", 0)
    assert found.pins == (str(pins / "program"),)


def test_links_of_another_network_namespace_are_not_mistaken(sample: BpfObject, veth: int) -> None:
    """A link tells its device's index and not in which namespace: then nobody knows."""
    program = sample.programs["count"]
    with ExitStack() as elsewhere:
        # The same program on a device of the same index.
        with new_netns():
            elsewhere.enter_context(socket.socket())  # keeps the namespace
            ip("link add tp0 type veth peer name tp1")
            elsewhere.enter_context(attach_xdp(program, veth, "generic"))
        assert Inventory().xdp(veth) == []
        with attach_xdp(program, veth) as link:
            (found,) = Inventory().xdp(veth)
            assert (found.program_id, found.link_id) == (program.id, None)
            elsewhere.close()
            assert Inventory().xdp(veth)[0].link_id == link.id


def test_programs_that_have_taken_the_places_of_functions(
    objects: Path, sample: BpfObject, veth: int
) -> None:
    """In the order of these, behind their dispatcher."""
    if b"\0target_obj_id\0" not in Path("/sys/kernel/btf/vmlinux").read_bytes():
        pytest.skip("this kernel does not tell what extensions extend")
    with BpfObject(objects / "extended.bpf.o") as dispatcher:
        dispatcher.load()
        program = dispatcher.programs["dispatch"]
        with extended(objects, program) as links:
            if not links:
                pytest.skip("this kernel lets no program extend another")
            with attach_xdp(program, veth), attach_tc_ingress(sample.programs["let_pass"], veth):
                rows = Inventory().device(veth)
                assert [(each.how, each.name) for each in rows[:3]] == [
                    ("native", "dispatch"),
                    ("extension", "first"),
                    ("extension", "second"),
                ]
                assert [each.link_id for each in rows[1:3]] == list(reversed(links))
                assert len(rows) == 4


@contextmanager
def extended(objects: Path, program: Program) -> Iterator[list[int]]:
    """Put programs into the places of functions, the last one first; their links' ids.

    None where the kernel can't.
    """
    lib = _shared_object()
    for name in ("bpf_object__open_file", "bpf_object__find_program_by_name"):
        getattr(lib, name).restype = ctypes.c_void_p
    lib.bpf_program__attach_freplace.restype = ctypes.c_void_p
    pointer = ctypes.c_void_p
    made = pointer(lib.bpf_object__open_file(bytes(objects / "extensions.bpf.o"), None))
    names = {"second": b"prog1", "first": b"prog0"}
    handles = {
        name: pointer(lib.bpf_object__find_program_by_name(made, name.encode())) for name in names
    }
    attached: list[Any] = []
    try:
        for name, function in names.items():
            assert lib.bpf_program__set_attach_target(handles[name], program.fd, function) == 0
        if lib.bpf_object__load(made) == 0:
            attached += [
                pointer(lib.bpf_program__attach_freplace(handles[name], 0, None)) for name in names
            ]
        yield [_link_id(lib.bpf_link__fd(each)) for each in attached]
    finally:
        for each in attached:
            lib.bpf_link__destroy(each)
        lib.bpf_object__close(made)


def _link_id(fd: int) -> int:
    (line,) = (
        line
        for line in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines()
        if line.startswith("link_id")
    )
    return int(line.split()[1])


# ---- tc ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["ingress", "egress"])
def test_filters_in_the_order_of_running(
    sample: BpfObject, veth: int, pins: Path, side: clsact.Side
) -> None:
    """By priority; of one priority the last one first. Those that aren't BPF aren't told."""
    for name in ("let_pass", "let_drop"):
        sample.programs[name].pin(pins / name)
    tc("qdisc add dev tp0 clsact")
    where = f"filter add dev tp0 {side} protocol all"
    tc(f"{where} pref 20 bpf da pinned {pins / 'let_pass'}")
    tc(f"{where} pref 10 bpf pinned {pins / 'let_drop'}")
    tc(f"{where} pref 10 bpf da pinned {pins / 'let_pass'}")
    tc(f"{where} pref 30 bpf bytecode", ACCEPT_ALL)
    # Where this kernel has another kind.
    subprocess.run(
        ["tc", *f"{where} pref 5 u32 match u32 0 0 classid 1:1".split()],
        check=False,
        stderr=subprocess.DEVNULL,
    )
    rows = Inventory().tc(veth, side)
    names = ["let_pass", "let_drop", "let_pass", "classic BPF"]
    assert brief(rows) == [(f"tc {side}", "clsact", name) for name in names]
    assert {(each.place, each.link_id) for each in rows} == {("tp0", 0)}
    assert str(rows[3]) == "classic BPF"
    told = told_filters(side)
    found = clsact.filters(veth, side)
    assert [(each.priority, each.handle, each.program_id) for each in found] == told
    assert [each.direct for each in found] == [True, False, True, False]
    assert [each.program_id for each in rows] == [number for *_, number in told]
    other: clsact.Side = "egress" if side == "ingress" else "ingress"
    assert Inventory().tc(veth, other) == []


def test_an_ingress_qdisc_has_one_side(sample: BpfObject, veth: int, pins: Path) -> None:
    """The kernel would tell its filters for the other one, too."""
    sample.programs["let_pass"].pin(pins / "program")
    assert Inventory().tc(veth, "ingress") == []
    tc("qdisc add dev tp0 ingress")
    assert Inventory().tc(veth, "ingress") == []
    tc(f"filter add dev tp0 ingress bpf da pinned {pins / 'program'}")
    assert brief(Inventory().tc(veth, "ingress")) == [("tc ingress", "clsact", "let_pass")]
    assert Inventory().tc(veth, "egress") == []


def test_links_come_before_filters(sample: BpfObject, veth: int) -> None:
    """Where there are links to tc; the first one is the one that was put before the others."""
    programs = sample.programs
    with clsact.attach(programs["let_drop"], veth):
        if not probe.tcx():
            assert brief(Inventory().tc(veth, "ingress")) == [("tc ingress", "clsact", "let_drop")]
            return
        with attach_tc_ingress(programs["let_pass"], veth) as link:
            lib = _shared_object()
            hook = int(AttachType.TCX_INGRESS)
            assert isinstance(link, Link)
            assert lib.bpf_prog_attach(programs["let_drop"].fd, veth, hook, 0) == 0
            rows = Inventory().tc(veth, "ingress")
            assert [(each.how, each.name, each.link_id) for each in rows] == [
                ("tcx", "let_pass", link.id),
                ("tcx", "let_drop", 0),
                ("clsact", "let_drop", 0),
            ]
            assert lib.bpf_prog_detach2(programs["let_drop"].fd, veth, hook) == 0


def test_a_device_has_all_of_its_hooks(sample: BpfObject, veth: int) -> None:
    """In the order in which a packet that comes in meets them."""
    programs = sample.programs
    with (
        attach_xdp(programs["count"], veth),
        attach_tc_ingress(programs["let_pass"], veth),
        attach_tc_egress(programs["let_drop"], veth),
    ):
        rows = Inventory().device(veth)
        how = "tcx" if probe.tcx() else "clsact"
        assert brief(rows) == [
            ("xdp", "native", "count"),
            ("tc ingress", how, "let_pass"),
            ("tc egress", how, "let_drop"),
        ]
    assert Inventory().device(veth) == []
    with pytest.raises(KernelError, match="no device has index 12345"):
        Inventory().device(12345)


# ---- Cgroups -------------------------------------------------------------------------------------


def where(rows: list[AttachedProgram]) -> list[tuple[str, str, str, int | None]]:
    """Name, cgroup, how, and link."""
    return [(each.name, each.place, each.how, each.link_id) for each in rows]


def test_what_runs_in_a_cgroup_may_be_attached_above_it(
    sockets: BpfObject, cgroup: Path, pins: Path
) -> None:
    """Its own first; each with the cgroup that it is attached to."""
    mine, theirs = sockets.programs["connect4"], sockets.programs["also_connect4"]
    with (
        new_cgroup(cgroup) as below,
        attach_cgroup(theirs, cgroup, CONNECT4) as above,
        attached_legacy(mine, cgroup, CONNECT4, MULTI),
        attach_cgroup(mine, below, CONNECT4) as link,
    ):
        link.pin(pins / "link")
        rows = Inventory().cgroup(below, CONNECT4)
        assert {each.hook for each in rows} == {"connect4"}
        assert where(rows) == [
            ("connect4", str(below), "multi", link.id),
            ("also_connect4", str(cgroup), "multi", above.id),
            ("connect4", str(cgroup), "multi", 0),
        ]
        assert [each.pins for each in rows] == [(str(pins / "link"),), (), ()]
        assert where(Inventory().cgroup(cgroup, CONNECT4)) == where(rows[1:])
        assert [each.program_id for each in rows] == [mine.id, theirs.id, mine.id]
        with opened(below) as fd:
            assert query(fd, CONNECT4).programs == (mine.id,)
    assert Inventory().cgroup(cgroup, CONNECT4) == []


@pytest.mark.parametrize(("flags", "how"), [(NONE, "exclusive"), (OVERRIDE, "override")])
def test_programs_without_links(sockets: BpfObject, cgroup: Path, flags: int, how: str) -> None:
    """What they allow others; what is overridden doesn't run, and isn't told."""
    theirs = sockets.programs["also_connect4"]
    with new_cgroup(cgroup) as below, attached_legacy(theirs, cgroup, CONNECT4, flags):
        assert where(Inventory().cgroup(below, CONNECT4)) == [
            ("also_connect4", str(cgroup), how, 0)
        ]
        if flags == OVERRIDE:
            with attach_cgroup(sockets.programs["connect4"], below, CONNECT4) as link:
                assert where(Inventory().cgroup(below, CONNECT4)) == [
                    ("connect4", str(below), "multi", link.id)
                ]


def test_one_program_by_several_links(sockets: BpfObject, cgroup: Path) -> None:
    """Each is told, in order; whose is whose can't be said if one has no link."""
    program = sockets.programs["connect4"]
    with (
        attach_cgroup(program, cgroup, CONNECT4) as first,
        attach_cgroup(program, cgroup, CONNECT4) as second,
    ):
        links = [each.link_id for each in Inventory().cgroup(cgroup, CONNECT4)]
        assert links == [first.id, second.id]
        with attached_legacy(program, cgroup, CONNECT4, MULTI):
            links = [each.link_id for each in Inventory().cgroup(cgroup, CONNECT4)]
            assert links == [None, None, None]


def test_more_than_one_query_has_room_for(sockets: BpfObject, cgroup: Path) -> None:
    """A hook takes 64, and in effect are those of all levels."""
    program = sockets.programs["connect4"]
    with new_cgroup(cgroup) as below, ExitStack() as attached:
        for path in (cgroup, below):
            for _ in range(64):
                attached.enter_context(attach_cgroup(program, path, CONNECT4))
        rows = Inventory().cgroup(below, CONNECT4)
        assert [each.place for each in rows] == [str(below)] * 64 + [str(cgroup)] * 64
        assert len({each.link_id for each in rows}) == 128


def test_all_hooks_of_a_cgroup(sockets: BpfObject, cgroup: Path) -> None:
    """Those of programs of any kind."""
    for path in (cgroup, mount_point()):
        mine = {each.id for each in sockets.programs.values()}
        assert not {each.program_id for each in Inventory().cgroup_hooks(path)} & mine
    with (
        attach_cgroup(sockets.programs["connect4"], cgroup, CONNECT4),
        attach_cgroup(sockets.programs["sock_ops"], cgroup, AttachType.CGROUP_SOCK_OPS),
        attach_cgroup(sockets.programs["egress"], cgroup, AttachType.CGROUP_INET_EGRESS),
    ):
        rows = [each for each in Inventory().cgroup_hooks(cgroup) if each.place == str(cgroup)]
        assert [(each.hook, each.name) for each in rows] == [
            ("egress", "egress"),
            ("sockops", "sock_ops"),
            ("connect4", "connect4"),
        ]


def test_what_lies_above_what_is_mounted_has_no_place(sockets: BpfObject, cgroup: Path) -> None:
    """It runs all the same, and is told, where a container sees a part of the hierarchy only."""
    with new_cgroup(cgroup) as below, attach_cgroup(sockets.programs["connect4"], cgroup, CONNECT4):
        (found,) = in_a_part(below, lambda path: Inventory().cgroup(path, CONNECT4))
        assert (found.name, found.place, found.how, found.link_id) == ("connect4", "", "", None)


# ---- Rights --------------------------------------------------------------------------------------


def test_without_rights_ids_are_all_there_is(
    sample: BpfObject, veth: int, cgroup: Path, sockets: BpfObject
) -> None:
    """Who may not look programs up learns how many there are, and where."""
    with (
        attach_xdp(sample.programs["count"], veth),
        attach_tc_ingress(sample.programs["let_pass"], veth),
        attach_cgroup(sockets.programs["connect4"], cgroup, CONNECT4) as link,
    ):
        with only(CAP_BPF, CAP_NET_ADMIN):
            rows = [*Inventory().device(veth), *Inventory().cgroup(cgroup, CONNECT4)]
        assert [(each.hook, each.name, each.tag, each.loaded) for each in rows] == [
            (hook, "", "", "") for hook in ("xdp", "tc ingress", "connect4")
        ]
        assert rows[2].link_id is None
        assert rows[2].program_id == link.program_id
        assert str(rows[2]) == f"program (id {link.program_id})"
        with only(CAP_NET_ADMIN), pytest.raises(KernelError, match="needs CAP_SYS_ADMIN"):
            Inventory().tracepoint("xdp_redirect_err")
        with (
            only(),
            pytest.raises(KernelError, match=r"at connect4: .*needs CAP_.*CAP_NET_ADMIN$"),
        ):
            Inventory().cgroup(cgroup, CONNECT4)


def test_a_hook_that_this_kernel_does_not_have(cgroup: Path) -> None:
    """Is told as that."""
    with (
        opened(cgroup) as fd,
        pytest.raises(KernelError, match=r"programs at 9999: .*not have that"),
    ):
        query(fd, 9999)
