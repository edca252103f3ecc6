# SPDX-License-Identifier: Apache-2.0
"""Programs at the hooks of cgroups: attached, replaced, beside others, without their cgroup."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.prog.kernel.harness_caps import only
from tests.prog.kernel.harness_cgroups import (
    MULTI,
    NONE,
    OVERRIDE,
    SECONDS,
    Inside,
    Listener,
    attached_legacy,
    dead_port,
    loaded,
    new_cgroup,
    remove,
)

from towpath.kernel.bpf import links
from towpath.kernel.bpf.attach_types import CGROUP_HOOKS, AttachType, LinkType, hook_name
from towpath.kernel.bpf.attached import Inventory
from towpath.kernel.bpf.btf import Btf
from towpath.kernel.bpf.cgroups import attach_cgroup
from towpath.kernel.bpf.programs import Program, ProgramType
from towpath.kernel.cgroup import cgroup_id, is_cgroup
from towpath.kernel.errors import KernelError
from towpath.lab.waiting import wait_until

if TYPE_CHECKING:
    from enum import IntEnum

    from towpath.kernel.bpf.object import BpfObject

CONNECT4 = AttachType.CGROUP_INET4_CONNECT
CONNECT6 = AttachType.CGROUP_INET6_CONNECT
# What the fixture has no program for: nothing here uses them.
OTHERS = {"getsockopt", "setsockopt", "device", "sysctl"}
HOOKS = {hook: name for hook, name in CGROUP_HOOKS.items() if name not in OTHERS}
C_NAMES = {"sockops": "sock_ops"}


def calls(sockets: BpfObject) -> dict[str, int]:
    """How often each program has run."""
    return {name: int(sockets.maps["calls"].lookup(hook)) for hook, name in HOOKS.items()}


# ---- Attaching -----------------------------------------------------------------------------------


def test_every_hook_is_run_for_the_processes_of_its_cgroup(
    sockets: BpfObject, cgroup: Path
) -> None:
    """For those, for no others, and not once detached."""
    with new_cgroup() as other, Inside(cgroup) as inside, Inside(other) as outside:
        with ExitStack() as attached:
            for hook, name in HOOKS.items():
                program = sockets.programs[C_NAMES.get(name, name)]
                link = attached.enter_context(attach_cgroup(program, cgroup, hook))
                assert (link.mode, link.attach_type, link.ifindex) == ("cgroup", hook, 0)
                assert link.cgroup_id == cgroup_id(cgroup) == cgroup.stat().st_ino
                assert link.program_id == program.id
                assert link.attached
            assert outside.ask("hooks") == "done"
            assert set(calls(sockets).values()) == {0}
            assert inside.ask("hooks") == "done"
            ran = calls(sockets)
            assert [name for name, number in ran.items() if not number] == []
        assert inside.ask("hooks") == "done"
        # A packet may have come, and a socket been released, before the last was detached.
        assert calls(sockets)["connect4"] == ran["connect4"]
        assert calls(sockets)["recvmsg6"] == ran["recvmsg6"]


def test_a_program_decides_where_connections_go(objects: Path, cgroup: Path) -> None:
    """Without it there is nobody."""
    port = dead_port()
    with (
        Listener("A") as listener,
        loaded(objects, listener.port) as redirecting,
        Inside(cgroup) as inside,
    ):
        assert inside.connect(port) == "ConnectionRefusedError"
        with attach_cgroup(redirecting.programs["connect4"], cgroup, CONNECT4):
            assert inside.connect(port) == "A"
        assert inside.connect(port) == "ConnectionRefusedError"


def test_no_connection_sees_no_program_while_it_is_replaced(objects: Path, cgroup: Path) -> None:
    """Each goes to the one's listener or to the other's; without a program there is nobody."""
    with (
        Listener("A") as first,
        Listener("B") as second,
        loaded(objects, first.port) as one,
        loaded(objects, second.port) as other,
        Inside(cgroup) as inside,
        attach_cgroup(one.programs["connect4"], cgroup, CONNECT4) as link,
    ):
        number, updates = link.id, 0
        with inside.connecting(dead_port()) as came:
            while min(updates, first.served, second.served) < 100:
                link.update((other, one)[updates % 2].programs["connect4"])
                updates += 1
        assert link.id == number
    assert set(came) == {"A", "B"}


def test_a_pinned_link_is_found_again(sockets: BpfObject, cgroup: Path, pins: Path) -> None:
    """With its cgroup and hook; detaching ends it."""
    with attach_cgroup(sockets.programs["connect4"], cgroup, CONNECT4) as link:
        link.pin(pins / "connect4")
        link.close()
    with links.from_pin(pins / "connect4") as again:
        assert isinstance(again, links.Link)
        assert (again.cgroup_id, again.attach_type) == (cgroup_id(cgroup), CONNECT4)
        again.update(sockets.programs["also_connect4"])
        assert again.program_id == sockets.programs["also_connect4"].id
    assert not links.from_pin(pins / "connect4").attached


# ---- Beside others -------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [NONE, OVERRIDE])
def test_a_program_that_is_alone_is_named(sockets: BpfObject, cgroup: Path, flags: int) -> None:
    """It lets none be beside it, whatever it allows below."""
    other = sockets.programs["also_connect4"]
    message = (
        rf"attach program connect4 to connect4 of cgroup {cgroup}: .*EPERM.*"
        rf"program also_connect4 \(id {other.id}\) is attached to {cgroup} without a link and"
        r" without BPF_F_ALLOW_MULTI"
    )
    with attached_legacy(other, cgroup, CONNECT4, flags):
        with pytest.raises(KernelError, match=message):
            attach_cgroup(sockets.programs["connect4"], cgroup, CONNECT4)
        # At another hook of the same cgroup it is in nobody's way.
        attach_cgroup(sockets.programs["connect6"], cgroup, CONNECT6).detach()


def test_a_program_that_allows_none_below_is_named(sockets: BpfObject, cgroup: Path) -> None:
    """With the cgroup that it is attached to."""
    other = sockets.programs["also_connect4"]
    message = rf"program also_connect4 \(id {other.id}\) is attached to {cgroup} without"
    with (
        new_cgroup(cgroup) as middle,
        new_cgroup(middle) as below,
        attached_legacy(other, cgroup, CONNECT4, NONE),
        pytest.raises(KernelError, match=message),
    ):
        attach_cgroup(sockets.programs["connect4"], below, CONNECT4)


def test_a_program_that_may_be_overridden_is_and_that_is_told(
    sockets: BpfObject, cgroup: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Below its cgroup the link's program runs in its place."""
    other = sockets.programs["sock_create"]
    hook = AttachType.CGROUP_INET_SOCK_CREATE
    with (
        new_cgroup(cgroup) as below,
        loaded(sockets.path.parent) as mine,
        attached_legacy(other, cgroup, hook, OVERRIDE),
        Inside(below) as inside,
    ):
        assert inside.ask("keep") == "kept"
        assert calls(sockets)["sock_create"] == 1
        with attach_cgroup(mine.programs["sock_create"], below, hook):
            assert f"program sock_create (id {other.id}) does not run in {below}" in caplog.text
            assert inside.ask("keep") == "kept"
        assert (calls(sockets)["sock_create"], calls(mine)["sock_create"]) == (1, 1)
        assert inside.ask("keep") == "kept"
        assert calls(sockets)["sock_create"] == 2


@pytest.mark.parametrize("flags", [NONE, OVERRIDE, MULTI])
def test_what_others_attach_below_takes_nothing_away(
    sockets: BpfObject, cgroup: Path, flags: int
) -> None:
    """A link's program runs for all below, whatever is attached there later."""
    hook = AttachType.CGROUP_INET_SOCK_CREATE
    with (
        new_cgroup(cgroup) as below,
        loaded(sockets.path.parent) as theirs,
        attach_cgroup(sockets.programs["sock_create"], cgroup, hook),
        attached_legacy(theirs.programs["sock_create"], below, hook, flags),
        Inside(below) as inside,
    ):
        assert inside.ask("keep") == "kept"
        assert (calls(sockets)["sock_create"], calls(theirs)["sock_create"]) == (1, 1)


def test_links_and_programs_that_allow_others_run_together(
    sockets: BpfObject, cgroup: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody's place is taken, in the cgroup or below it."""
    hook = AttachType.CGROUP_INET_SOCK_CREATE
    with (
        loaded(sockets.path.parent) as theirs,
        attached_legacy(theirs.programs["sock_create"], cgroup, hook, MULTI),
        new_cgroup(cgroup) as below,
        attach_cgroup(sockets.programs["sock_create"], cgroup, hook),
        attach_cgroup(sockets.programs["sock_create"], below, hook),
        Inside(below) as inside,
    ):
        assert caplog.text == ""
        assert inside.ask("keep") == "kept"
        assert (calls(sockets)["sock_create"], calls(theirs)["sock_create"]) == (2, 1)


def test_programs_that_go_first_are_listed_first(sockets: BpfObject, cgroup: Path) -> None:
    """Whatever is attached below; of kernels that don't have that it is told."""
    hook = AttachType.CGROUP_INET_SOCK_CREATE
    with ExitStack() as undo:
        below = undo.enter_context(new_cgroup(cgroup))
        others = [undo.enter_context(loaded(sockets.path.parent)) for _ in range(2)]
        programs = [each.programs["sock_create"] for each in (sockets, *others)]
        lowest = undo.enter_context(attach_cgroup(programs[0], below, hook))
        last = undo.enter_context(attach_cgroup(programs[1], cgroup, hook))
        try:
            first = attach_cgroup(programs[2], cgroup, hook, preorder=True)
        except KernelError as error:
            assert "BPF_F_PREORDER (6.15)" in str(error)  # noqa: PT017 -- either is right
            return
        undo.enter_context(first)
        found = Inventory().cgroup(below, hook)
        listed = [(each.link_id, each.place, each.how) for each in found]
        assert [each for each in listed if each[1].startswith(str(cgroup))] == [
            (first.id, str(cgroup), "preorder"),
            (lowest.id, str(below), "multi"),
            (last.id, str(cgroup), "multi"),
        ]


@pytest.mark.parametrize("flags", [NONE, OVERRIDE])
def test_nobody_can_be_alone_where_a_link_is(sockets: BpfObject, cgroup: Path, flags: int) -> None:
    """Who wants that is refused, and the link stays."""
    other = sockets.programs["also_connect4"]
    with attach_cgroup(sockets.programs["connect4"], cgroup, CONNECT4) as link:
        with pytest.raises(PermissionError), attached_legacy(other, cgroup, CONNECT4, flags):
            pytest.fail("it was let in")
        assert link.attached


# ---- Without its cgroup --------------------------------------------------------------------------


def test_a_link_whose_cgroup_was_removed_says_so(sockets: BpfObject, pins: Path) -> None:
    """Also from its pin; what is attached elsewhere stays."""
    with new_cgroup() as stays, new_cgroup() as goes:
        kept = attach_cgroup(sockets.programs["connect4"], stays, CONNECT4)
        lost = attach_cgroup(sockets.programs["connect4"], goes, CONNECT4)
        lost.pin(pins / "lost")
        assert lost.attached
        remove(goes)
        wait_until(lambda: not lost.attached, seconds=SECONDS, what="the link to be detached")
        assert kept.attached
        with pytest.raises(KernelError, match=r"replace the program of link \d+: .*cgroup is gone"):
            lost.update(sockets.programs["also_connect4"])
        again = links.from_pin(pins / "lost")
        assert isinstance(again, links.Link)
        assert (again.attached, again.cgroup_id, again.mode) == (False, 0, "cgroup")
        again.detach()
        lost.detach()
        kept.detach()


def test_sockets_keep_the_hooks_of_a_cgroup_that_was_removed(
    sockets: BpfObject, cgroup: Path
) -> None:
    """A socket belongs to the cgroup that it was made in, for as long as it is open."""
    hook = AttachType.CGROUP_INET_SOCK_RELEASE
    with (
        new_cgroup() as goes,
        Inside(goes) as inside,
        attach_cgroup(sockets.programs["sock_release"], goes, hook) as link,
    ):
        assert inside.ask("keep") == "kept"
        inside.move(cgroup)
        remove(goes)
        assert not is_cgroup(goes)
        assert link.attached
        inside.process.kill()
        inside.process.wait()
        wait_until(lambda: not link.attached, seconds=SECONDS, what="the last socket to go")
        assert calls(sockets)["sock_release"] == 1


# ---- Bad input -----------------------------------------------------------------------------------


def test_what_is_no_cgroup_is_told(sockets: BpfObject, cgroup: Path, tmp_path: Path) -> None:
    """With where those are."""
    program = sockets.programs["connect4"]
    with pytest.raises(KernelError, match=f"open cgroup {tmp_path}: .*EBADF.* it is no cgroup; "):
        attach_cgroup(program, tmp_path, CONNECT4)
    with pytest.raises(KernelError, match=f"those are at {cgroup.parent}$"):
        attach_cgroup(program, tmp_path, CONNECT4)
    with pytest.raises(KernelError, match=f"open cgroup {cgroup}/none: No such file"):
        attach_cgroup(program, cgroup / "none", CONNECT4)
    with pytest.raises(KernelError, match=r"open cgroup .*/cgroup.procs: Not a directory"):
        attach_cgroup(program, cgroup / "cgroup.procs", CONNECT4)


def test_a_cgroup_of_version_1_is_told(sockets: BpfObject, tmp_path: Path) -> None:
    """It looks alike."""
    old = next(
        (path for path in Path("/sys/fs/cgroup").iterdir() if (path / "tasks").exists()), None
    )
    if old is None:
        pytest.skip("nothing of version 1 is mounted here")
    with pytest.raises(KernelError, match=r"it is no cgroup of version 2, but of version 1; "):
        attach_cgroup(sockets.programs["connect4"], old, CONNECT4)
    assert tmp_path


def test_another_hooks_program_is_told(sockets: BpfObject, cgroup: Path, pins: Path) -> None:
    """By name, if it is known what it was compiled for."""
    program = sockets.programs["connect6"]
    with pytest.raises(KernelError, match=r"EINVAL.* is not for connect4 but for connect6$"):
        attach_cgroup(program, cgroup, CONNECT4)
    program.pin(pins / "program")
    with (
        Program.from_pin(pins / "program") as unknown,
        pytest.raises(KernelError, match=r"EINVAL.* the program is not for connect4$"),
    ):
        attach_cgroup(unknown, cgroup, CONNECT4)
    with attach_cgroup(sockets.programs["connect4"], cgroup, CONNECT4) as link:
        message = "program connect6 is for connect6, the link is at connect4"
        with pytest.raises(KernelError, match=message):
            link.update(program)
        with pytest.raises(KernelError, match=f"replace the program of link {link.id}: .*EINVAL"):
            link.update(sockets.programs["sock_ops"])
        assert link.program_id == sockets.programs["connect4"].id


def test_packets_programs_are_for_both_directions(sockets: BpfObject, cgroup: Path) -> None:
    """As the kernel has it."""
    hook = AttachType.CGROUP_INET_EGRESS
    with attach_cgroup(sockets.programs["egress"], cgroup, hook) as link:
        link.update(sockets.programs["ingress"])
        assert link.program_id == sockets.programs["ingress"].id


def test_hooks_of_others_are_refused(sockets: BpfObject, cgroup: Path) -> None:
    """With those that there are."""
    with pytest.raises(ValueError, match=r"^xdp is no hook of cgroups; allowed: ingress, .*conn"):
        attach_cgroup(sockets.programs["connect4"], cgroup, AttachType.XDP)


def test_a_full_hook_is_told(sockets: BpfObject, cgroup: Path) -> None:
    """With what it takes."""
    with ExitStack() as attached:
        for _ in range(64):
            link = attach_cgroup(sockets.programs["connect4"], cgroup, CONNECT4)
            attached.enter_context(link)
        with pytest.raises(KernelError, match=r"E2BIG.*: 64 programs are there already$"):
            attach_cgroup(sockets.programs["also_connect4"], cgroup, CONNECT4)


def test_missing_capabilities_are_named(sockets: BpfObject, cgroup: Path) -> None:
    """Of who can't even ask who is in the way."""
    other = sockets.programs["also_connect4"]
    with (
        attached_legacy(other, cgroup, CONNECT4, NONE),
        only(),
        pytest.raises(KernelError, match=r"EPERM\): needs CAP_BPF and CAP_NET_ADMIN$"),
    ):
        attach_cgroup(sockets.programs["connect4"], cgroup, CONNECT4)


def test_hooks_are_called_as_libbpf_calls_them() -> None:
    """Each by a name of its own; others by their numbers."""
    assert hook_name(CONNECT4) == "connect4"
    assert hook_name(999) == "999"
    assert len(set(CGROUP_HOOKS.values())) == len(CGROUP_HOOKS)


@pytest.mark.host
@pytest.mark.parametrize(
    ("numbers", "enum", "prefix"),
    [
        (AttachType, "bpf_attach_type", "BPF_"),
        (LinkType, "bpf_link_type", "BPF_LINK_TYPE_"),
        (ProgramType, "bpf_prog_type", "BPF_PROG_TYPE_"),
    ],
)
def test_numbers_are_the_kernels(numbers: type[IntEnum], enum: str, prefix: str) -> None:
    """By its own types."""
    kernel = Btf.from_bytes(Path("/sys/kernel/btf/vmlinux").read_bytes()).enum(enum)
    theirs = {each.name: int(each) for each in kernel}
    assert [each for each in numbers if theirs[prefix + each.name] != each] == []
