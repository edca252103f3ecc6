# SPDX-License-Identifier: Apache-2.0
"""One device, several programs: what a dispatcher calls, keeps, and leaves behind.

Records and pins are read here as the protocol describes them, by other code than Towpath's.
"""

from __future__ import annotations

import os
import struct
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest
from tests.prog.kernel.conftest import ip, objects, opened, pins, veth
from tests.prog.kernel.harness_cgroups import SECONDS
from tests.prog.kernel.test_links import Wire, runs

from towpath.datapath.attach.places import Places
from towpath.kernel.bpf import bpffs, dispatched, dispatcher, links
from towpath.kernel.bpf.attached import Inventory
from towpath.kernel.bpf.dispatched import Dispatched
from towpath.kernel.bpf.dispatcher import Component
from towpath.kernel.bpf.hooks import Dispatcher, Xdp
from towpath.kernel.bpf.maps import Map
from towpath.kernel.bpf.object import BpfObject
from towpath.kernel.bpf.programs import BPF_F_XDP_HAS_FRAGS, Program
from towpath.kernel.errors import KernelError
from towpath.kernel.net.interfaces import device_index
from towpath.lab.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

__all__ = ["objects", "opened", "pins", "veth"]  # fixtures
XDP = bpffs.ROOT / "xdp"
PASS, DROP = 2, 1
NOBODY = 1 << 31
ELSEWHERE = "tp-dispatched"


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    """What a test leaves that failed is none of the next one's."""
    assert not dispatched.why_not()
    yield
    bpffs.remove_pins(XDP)


@pytest.fixture
def sample(opened: BpfObject) -> BpfObject:
    """Load the sample object, for slots."""
    opened.for_slots()
    opened.load()
    return opened


@pytest.fixture
def wire(veth: int) -> Iterator[Wire]:
    """Frames from tp1 to tp0."""
    assert veth
    made = Wire()
    yield made
    made.close()


@contextmanager
def beside(
    objects: Path,
    ifindex: int,
    priority: int,
    actions: frozenset[int] = frozenset((PASS,)),
    flags: int = 0,
) -> Iterator[Program]:
    """Somebody else's program in the dispatcher, which passes all packets."""
    with ExitStack() as undo:
        made = undo.enter_context(BpfObject(objects / "extensions.bpf.o"))
        template = undo.enter_context(dispatcher.loaded([]))
        made.autoload("second", on=False)
        made.extend("first", template.programs[dispatcher.NAME], "prog0")
        made.load()
        program = made.programs["first"]
        other = Component(program, priority, actions, flags)
        dispatcher.change(ifindex, lambda there: dispatched.placed([*there, other]), mode="native")
        yield program


def record(ifindex: int, size: int = 124) -> tuple[int, ...]:
    """The dispatcher's record, word by word as the protocol has them."""
    with Program.from_id(links.xdp_program_id(ifindex)) as program:
        assert program.name == "xdp_dispatcher"
        (number,) = program.map_ids
    with Map.from_id(number) as kept:
        data = kept.lookup(0).tobytes()
    assert len(data) == size
    return struct.unpack("=4B10I10I10I", data[:124])


def pinned() -> dict[str, list[str]]:
    """What is pinned below the protocol's directory."""
    return {
        each.name: sorted(pin.name for pin in each.iterdir())
        for each in XDP.iterdir()
        if not each.is_symlink()
    }


def directory(ifindex: int) -> str:
    """Where the pins of the dispatcher on a device are."""
    return f"dispatch-{ifindex}-{links.xdp_program_id(ifindex)}"


def names(ifindex: int) -> list[str]:
    """The dispatcher on a device, and what it calls."""
    with ExitStack() as undo:
        there = dispatcher.opened(ifindex)
        assert there is not None
        undo.enter_context(there)
        return [each.program.name for each in there.components]


@pytest.mark.parametrize("mode", ["native", "generic"])
def test_one_alone(sample: BpfObject, veth: int, wire: Wire, mode: dispatcher.Mode) -> None:
    """It sees packets, and is there as the protocol has it; nothing is left of it."""
    with Dispatched.attach(sample.programs["count"], veth, mode, 7) as link:
        assert (link.mode, link.ifindex, link.attached) == (mode, veth, True)
        assert link.program_id == sample.programs["count"].id
        frame = wire.send()
        assert wire.receive() == frame
        assert runs(sample) > 0
        assert sample.maps[".bss"].lookup(0)["last_ifindex"] == veth
        words = record(veth)
        assert words[:5] == (236, 2, 1, 0, NOBODY | 1 << PASS)
        assert words[14] == 7
        assert not any(words[5:14] + words[15:])
        assert pinned() == {directory(veth): ["prog0-link", "prog0-prog"]}
        assert list(map(str, XDP.iterdir())) == [str(XDP / directory(veth))]
    assert links.xdp_program_id(veth) == 0
    assert pinned() == {}
    link.detach()


def test_beside_another(objects: Path, sample: BpfObject, veth: int, wire: Wire) -> None:
    """By priority, with the other's actions; either goes without the other."""
    with ExitStack() as undo:
        undo.enter_context(beside(objects, veth, 60, frozenset((PASS, DROP))))
        link = Dispatched.attach(sample.programs["count"], veth, "native", 70)
        assert names(veth) == ["first", "towpath"]
        wire.send()
        wire.receive()
        assert runs(sample) > 0
        link.arrange(50)
        assert names(veth) == ["towpath", "first"]
        words = record(veth)
        assert words[4:7] == (NOBODY | 4, NOBODY | 6, 0)
        assert words[14:17] == (50, 60, 0)
        assert pinned() == {
            directory(veth): ["prog0-link", "prog0-prog", "prog1-link", "prog1-prog"]
        }
        assert [each.name for each in Inventory().xdp(veth)] in (
            ["xdp_dispatcher", "towpath", "first"],
            ["xdp_dispatcher"],  # this kernel doesn't tell what extensions extend
        )
        there = links.xdp_program_id(veth)
        link.arrange(50)
        assert links.xdp_program_id(veth) == there
        link.detach()
        assert names(veth) == ["first"]
        assert record(veth)[4:6] == (NOBODY | 6, 0)
        dispatcher.change(veth, lambda _: [])
    assert (links.xdp_program_id(veth), pinned()) == (0, {})


def test_another_ends_the_chain(objects: Path, sample: BpfObject, veth: int, wire: Wire) -> None:
    """What it returns isn't among its actions: nobody after it sees the packet."""
    with beside(objects, veth, 1, frozenset()):
        with Dispatched.attach(sample.programs["count"], veth, "native") as link:
            wire.send()
            wire.receive()
            assert runs(sample) == 0
            link.arrange(0)
            wire.send()
            wire.receive()
            assert runs(sample) > 0
        dispatcher.change(veth, lambda _: [])


def test_exchanged_and_found_again(
    objects: Path, sample: BpfObject, veth: int, pins: Path, wire: Wire
) -> None:
    """Whatever dispatcher others have made meanwhile."""
    link = Dispatched.attach(sample.programs["count"], veth, "native")
    link.pin(pins / "slot")
    link.close()
    with beside(objects, veth, 60):
        again = links.from_pin(pins / "slot")
        assert isinstance(again, Dispatched)
        assert (again.ifindex, again.attached, again.mode) == (veth, True, "native")
        assert again.program_id == sample.programs["count"].id
        again.update(sample.programs["grow"])
        assert again.program_id == sample.programs["grow"].id
        again.update(sample.programs["count"])
        wire.send()
        wire.receive()
        assert runs(sample) > 0
        dispatcher.change(veth, lambda there: [each for each in there if each.priority == 60])
        assert not again.attached
        again.detach()
        dispatcher.change(veth, lambda _: [])
    (pins / "slot").unlink()
    assert pinned() == {}


def test_what_nobody_holds_lets_packets_pass(
    objects: Path, sample: BpfObject, veth: int, wire: Wire
) -> None:
    """An owner that is killed leaves a component, which the next one takes away."""
    with beside(objects, veth, 60):
        link = Dispatched.attach(sample.programs["count"], veth, "native")
        link.close()

        def passes() -> bool:
            before = runs(sample)
            frame = wire.send()
            assert wire.receive() == frame
            return runs(sample) == before

        # The kernel empties it a moment later.
        wait_until(passes, seconds=SECONDS, what="the slot to be empty")
        assert names(veth) == ["towpath", "first"]
        with Dispatched.attach(sample.programs["count"], veth, "native"):
            assert names(veth) == ["towpath", "first"]
        assert names(veth) == ["first"]
        dispatcher.change(veth, lambda _: [])


def test_a_dispatcher_keeps_its_version(
    sample: BpfObject, veth: int, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has made it wouldn't add to an older one."""
    count = sample.programs["count"]
    monkeypatch.setattr(dispatcher, "FIRST", 3)
    with Dispatched.attach(count, veth, "native", 1):
        monkeypatch.undo()
        with Dispatched.attach(count, veth, "native", 2):
            assert record(veth, 128)[:3] == (236, 3, 2)
            wire.send()
            wire.receive()
            assert runs(sample) > 0


def test_a_program_alone_is_left_alone(sample: BpfObject, veth: int) -> None:
    """Whoever attached it hasn't left room: who it is and what to do is said."""
    other = sample.programs["grow"]
    with links.attach_xdp(other, veth):
        expected = rf"share the XDP hook of tp0 with program grow \(id {other.id}\): .*: it was .*"
        with pytest.raises(KernelError, match=expected + r"\(ip link set tp0 xdp off\)"):
            Dispatched.attach(sample.programs["count"], veth, "native")
        assert links.xdp_program_id(veth) == other.id
    assert not XDP.exists() or pinned() == {}


def test_a_dispatcher_keeps_its_mode(sample: BpfObject, veth: int) -> None:
    """And is full with ten programs."""
    count = sample.programs["count"]
    with ExitStack() as undo:
        for number in range(10):
            undo.enter_context(Dispatched.attach(count, veth, "generic", number))
        with pytest.raises(KernelError, match=r"it runs in generic mode"):
            Dispatched.attach(count, veth, "native")
        with pytest.raises(KernelError, match=r"call 11: .*: a dispatcher has room for 10"):
            Dispatched.attach(count, veth, "generic")
        assert len(names(veth)) == 10
    assert (links.xdp_program_id(veth), pinned()) == (0, {})


def test_frames_in_fragments(objects: Path, sample: BpfObject, veth: int) -> None:
    """They are taken if all take them. Where they are needed, who takes none is named."""
    count = sample.programs["count"]
    ip("link set tp1 mtu 9000")
    with pytest.raises(KernelError, match=r"its MTU may be .* and towpath takes none"):
        Dispatched.attach(count, veth, "native")
    with Dispatched.attach(count, veth, "native", 7, fragments=True) as link:
        words = record(veth)
        assert (link.fragments, words[3], words[24]) == (True, 1, BPF_F_XDP_HAS_FRAGS)
        there = links.xdp_program_id(veth)
        for refused in (
            lambda: beside(objects, veth, 60).__enter__(),
            lambda: link.arrange(7, fragments=False),
        ):
            with pytest.raises(KernelError, match=r"fragments, and (first|towpath) takes none"):
                refused()
            assert links.xdp_program_id(veth) == there
            assert list(pinned()) == [directory(veth)]
        with beside(objects, veth, 60, flags=BPF_F_XDP_HAS_FRAGS):
            words = record(veth)
            assert (words[3], words[24:26]) == (1, (BPF_F_XDP_HAS_FRAGS,) * 2)
            assert [link.fragments] == [True]
            ip("link set tp1 mtu 1500")
            link.arrange(7, fragments=False)
            words = record(veth)
            assert (words[3], words[24:26]) == (0, (0, BPF_F_XDP_HAS_FRAGS))
            assert [link.fragments] == [False]
        dispatcher.change(veth, lambda there: [each for each in there if each.priority == 7])
    assert (links.xdp_program_id(veth), pinned()) == (0, {})


def test_what_is_unwrapped_is_not_balanced_again(sample: BpfObject, veth: int) -> None:
    """Nobody gets into an order in which it would be."""
    count = sample.programs["count"]
    wrong = r"towpath_decap \(priority 20\) would be called before towpath \(priority (50|30)\)"
    decap = dispatched.DECAP_COMPONENT
    with Dispatched.attach(count, veth, "native") as balancer:
        with pytest.raises(KernelError, match=wrong):
            Dispatched.attach(count, veth, "native", 20, component=decap)
        assert names(veth) == ["towpath"]
        with Dispatched.attach(count, veth, "native", component=decap):
            assert names(veth) == ["towpath", "towpath_decap"]
            balancer.arrange(10)
        with Dispatched.attach(count, veth, "native", 20, component=decap):
            with pytest.raises(KernelError, match=wrong):
                balancer.arrange(30)
            assert names(veth) == ["towpath", "towpath_decap"]
            balancer.detach()
            with pytest.raises(KernelError, match=wrong):
                Dispatched.attach(count, veth, "native", 30)
            assert names(veth) == ["towpath_decap"]
    assert (links.xdp_program_id(veth), pinned()) == (0, {})


# ---- Devices and links ---------------------------------------------------------------------------


@contextmanager
def elsewhere(index: int) -> Iterator[None]:
    """Have tp0 in another network namespace; then again in this one, by another index."""
    ip(f"netns add {ELSEWHERE}")
    try:
        ip(f"link set tp0 netns {ELSEWHERE}")
        ip(f"link add tp2 index {index} type dummy")
        yield
        ip(f"-netns {ELSEWHERE} link set tp0 netns {os.getpid()}")
        ip("link set tp0 up")
    finally:
        ip(f"netns del {ELSEWHERE}")


@pytest.mark.parametrize("alone", [True, False])
def test_a_device_was_in_another_namespace(
    objects: Path, sample: BpfObject, veth: int, *, alone: bool
) -> None:
    """Its dispatcher has come along: others' programs are called as before, and Towpath's again."""
    count = sample.programs["count"]
    with ExitStack() as undo:
        if not alone:
            undo.enter_context(beside(objects, veth, 60))
        before = Dispatched.attach(count, veth, "native")
        with elsewhere(veth):
            assert not before.attached
            before.detach()
            assert len(pinned()) == (not alone)
        index = device_index("tp0")
        assert index != veth
        assert names(index) == ([] if alone else ["towpath", "first"])
        with Dispatched.attach(count, index, "native") as link:
            assert link.attached
            assert names(index) == ["towpath", *([] if alone else ["first"])]
            assert pinned().keys() == {directory(index)}
            wire = Wire()
            undo.callback(wire.close)
            wire.send()
            wire.receive()
            assert runs(sample) > 0
        if not alone:
            dispatcher.change(index, lambda _: [])
        assert (links.xdp_program_id(index), pinned()) == (0, {})


def test_a_link_wants_the_hook_that_others_share(
    objects: Path, sample: BpfObject, veth: int, pins: Path
) -> None:
    """It is refused before anything is given up; once they have gone it takes the place."""
    count = sample.programs["count"]
    before = Places(pins)
    before.take("it", count, Dispatcher(veth, "native"))
    before.close()
    after = Places(pins)
    with beside(objects, veth, 60):
        with pytest.raises(KernelError, match=r"link to tp0: .*shared with first: take them off"):
            after.take("it", count, Xdp(veth))
        assert names(veth) == ["towpath", "first"]
        with Places(pins).take("it", count, Dispatcher(veth, "native")).link as link:
            assert link.attached
            dispatcher.change(veth, lambda there: [x for x in there if x.priority != 60])
            after.take("it", count, Xdp(veth))
            assert links.xdp_program_id(veth) == count.id
    after.detach()
    assert (links.xdp_program_id(veth), pinned()) == (0, {})


# ---- Killed in the middle ------------------------------------------------------------------------


STEPS = {
    "as it pins the first": (bpffs, "pin"),
    "as it attaches": (dispatcher, "exchanged"),
    "as it unpins the old one": (bpffs, "remove_pins"),
}


@pytest.mark.parametrize("step", STEPS)
def test_a_change_that_was_killed_is_cleared_away(
    objects: Path,
    sample: BpfObject,
    veth: int,
    wire: Wire,
    step: str,
) -> None:
    """At any step packets are seen by all that are there; the next change removes what is left."""
    count = sample.programs["count"]
    with beside(objects, veth, 60), Dispatched.attach(count, veth, "native") as link:
        module, name = STEPS[step]
        _killed(lambda: link.arrange(70), module, name)
        wire.send()
        wire.receive()
        assert runs(sample) > 0
        assert link.attached
        assert set(names(veth)) == {"first", "towpath"}
        assert len(pinned()) == 2
        dispatcher.recover(veth)
        assert pinned().keys() == {directory(veth)}
        assert [each for each in XDP.iterdir() if each.is_symlink()] == []
        link.arrange(80)
        assert names(veth) == ["first", "towpath"]
        dispatcher.change(veth, lambda there: [each for each in there if each.priority == 80])
    assert (links.xdp_program_id(veth), pinned()) == (0, {})


def _killed(change: Callable[[], None], module: object, name: str) -> None:
    """Have a child begin a change, and end as it calls a function."""
    child = os.fork()
    if not child:
        setattr(module, name, lambda *_: os._exit(7))
        change()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
