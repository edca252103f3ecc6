# SPDX-License-Identifier: Apache-2.0
"""What goes into a dispatcher, in which order, and what a killed change has left.

The protocol is written down here once more: offsets by hand.
"""

from __future__ import annotations

import struct
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from towpath.kernel.bpf import dispatched, dispatcher, links
from towpath.kernel.bpf.dispatched import placed
from towpath.kernel.bpf.dispatcher import Component
from towpath.kernel.bpf.object import BpfObject
from towpath.kernel.errors import KernelError

if TYPE_CHECKING:
    from pathlib import Path

    from towpath.kernel.bpf.programs import Program

FRAGMENTS = 1 << 5
SIZES = {2: 124, 3: 128}


def component(
    name: str, priority: int, actions: frozenset[int] = frozenset((2,)), flags: int = 0
) -> Component:
    """A program that isn't in the kernel."""
    program = SimpleNamespace(name=name, id=priority, map_ids=())
    return Component(cast("Program", program), priority, actions, flags)


def record(components: list[Component], version: int) -> bytes:
    """What a dispatcher of a version is told."""
    name = {2: "dispatcher", 3: "dispatcher_v3"}[version]
    with BpfObject.packaged(name) as made:
        config: Any = made.rodata["conf"]
        assert list(made.rodata) == ["conf"]
    dispatcher.fill(config, components, version)
    return bytes(config.tobytes())


@pytest.mark.parametrize("version", [2, 3])
def test_record(version: int) -> None:
    """Each field where the protocol has it, and nothing else."""
    made = [component("a", 7), component("b", 50, frozenset((1, 2)), FRAGMENTS)]
    expected = bytearray(SIZES[version])
    expected[:4] = bytes((236, version, 2, 0))
    struct.pack_into("=2I", expected, 4, 1 << 31 | 4, 1 << 31 | 6)
    struct.pack_into("=2I", expected, 44, 7, 50)
    struct.pack_into("=2I", expected, 84, 0, FRAGMENTS)
    assert record(made, version) == bytes(expected)


@pytest.mark.parametrize(
    ("flags", "taken"), [([FRAGMENTS, FRAGMENTS], 1), ([FRAGMENTS, 0], 0), ([], 0)]
)
def test_fragments_are_taken_if_all_take_them(flags: list[int], taken: int) -> None:
    """One that doesn't would misread frames."""
    made = [component("a", n, flags=each) for n, each in enumerate(flags)]
    assert record(made, 2)[3] == taken


def test_who_takes_none_is_named() -> None:
    """So that an MTU that is refused is understood."""
    takes, first, second = (
        component("takes", 1, flags=FRAGMENTS),
        component("first", 2),
        component("second", 3),
    )
    assert dispatcher.refusing([takes]) == dispatcher.refusing([]) == ""
    assert dispatcher.refusing([takes, first]) == "first takes none"
    assert dispatcher.refusing([first, takes, second]) == "first, second take none"


@pytest.mark.parametrize(
    ("balancer", "decap", "allowed"),
    [(50, 50, True), (10, 50, True), (50, 49, False), (60, 0, False)],
)
def test_what_is_unwrapped_is_not_balanced_again(
    balancer: int,
    decap: int,
    allowed: bool,  # noqa: FBT001 -- a case's outcome
) -> None:
    """Whoever comes second is refused, and told what is allowed; others stand where they like."""
    there = [component("between", 55), component("towpath_decap", decap)]
    made = [*there, component("towpath", balancer)]
    if allowed:
        assert dispatched.ordered(1, made) == placed(made)
        return
    words = (
        rf"the XDP hook of lo: .*: towpath_decap \(priority {decap}\) would be called before"
        rf" towpath \(priority {balancer}\).*; allowed: the same priority"
    )
    with pytest.raises(KernelError, match=words):
        dispatched.ordered(1, made)
    assert dispatched.ordered(1, there) == placed(there)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("towpath_lb", r"share the hook too \(attach: dispatcher among its devices\)"),
        ("towpath_decap", r"share the hook too \(towpath decap --attach dispatcher\)"),
        ("somebodys", r"\(ip link set lo xdp off\), or have it loaded by xdp-loader"),
    ],
)
def test_who_leaves_no_room_is_told_how(name: str, hint: str) -> None:
    """What can share the hook is to do so; what can't has to go."""
    alone = component(name, 7).program
    with pytest.raises(KernelError, match=rf"with program {name} \(id 7\): .*{hint}"):
        dispatcher.config_of(alone, 1)


def test_actions_are_read_as_they_were_written() -> None:
    """The verdict that nobody returns is no action."""
    for actions in (frozenset[int](), frozenset((2,)), frozenset((0, 1, 2, 3, 4, 30))):
        data = record([component("a", 0, actions)], 2)
        assert dispatcher.actions_of(struct.unpack_from("=I", data, 4)[0]) == actions


def test_ten_and_no_more() -> None:
    """It has ten functions to replace."""
    assert record([component("a", n) for n in range(10)], 2)[2] == 10
    with pytest.raises(KernelError, match=r"call 11: .*a dispatcher has room for 10"):
        record([component("a", n) for n in range(11)], 2)


def test_order() -> None:
    """By priority, then by name; what is alike stays in its order."""
    first, second = component("same", 50), component("same", 50)
    others = [component("z", 1), component("b", 50), component("a", 51)]
    found = placed([others[2], first, others[1], second, others[0]])
    expected = [others[0], others[1], first, second, others[2]]
    assert [id(each) for each in found] == [id(each) for each in expected]


@pytest.mark.parametrize(
    ("there", "left"), [(7, {"7", "5"}), (9, {"9", "5"}), (0, {"5"}), (5, {"5"})]
)
def test_what_a_killed_change_has_left(
    there: int, left: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the two that it was about, the one that isn't on the device goes; others' stay."""
    monkeypatch.setattr(dispatcher, "directory", lambda: tmp_path)
    monkeypatch.setattr(links, "xdp_program_id", lambda _: there)
    for number in ("5", "7", "9"):
        (tmp_path / f"dispatch-3-{number}").mkdir()
        (tmp_path / f"dispatch-4-{number}").mkdir()
    journal = dispatcher.Journal(3)
    journal.write(7, 9)
    dispatcher.clear_away(4)
    dispatcher.clear_away(3)
    dispatcher.clear_away(3)
    assert {each.name.rpartition("-")[2] for each in tmp_path.glob("dispatch-3-*")} == left
    assert len(list(tmp_path.glob("dispatch-4-*"))) == 3
    assert journal.read() == ()
    assert not [each for each in tmp_path.iterdir() if each.is_symlink()]
