# SPDX-License-Identifier: Apache-2.0
"""Programs attached to devices, by links and by the older way, with the same tests for both."""

from __future__ import annotations

import json
import logging
import socket
import struct
import subprocess
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from tests.prog.kernel.conftest import ip
from tests.prog.kernel.harness_caps import only

from towpath.kernel.bpf import links, probe
from towpath.kernel.bpf.attached import Inventory
from towpath.kernel.bpf.hooks import Tc
from towpath.kernel.bpf.links import (
    Link,
    attach_tc_egress,
    attach_tc_ingress,
    attach_xdp,
    xdp_mode,
    xdp_program_id,
)
from towpath.kernel.errors import CAP_BPF, KernelError
from towpath.kernel.fallback import fall_back
from towpath.kernel.net import clsact
from towpath.kernel.net.interfaces import device_index

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from towpath.kernel.bpf.object import BpfObject
    from towpath.kernel.bpf.programs import Program

    Attach = Callable[[Program, int], links.Attachment]

NATIVE_XDP_MTU = 9000  # of the peer: more than veth's native XDP can take
FRAME = bytes.fromhex("ffffffffffff 020000000001 88b5") + bytes(46)


def runs(sample: BpfObject) -> int:
    """How often the sample's XDP program has run."""
    return int(sample.maps[".bss"].lookup(0)["runs"])


class Wire:
    """Sends frames on tp1 and tells which of them tp0's stack gets to see."""

    def __init__(self) -> None:
        self._out = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        self._out.bind(("tp1", 0))
        self._in = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5))
        self._in.bind(("tp0", 0x88B5))
        self._in.settimeout(60)
        self._count = 0

    def send(self) -> bytes:
        """Send a frame that no other is like."""
        self._count += 1
        frame = FRAME[:14] + struct.pack("!I", self._count) + FRAME[18:]
        self._out.send(frame)
        return frame

    def receive(self) -> bytes:
        """Return the next frame that has come in."""
        return self._in.recv(2048)

    def close(self) -> None:
        """Close the sockets."""
        self._out.close()
        self._in.close()


# ---- XDP -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["native", "generic"])
def test_attached_program_sees_packets(sample: BpfObject, veth: int, mode: links.Mode) -> None:
    """In either mode; and no longer once detached."""
    wire = Wire()
    with attach_xdp(sample.programs["count"], veth, mode) as link:
        assert (link.mode, link.ifindex, link.why_generic) == (mode, veth, "")
        assert link.program_id == sample.programs["count"].id == xdp_program_id(veth)
        frame = wire.send()
        assert wire.receive() == frame
        assert runs(sample) > 0
        assert sample.maps[".bss"].lookup(0)["last_ifindex"] == veth
    assert (xdp_program_id(veth), xdp_mode(veth)) == (0, "")
    wire.close()


def test_auto_is_native_where_the_driver_can(sample: BpfObject, veth: int) -> None:
    """The best mode there is."""
    with attach_xdp(sample.programs["count"], veth) as link:
        assert (link.mode, link.why_generic) == ("native", "")


def test_auto_is_generic_where_it_can_not(sample: BpfObject, veth: int) -> None:
    """And the link says why."""
    ip(f"link set tp1 mtu {NATIVE_XDP_MTU}")
    with attach_xdp(sample.programs["count"], veth) as link:
        assert link.mode == "generic"
        assert "attach XDP program count to tp0 in native mode: " in link.why_generic
        assert "its driver refuses" in link.why_generic


def test_native_alone_is_refused_where_the_driver_can_not(sample: BpfObject, veth: int) -> None:
    """Asked for native, there is no falling back."""
    assert veth
    with pytest.raises(KernelError, match=r"to lo in native mode: .*its driver refuses"):
        attach_xdp(sample.programs["count"], device_index("lo"), "native")


@pytest.mark.parametrize("mode", ["auto", "native", "generic"])
def test_second_program_is_told_the_first(sample: BpfObject, veth: int, mode: links.Mode) -> None:
    """Who is in the way is in the message, whatever was asked for."""
    with attach_xdp(sample.programs["count"], veth, "native"):
        message = f"program {sample.programs['count'].id} is attached in native mode"
        with pytest.raises(KernelError, match=message):
            attach_xdp(sample.programs["grow"], veth, mode)


def test_wrong_program_type_is_refused(sample: BpfObject, veth: int) -> None:
    """A tc program is no XDP program, and that isn't the driver's fault."""
    with pytest.raises(KernelError, match=r"attach XDP program let_pass to tp0 .*EINVAL"):
        attach_xdp(sample.programs["let_pass"], veth)


def test_missing_device_is_refused(sample: BpfObject, veth: int) -> None:
    """With those that there are."""
    assert veth
    with pytest.raises(KernelError, match=r"no device has index 12345: there are: 1 lo"):
        attach_xdp(sample.programs["count"], 12345)


def test_missing_capabilities_are_named(sample: BpfObject, veth: int) -> None:
    """Filters take CAP_NET_ADMIN. Links don't: the program took it when it was loaded."""
    with only(CAP_BPF), pytest.raises(KernelError, match=r"EPERM.*needs CAP_NET_ADMIN$"):
        clsact.attach(sample.programs["let_pass"], veth)


def test_closing_an_unpinned_link_ends_it(sample: BpfObject, veth: int) -> None:
    """Nothing else holds it."""
    link = attach_xdp(sample.programs["count"], veth)
    link.close()
    link.close()
    assert xdp_program_id(veth) == 0
    link.detach()


def test_pinned_link_keeps_its_mode(sample: BpfObject, veth: int, pins: Path) -> None:
    """Whoever finds it knows how the program runs, and can replace it."""
    link = attach_xdp(sample.programs["count"], veth, "generic")
    link.pin(pins / "link")
    link.close()
    with Link.from_pin(pins / "link") as again:
        assert (again.mode, again.ifindex) == ("generic", veth)
        again.update(sample.programs["grow"])
        assert xdp_program_id(veth) == sample.programs["grow"].id
    assert xdp_program_id(veth) == 0


def test_link_of_a_gone_device_says_so(sample: BpfObject, veth: int) -> None:
    """The file descriptor stays, the attachment doesn't."""
    with attach_xdp(sample.programs["count"], veth) as link:
        ip("link del tp0")
        with pytest.raises(KernelError, match=r"replace the program of link \d+: .*device is gone"):
            link.update(sample.programs["grow"])


# ---- tc ------------------------------------------------------------------------------------------


@pytest.fixture(params=["best", "filter"])
def attach(request: pytest.FixtureRequest) -> Attach:
    """Attach to tc's ingress the best way that this kernel has, and as one without TCX would."""
    return attach_tc_ingress if request.param == "best" else clsact.attach


@pytest.fixture(params=["best", "filter"])
def attach_egress(request: pytest.FixtureRequest) -> Attach:
    """The same for tc's egress."""

    def filtered(program: Program, ifindex: int) -> links.Attachment:
        return clsact.attach(program, ifindex, "egress")

    return attach_tc_egress if request.param == "best" else filtered


def test_ingress_gets_a_link_where_there_are_any(sample: BpfObject, veth: int) -> None:
    """Otherwise a filter."""
    with attach_tc_ingress(sample.programs["let_pass"], veth) as attached:
        assert attached.mode == ("tcx" if probe.tcx() else "clsact")
        assert isinstance(attached, Link if probe.tcx() else clsact.TcFilter)


def test_a_filter_in_place_of_a_link_is_told(
    sample: BpfObject,
    veth: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """In the log, once."""
    caplog.set_level(logging.INFO)
    fall_back.cache_clear()
    monkeypatch.setattr(probe, "tcx", lambda: False)
    for _ in range(2):
        with attach_tc_ingress(sample.programs["let_pass"], veth) as attached:
            assert attached.mode == "clsact"
    told = [each.getMessage() for each in caplog.records]
    assert told == ["no TCX (Linux 6.6): programs at tc are filters, which outlive the agent"]


@pytest.mark.usefixtures("veth")
def test_generic_mode_is_told(sample: BpfObject, caplog: pytest.LogCaptureFixture) -> None:
    """Where the driver refuses what auto mode tries first, and why it does."""
    caplog.set_level(logging.INFO)
    fall_back.cache_clear()
    with attach_xdp(sample.programs["count"], device_index("lo")) as attached:
        assert attached.mode == "generic"
        assert attached.why_generic in caplog.text
    assert "no native XDP on lo: generic mode: " in caplog.text


def test_ingress_program_decides(sample: BpfObject, veth: int, attach: Attach) -> None:
    """A dropping program drops until it is replaced, and no packet goes by in between."""
    wire = Wire()
    with attach(sample.programs["let_pass"], veth) as attached:
        passed = wire.send()
        assert wire.receive() == passed
        attached.update(sample.programs["let_drop"])
        assert attached.program_id == sample.programs["let_drop"].id
        for _ in range(3):
            wire.send()
        attached.update(sample.programs["let_pass"])
        passed = wire.send()
        assert wire.receive() == passed
    wire.close()


def test_ingress_is_first_in_line(sample: BpfObject, veth: int, attach: Attach) -> None:
    """What is attached tells its device and how."""
    with attach(sample.programs["let_pass"], veth) as attached:
        assert attached.ifindex == veth
        assert attached.mode in {"tcx", "clsact"}
        assert attached.program_id == sample.programs["let_pass"].id


def test_ingress_is_found_by_its_pin(
    sample: BpfObject, veth: int, pins: Path, attach: Attach
) -> None:
    """Also after the program was replaced; detaching ends it, twice is once."""
    first = attach(sample.programs["let_pass"], veth)
    first.pin(pins / "ingress")
    first.update(sample.programs["let_drop"])
    first.close()
    again = links.from_pin(pins / "ingress")
    assert (again.ifindex, again.mode) == (veth, first.mode)
    assert again.program_id == sample.programs["let_drop"].id
    again.detach()
    again.detach()
    assert clsact.attached_id(veth) == 0


def test_egress_sees_what_the_stack_sends(
    sample: BpfObject, veth: int, attach_egress: Attach
) -> None:
    """And no longer once detached; the ingress is untouched."""
    wire = Wire()
    with attach_egress(sample.programs["let_drop"], veth) as attached:
        assert attached.ifindex == veth
        assert attached.program_id == sample.programs["let_drop"].id
        assert clsact.attached_id(veth) == 0
        assert not leaves()
        frame = wire.send()
        assert wire.receive() == frame
        attached.update(sample.programs["let_pass"])
        assert leaves()
        attached.update(sample.programs["let_drop"])
        assert not leaves()
    assert leaves()
    assert not has_clsact()
    wire.close()


def leaves() -> bool:
    """Whether a frame gets out of tp0: one that tc drops is not counted as sent."""
    before = sent()
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as out, suppress(OSError):
        out.bind(("tp0", 0))
        out.send(FRAME)
    return sent() > before


def sent() -> int:
    """Frames that tp0 has sent."""
    command = ("ip", "-s", "-j", "link", "show", "tp0")
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return int(json.loads(shown)[0]["stats64"]["tx"]["packets"])


def test_an_egress_filter_that_was_left_is_replaced(sample: BpfObject, veth: int) -> None:
    """Nobody else can have its place."""
    clsact.attach(sample.programs["let_pass"], veth, "egress")
    with clsact.attach(sample.programs["let_drop"], veth, "egress", replace=True) as again:
        assert again.program_id == sample.programs["let_drop"].id
    assert not has_clsact()


@pytest.mark.parametrize("side", ["ingress", "egress"])
def test_filters_with_handles_of_their_own_are_found_again(
    sample: BpfObject, veth: int, pins: Path, side: clsact.Side
) -> None:
    """Each by its pin, beside each other."""
    clsact.attach(sample.programs["let_pass"], veth, side).pin(pins / "first")
    clsact.attach(sample.programs["let_drop"], veth, side, handle=7).pin(pins / "second")
    first = clsact.TcFilter.from_pin(pins / "first")
    second = clsact.TcFilter.from_pin(pins / "second")
    assert (first.side, first.program_id) == (side, sample.programs["let_pass"].id)
    assert (second.side, second.program_id) == (side, sample.programs["let_drop"].id)
    second.detach()
    assert (first.attached, second.attached) == (True, False)
    first.detach()
    assert not has_clsact()


def test_filter_place_is_taken_once(sample: BpfObject, veth: int) -> None:
    """The second is told the first."""
    with clsact.attach(sample.programs["let_pass"], veth):
        message = f"program {sample.programs['let_pass'].id} is attached there"
        with pytest.raises(KernelError, match=message):
            clsact.attach(sample.programs["let_drop"], veth)


def test_filter_that_is_gone_is_told(sample: BpfObject, veth: int, pins: Path) -> None:
    """A pin outlives the filter, and says so."""
    filter_ = clsact.attach(sample.programs["let_pass"], veth)
    filter_.pin(pins / "filter")
    filter_.detach()
    with pytest.raises(KernelError, match=f"device {veth} has none"):
        links.from_pin(pins / "filter")


def test_qdisc_goes_with_the_filter_that_it_was_made_for(
    sample: BpfObject, veth: int, pins: Path
) -> None:
    """By whoever detaches it; from a device that is gone it has gone already."""
    clsact.attach(sample.programs["let_pass"], veth).detach()
    assert not has_clsact()
    clsact.attach(sample.programs["let_pass"], veth).pin(pins / "filter")
    assert has_clsact()
    links.from_pin(pins / "filter").detach()
    assert not has_clsact()
    with pytest.raises(KernelError, match="attach program count"):
        clsact.attach(sample.programs["count"], veth)
    assert not has_clsact()
    left = clsact.attach(sample.programs["let_pass"], veth)
    ip("link del tp0")
    left.detach()


def test_qdisc_stays_when_it_is_someone_elses_too(sample: BpfObject, veth: int, pins: Path) -> None:
    """Who made it first, or who uses it now, keeps it."""
    sample.programs["let_pass"].pin(pins / "other")
    egress = ("dev", "tp0", "egress")
    other = ("tc", "filter", "add", *egress, "bpf", "da", "pinned", str(pins / "other"))
    with clsact.attach(sample.programs["let_pass"], veth):
        subprocess.run(other, check=True)
    assert has_clsact()
    subprocess.run(("tc", "filter", "del", *egress), check=True)
    clsact.attach(sample.programs["let_pass"], veth).detach()
    assert has_clsact()


def has_clsact() -> bool:
    """Whether tp0 has the qdisc that filters need."""
    shown = subprocess.run(
        ("tc", "qdisc", "show", "dev", "tp0"), check=True, capture_output=True, text=True
    )
    return "clsact" in shown.stdout


def test_missing_device_has_no_filter(sample: BpfObject, veth: int) -> None:
    """The index is in the message."""
    assert veth
    with pytest.raises(KernelError, match="make a clsact qdisc on device 12345"):
        clsact.attach(sample.programs["let_pass"], 12345)
    assert clsact.attached_id(12345) == 0


def test_ingress_takes_tc_programs_only(sample: BpfObject, veth: int, attach: Attach) -> None:
    """An XDP program is refused by name."""
    with pytest.raises(KernelError, match=r"attach program count to tc ingress of .*EINVAL"):
        attach(sample.programs["count"], veth)


def test_pins_of_other_things_are_no_links(sample: BpfObject, pins: Path) -> None:
    """A program that is pinned there is named."""
    sample.programs["count"].pin(pins / "count")
    with pytest.raises(KernelError, match=r"open pinned link .*/count: a prog is pinned there"):
        links.from_pin(pins / "count")


@pytest.mark.parametrize("first", ["let_pass", "let_drop"])
@pytest.mark.parametrize("kind", ["tcx", "clsact"])
def test_a_program_runs_behind_those_that_it_is_to(
    sample: BpfObject, veth: int, pins: Path, monkeypatch: pytest.MonkeyPatch, kind: str, first: str
) -> None:
    """Whichever is attached first; a filter is found again by its pin."""
    if kind == "clsact":
        monkeypatch.setattr(probe, "tcx", lambda: False)
    elif not probe.tcx():
        pytest.skip("this kernel has no TCX")
    hooks = {"let_pass": Tc(veth), "let_drop": Tc(veth, handle=7, after=("let_pass",))}
    made = {}
    for name in (first, *hooks.keys() - {first}):
        made[name] = hooks[name].attach(sample.programs[name])
        assert hooks[name].has(made[name])
    assert [each.name for each in Inventory().tc(veth, "ingress")] == [*hooks]
    made["let_drop"].pin(pins / "second")
    again = links.from_pin(pins / "second")
    assert hooks["let_drop"].has(again)
    again.detach()
    assert [each.name for each in Inventory().tc(veth, "ingress")] == ["let_pass"]
    made["let_pass"].detach()
    assert not Inventory().tc(veth, "ingress")
