# SPDX-License-Identifier: Apache-2.0
"""Places of programs: the same for every hook, from one process to the next."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.prog.kernel.conftest import ip
from tests.prog.kernel.harness_cgroups import (
    NONE,
    SECONDS,
    Inside,
    Listener,
    attached_legacy,
    dead_port,
    loaded,
    new_cgroup,
    remove,
)

from towpath.datapath.attach.places import Places
from towpath.kernel.bpf import links
from towpath.kernel.bpf.attach_types import AttachType
from towpath.kernel.bpf.hooks import Cgroup, Hook, Tc, Tracepoint, Xdp
from towpath.kernel.bpf.object import BpfObject
from towpath.kernel.errors import KernelError
from towpath.kernel.net import clsact
from towpath.lab.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from towpath.kernel.bpf.programs import Program

CONNECT4 = AttachType.CGROUP_INET4_CONNECT
TRACEPOINT = "xdp_redirect_err"

# Takes a place as an agent does, says so, and waits to be killed.
_AGENT = """
import sys
from pathlib import Path
from towpath.datapath.attach.places import Places
from towpath.kernel.bpf.hooks import Cgroup
from towpath.kernel.bpf.object import BpfObject

path, port, pins, cgroup, hook = sys.argv[1:]
made = BpfObject(path)
made.rodata["instead"] = int(port)
made.load()
program, hook = made.programs["connect4"], Cgroup(Path(cgroup), int(hook))
place = Places(Path(pins)).take("connect4", program, hook)
print(place.link.id, place.adopted, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def killed(objects: Path, cgroup: Path, pins: Path) -> Iterator[Callable[[int], int]]:
    """Have an agent take a place, and kill it."""

    def begin(port: int) -> int:
        arguments = [objects / "cgroups.bpf.o", port, pins, cgroup, int(CONNECT4)]
        command = [sys.executable, "-c", _AGENT, *map(str, arguments)]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as agent:
            assert agent.stdout is not None
            number, adopted = agent.stdout.readline().split()
            assert adopted == "False"
            agent.send_signal(signal.SIGKILL)
        return int(number)

    yield begin
    for pin in pins.iterdir():
        links.from_pin(pin).detach()


# ---- Every hook ----------------------------------------------------------------------------------


def hooks(veth: int, cgroup: Path) -> dict[str, Hook]:
    """One of each kind."""
    return {
        "xdp": Xdp(veth),
        "tc ingress": Tc(veth, "ingress"),
        "tc egress": Tc(veth, "egress"),
        "cgroup": Cgroup(cgroup, CONNECT4),
        "tracepoint": Tracepoint(TRACEPOINT),
    }


PROGRAMS = {
    "xdp": ("count", "grow"),
    "tc ingress": ("let_pass", "let_drop"),
    "tc egress": ("let_pass", "let_drop"),
    "cgroup": ("connect4", "also_connect4"),
    "tracepoint": ("errors", "typed_errors"),
}


@pytest.fixture
def programs(sample: BpfObject, sockets: BpfObject, traced: BpfObject) -> dict[str, Program]:
    """Load some for each hook."""
    return {**sample.programs, **sockets.programs, **traced.programs}


def there(hook: Hook, programs: dict[str, Program]) -> list[str]:
    """Which of these programs are at a hook; a tracepoint is everybody's."""
    ids = [each.program_id for each in hook.programs()]
    return [name for number in ids for name, each in programs.items() if each.id == number]


@pytest.mark.parametrize("kind", list(PROGRAMS))
def test_the_verbs_are_the_same_at_every_hook(
    programs: dict[str, Program], veth: int, cgroup: Path, kind: str
) -> None:
    """Taken, replaced, listed and given up."""
    hook = hooks(veth, cgroup)[kind]
    first, second = PROGRAMS[kind]
    places = Places()
    place = places.take("it", programs[first], hook)
    assert (place.adopted, place.lost, place.program.name) == (False, False, first)
    assert hook.has(place.link)
    assert there(hook, programs) == [first]
    assert not {each.program_id for each in place.others()} & {programs[first].id}
    assert places.take("it", programs[second], hook) is place
    assert there(hook, programs) == [second]
    places.replace([place], programs[first])
    assert there(hook, programs) == [first]
    assert [str(each) for each in others(kind, veth, cgroup) if each.has(place.link)] == []
    places.drop("it")
    assert list(places) == []
    assert there(hook, programs) == []


def others(kind: str, veth: int, cgroup: Path) -> list[Hook]:
    """Hooks that are not that one, some of which look alike."""
    alike: list[Hook] = [Xdp(veth + 1), Tc(veth + 1), Cgroup(cgroup.parent, CONNECT4)]
    alike += [Cgroup(cgroup, AttachType.CGROUP_INET6_CONNECT), Tracepoint("xdp_redirect")]
    return alike + [hook for name, hook in hooks(veth, cgroup).items() if name != kind]


@pytest.mark.parametrize("kind", PROGRAMS)
def test_the_next_process_finds_what_was_pinned(
    programs: dict[str, Program], veth: int, cgroup: Path, pins: Path, kind: str
) -> None:
    """It puts its program there; one that doesn't fit changes nothing."""
    hook = hooks(veth, cgroup)[kind]
    first, second = PROGRAMS[kind]
    before = Places(pins)
    before.take("it", programs[first], hook)
    before.close()
    assert there(hook, programs) == [first]

    wrong = Places(pins)
    with pytest.raises(KernelError):
        wrong.take("it", programs["let_pass" if kind == "xdp" else "count"], hook)
    assert list(wrong) == []
    wrong.give_up()
    assert there(hook, programs) == [first]
    assert [path.name for path in pins.iterdir()] == ["it"]

    after = Places(pins)
    assert after.take("it", programs[second], hook).adopted
    wait_until(lambda: there(hook, programs) == [second], seconds=SECONDS, what="the first to go")
    assert [path.name for path in pins.iterdir()] == ["it"] == list(after.pinned())
    after.close()

    last = Places(pins)
    last.drop("it")
    last.drop("it")
    wait_until(lambda: there(hook, programs) == [], seconds=SECONDS, what="the second to go")
    assert last.pinned() == ()


@pytest.mark.parametrize("back", [False, True])
def test_an_xdp_program_for_dispatchers(
    objects: Path, veth: int, pins: Path, *, back: bool
) -> None:
    """Its link takes none that was loaded for others, nor theirs it: it is attached anew."""
    with BpfObject(objects / "sample.bpf.o") as one, BpfObject(objects / "sample.bpf.o") as other:
        (one if back else other).for_slots()
        for each in (one, other):
            each.load()
        before = Places(pins)
        before.take("it", one.programs["count"], Xdp(veth))
        before.close()
        after = Places(pins)
        after.take("it", other.programs["count"], Xdp(veth))
        assert there(Xdp(veth), {"new": other.programs["count"]}) == ["new"]
        assert after.pinned() == ("it",)
        after.detach()


# ---- Cgroups, from one agent to the next ---------------------------------------------------------


def test_a_killed_agents_place_is_adopted(
    objects: Path, cgroup: Path, pins: Path, killed: Callable[[int], int]
) -> None:
    """Connections go where its program sends them, then where the next one's does."""
    port = dead_port()
    with Listener("A") as first, Listener("B") as second, Inside(cgroup) as inside:
        number = killed(first.port)
        assert inside.connect(port) == "A"
        with loaded(objects, second.port) as mine:
            places = Places(pins)
            place = places.take("connect4", mine.programs["connect4"], Cgroup(cgroup, CONNECT4))
            assert isinstance(place.link, links.Link)
            assert (place.adopted, place.link.id) == (True, number)
            assert place.others() == []
            assert inside.connect(port) == "B"
            places.close()
        assert inside.connect(port) == "B"


def test_no_connection_sees_no_program_from_one_agent_to_the_next(
    objects: Path, cgroup: Path, pins: Path, killed: Callable[[int], int]
) -> None:
    """However often they come and go, under a name that changes on the way."""
    with (
        Listener("A") as first,
        Listener("B") as second,
        loaded(objects, first.port) as one,
        loaded(objects, second.port) as other,
        Inside(cgroup) as inside,
    ):
        killed(first.port)
        where, agents = pins / "connect4", 0
        with inside.connecting(dead_port()) as came:
            while agents < 20 or min(first.served, second.served) < 100:
                agents += 1
                name = f"name{agents % 2}"
                places = Places(pins / "links")
                places.take_over(where, name)
                program = (one, other)[agents % 2].programs["connect4"]
                assert places.take(name, program, Cgroup(cgroup, CONNECT4)).adopted
                places.close()
                where = pins / "links" / name
        Places(pins / "links").detach()
    assert set(came) == {"A", "B"}


def test_of_two_pins_the_newer_stays(sockets: BpfObject, cgroup: Path, pins: Path) -> None:
    """An older one is ended, unless it names the same link; none is fine."""
    hook = Cgroup(cgroup, CONNECT4)
    older, newer = pins / "older", Places(pins / "links")
    newer.take_over(older, "connect4")
    place = newer.take("connect4", sockets.programs["connect4"], hook)
    place.link.pin(older)
    newer.take_over(older, "connect4")
    assert not older.exists()
    assert [each.program_id for each in hook.programs()] == [sockets.programs["connect4"].id]
    other = hook.attach(sockets.programs["also_connect4"])
    other.pin(older)
    other.close()
    assert [each.name for each in place.others()] == ["also_connect4"]
    newer.take_over(older, "connect4")
    wait_until(lambda: not place.others(), seconds=SECONDS, what="the older link to end")
    newer.detach()


def test_what_can_not_be_taken_over_stays(sockets: BpfObject, cgroup: Path, pins: Path) -> None:
    """Without pins of its own, and into another file system."""
    link = Cgroup(cgroup, CONNECT4).attach(sockets.programs["connect4"])
    link.pin(pins / "older")
    with pytest.raises(KernelError, match=r"take over .*/older: there is no directory of pins"):
        Places().take_over(pins / "older", "connect4")
    with pytest.raises(KernelError, match=r"take over .*/older as /run/links/connect4: .*EXDEV"):
        Places(Path("/run/links")).take_over(pins / "older", "connect4")
    assert (pins / "older").exists()
    assert link.attached
    link.detach()


def test_a_place_without_its_cgroup_is_lost_and_found_again(
    sockets: BpfObject, cgroup: Path, pins: Path
) -> None:
    """A cgroup of the same name is another one; who is told takes the place again."""
    path = cgroup / "pod"
    path.mkdir()
    hook, program = Cgroup(path, CONNECT4), sockets.programs["connect4"]
    places = Places(pins)
    place = places.take("pod", program, hook)
    stays = places.take("cgroup", program, Cgroup(cgroup, CONNECT4))
    assert places.lost() == []
    path.rmdir()
    wait_until(lambda: place.lost, seconds=SECONDS, what="the place to be lost")
    assert places.lost() == [place]
    with pytest.raises(KernelError, match=rf"open cgroup {path}: No such file"):
        places.take("pod", program, hook)
    places.replace(places, sockets.programs["also_connect4"])
    assert stays.program.name == "also_connect4"
    path.mkdir()
    again = places.take("pod", program, hook)
    assert (again.lost, again.adopted) == (False, False)
    assert {each.name for each in places} == {"pod", "cgroup"}
    assert [each.program_id for each in hook.programs()][:1] == [program.id]
    places.close()
    remove(path)
    path.mkdir()
    # The next process has the pin of the one that was removed.
    again = Places(pins).take("pod", program, hook)
    assert (again.lost, again.adopted) == (False, False)
    again.link.detach()
    stays.link.detach()


def test_a_pin_of_another_place_is_not_adopted(
    sockets: BpfObject, cgroup: Path, pins: Path
) -> None:
    """It is ended: the name stands for another cgroup now."""
    program = sockets.programs["connect4"]
    with new_cgroup() as before:
        Places(pins).take("connect4", program, Cgroup(before, CONNECT4)).link.close()
        places = Places(pins)
        place = places.take("connect4", program, Cgroup(cgroup, CONNECT4))
        assert not place.adopted
        assert Cgroup(before, CONNECT4).programs() == []
        assert len(Cgroup(cgroup, CONNECT4).programs()) == 1
        places.detach()


def test_who_else_is_there_is_told(sockets: BpfObject, cgroup: Path, pins: Path) -> None:
    """By name and cgroup; a place that nobody can have leaves no pin."""
    program, other = sockets.programs["connect4"], sockets.programs["also_connect4"]
    places = Places(pins)
    with new_cgroup(cgroup) as below:
        place = places.take("connect4", program, Cgroup(below, CONNECT4))
        with Cgroup(cgroup, CONNECT4).attach(other):
            assert [(each.name, each.place) for each in place.others()] == [
                ("also_connect4", str(cgroup))
            ]
        places.detach()
        with (
            attached_legacy(other, cgroup, CONNECT4, NONE),
            pytest.raises(KernelError, match=rf"{other.name} \(id {other.id}\) is attached"),
        ):
            places.take("connect4", program, Cgroup(below, CONNECT4))
    assert list(places) == []
    assert places.pinned() == ()


# ---- Devices -------------------------------------------------------------------------------------


def test_a_place_without_its_device_is_lost(sample: BpfObject, veth: int, pins: Path) -> None:
    """Whether by a link or by a filter."""
    places = Places(pins)
    taken = [
        places.take("xdp", sample.programs["count"], Xdp(veth)),
        places.take("tc", sample.programs["let_pass"], Tc(veth)),
    ]
    assert places.lost() == []
    ip("link del tp0")
    assert places.lost() == taken
    places.detach()


class Filter(Tc):
    """Tc's ingress as before Linux 6.6."""

    def attach(self, program: Program) -> links.Attachment:
        """Without a link, whatever this kernel has."""
        return clsact.attach(program, self.ifindex, self.side)


@pytest.mark.parametrize("kind", [Xdp, Tc, Filter])
def test_a_place_on_a_device_that_is_back_is_taken_again(
    programs: dict[str, Program], veth: int, pins: Path, kind: type[Hook]
) -> None:
    """Though it has the index of the one before; by who had it, and by the next process."""
    hook: Hook = kind(veth)  # type: ignore[call-arg]
    name = "count" if kind is Xdp else "let_pass"
    places = Places(pins)
    places.take("it", programs[name], hook)
    for again in (places, Places(pins)):
        ip("link del tp0")
        ip(f"link add tp0 index {veth} type veth peer name tp1")
        assert there(hook, programs) == []
        assert not again.take("it", programs[name], hook).adopted
        assert there(hook, programs) == [name]
    again.detach()
