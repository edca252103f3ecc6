# SPDX-License-Identifier: Apache-2.0
"""What can't leave by XDP is sent by the kernel, and what can't go back by XDP_TX is redirected."""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest
from scapy.layers.l2 import Ether
from tests.prog.lb.frames import VIPS, frame
from tests.prog.lb.harness import Rig, service
from tests.prog.lb.harness_devices import devices
from tests.prog.lb.network import (
    FAR,
    FAR_UNRESOLVED,
    IN,
    MACS,
    NEAR,
    OUT,
    THIRD,
    THIRDS,
)
from tests.prog.lb.oracle import (
    AS_IT_IS,
    DRIVER,
    ECHO,
    HANDOFF,
    REDIRECT,
    TOO_BIG,
    TX,
    XDP_PASS,
    XDP_REDIRECT,
    XDP_TX,
)
from tests.prog.lb.test_echo import request
from tests.prog.lb.test_too_big import large
from tests.prog.lb.test_vlan import tag_of, tagged, vlans
from tests.prog.lb.told import note_length

from towpath.kernel.bpf.probe_fib import fib_lookup
from towpath.model import FlowTuple

if TYPE_CHECKING:
    from collections.abc import Collection

    from tests.prog.lb.oracle import Outcome
    from tests.prog.lb.oracle_parse import Address

COMBINATIONS = [(4, 4), (4, 6), (6, 6)]  # what is inside, what is outside
FORWARDINGS = ["dsr", "l2"]
BRIDGE = frozenset({"ethernet"})
VETH = frozenset({"ethernet", "redirect", "fragments"})
TUNNEL: frozenset[str] = frozenset()


def serve(
    rig: Rig, inside: int, backends: dict[int, list[Address]], outside: int, forwarding: str
) -> None:
    """The usual VIP of a family."""
    rig.serve(service(VIPS[inside], *backends[outside], forwarding=forwarding))


def noted(outcome: Outcome) -> tuple[int, int]:
    """Device and family in the note for the kernel."""
    note = outcome.frame[: note_length()]
    return int.from_bytes(note[8:12], "little"), int.from_bytes(note[12:16], "little")


def left(outcome: Outcome) -> bytes:
    """What is on the wire."""
    note = note_length() if outcome.action == XDP_PASS else 0
    return outcome.frame[note:]


@pytest.mark.parametrize("forwarding", FORWARDINGS)
@pytest.mark.parametrize(("inside", "outside"), COMBINATIONS)
def test_a_device_that_takes_no_frames_from_xdp(
    rig: Rig, inside: int, outside: int, forwarding: str
) -> None:
    """The kernel sends the frame that XDP would have sent, be the way known or just asked for."""
    serve(rig, inside, FAR, outside, forwarding)
    by_xdp = rig.expect(frame(inside), REDIRECT).frame
    with devices(rig, tpx1=BRIDGE):
        for _ in range(3):
            handed = rig.expect(frame(inside), HANDOFF)
            assert left(handed) == by_xdp
            assert not note_length() or noted(handed) == (rig.devices[OUT], AS_IT_IS)
    assert rig.expect(frame(inside), REDIRECT).frame == by_xdp


@pytest.mark.parametrize("forwarding", FORWARDINGS)
@pytest.mark.parametrize("can", [TUNNEL, None, frozenset({"redirect", "fragments", "tx"})])
@pytest.mark.parametrize(("inside", "outside"), COMBINATIONS)
def test_a_device_without_ethernet_or_of_which_nothing_is_known(
    rig: Rig, inside: int, outside: int, can: Collection[str] | None, forwarding: str
) -> None:
    """The kernel finds out whom to send to: what it says of MAC addresses there means nothing."""
    serve(rig, inside, FAR, outside, forwarding)
    with devices(rig, tpx1=can):
        for _ in range(3):
            handed = rig.expect(frame(inside), HANDOFF)
            assert left(handed)[:12] == bytes(12)
            family = 0 if forwarding == "dsr" else {4: 2, 6: 10}[outside]
            assert not note_length() or noted(handed) == (rig.devices[OUT], family)
    rig.expect(frame(inside), REDIRECT)


@pytest.mark.parametrize("forwarding", FORWARDINGS)
@pytest.mark.parametrize(("inside", "outside"), COMBINATIONS)
def test_back_out_of_a_device_that_xdp_tx_does_not_suit(
    rig: Rig, inside: int, outside: int, forwarding: str
) -> None:
    """By a redirect to the same device, counted like XDP_TX; else by the kernel."""
    serve(rig, inside, NEAR, outside, forwarding)
    rig.refresh_devices()  # before Linux 6.7 it chooses the source of what goes there
    by_tx = rig.expect(frame(inside), TX)
    assert by_tx.action == XDP_TX
    with devices(rig, tpx0=VETH):
        for _ in range(3):
            back = rig.expect(frame(inside), TX)
            assert (back.action, back.frame) == (XDP_REDIRECT, by_tx.frame)
        # Other devices' packets are redirected anyway.
        assert rig.expect(frame(inside), REDIRECT, OUT).frame == by_tx.frame
    with devices(rig, tpx0=BRIDGE):
        for _ in range(3):
            assert left(rig.expect(frame(inside), HANDOFF)) == by_tx.frame


@pytest.mark.parametrize(("inside", "outside"), COMBINATIONS)
def test_generic_mode_sends_anywhere(rig: Rig, inside: int, outside: int) -> None:
    """The kernel transmits then, whatever drivers can; what isn't Ethernet is left to it."""
    for backends, verdict in ((NEAR, TX), (FAR, REDIRECT)):
        serve(rig, inside, backends, outside, "dsr")
        with devices(rig, tpx0=BRIDGE | {"generic"}, tpx1=BRIDGE):
            rig.expect(frame(inside), verdict)
    with devices(rig, tpx0=BRIDGE | {"generic"}, tpx1=TUNNEL):
        rig.expect(frame(inside), HANDOFF)
    # It is how the program runs where the packet came in that counts.
    with devices(rig, tpx0=DRIVER, tpx1=BRIDGE | {"generic"}):
        rig.expect(frame(inside), HANDOFF)


@pytest.mark.parametrize("forwarding", FORWARDINGS)
@pytest.mark.parametrize(("inside", "outside"), COMBINATIONS)
def test_the_lower_device_decides_for_a_vlan_device(
    rig: Rig, inside: int, outside: int, forwarding: str
) -> None:
    """The kernel sends by it too, the tag in the frame."""
    serve(rig, inside, THIRDS, outside, forwarding)
    with devices(rig, tpx1=BRIDGE), vlans(rig, tpx2=(OUT, 100)):
        handed = rig.expect(frame(inside), HANDOFF)
        assert tag_of(left(handed)) == 100
        assert left(handed)[6:12] == MACS[THIRD]
        assert not note_length() or noted(handed) == (rig.devices[OUT], AS_IT_IS)


@pytest.mark.parametrize(("inside", "outside"), COMBINATIONS)
def test_a_tag_that_no_device_speaks_for_stays(rig: Rig, inside: int, outside: int) -> None:
    """Also if the kernel sends the frame back."""
    serve(rig, inside, NEAR, outside, "dsr")
    with devices(rig, tpx0=BRIDGE):
        handed = rig.expect(tagged(inside, 7, priority=3), HANDOFF)
        assert tag_of(left(handed)) == 3 << 13 | 7


@pytest.mark.parametrize("outside", [4, 6])
def test_an_unresolved_next_hop_is_unresolved_all_the_same(rig: Rig, outside: int) -> None:
    """Whatever can leave by its device."""
    rig.serve(service(VIPS[4], FAR_UNRESOLVED[outside]))
    for can in (DRIVER, BRIDGE, TUNNEL, None):
        with devices(rig, tpx1=can):
            rig.expect(frame(4), HANDOFF)


# ---- Answers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("vlan", [None, 7])
@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize(
    ("can", "action"),
    [(VETH, XDP_REDIRECT), (BRIDGE, XDP_PASS), (None, XDP_PASS), (BRIDGE | {"generic"}, XDP_TX)],
)
def test_answers_to_pings_go_back_in_the_same_way(
    rig: Rig, family: int, can: Collection[str] | None, action: int, vlan: int | None
) -> None:
    """Counted as answers, with the bytes that XDP_TX would send."""
    rig.serve(service(VIPS[family], *NEAR[family]))
    by_tx = rig.expect(request(family, vlan=vlan), ECHO).frame
    with devices(rig, tpx0=can):
        answer = rig.expect(request(family, vlan=vlan), ECHO)
        assert (answer.action, left(answer)) == (action, by_tx)
        if action == XDP_PASS and note_length():
            assert noted(answer) == (rig.devices[IN], AS_IT_IS)


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize(("can", "action"), [(VETH, XDP_REDIRECT), (BRIDGE, XDP_PASS)])
def test_so_do_answers_to_what_is_too_large(
    rig: Rig, family: int, can: Collection[str], action: int
) -> None:
    """For a way that is narrower than the client's."""
    if not fib_lookup().mtu:
        pytest.skip("the FIB look-up tells no MTU")
    rig.serve(service(VIPS[family], *FAR[family]))
    by_tx = rig.expect(large(family), TOO_BIG).frame
    with devices(rig, tpx0=can):
        answer = rig.expect(large(family), TOO_BIG)
        assert (answer.action, left(answer)) == (action, by_tx)


# ---- The table -----------------------------------------------------------------------------------


def test_devices_that_are_gone_are_taken_out(rig: Rig) -> None:
    """And those that are there are all in it."""
    table = rig.balancer._program.maps["egress_devices"]
    gone = max(each.index for each in rig.balancer._host.devices.interfaces) + 1
    table.update(gone, table.lookup(rig.devices[IN]))
    rig.refresh_devices()
    assert {int(key) for key in table.keys()} == {  # noqa: SIM118 -- no mapping
        each.index for each in rig.balancer._host.devices.interfaces
    }


def test_second_opinion_on_a_frame_for_the_kernel(rig: Rig) -> None:
    """Scapy reads the same next hop off it."""
    rig.serve(service(VIPS[4], ip_address("192.0.2.17")))
    with devices(rig, tpx0=BRIDGE):
        link = Ether(left(rig.expect(frame(4), HANDOFF)))
    assert (link.src, link.dst) == (MACS[IN].hex(":"), "02:00:00:00:02:11")


# ---- What traces say of it -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("can", "why"),
    [
        (BRIDGE, "tpx1 takes no frames from XDP"),
        (TUNNEL, "tpx1 takes packets without Ethernet frames"),
        (None, "it is not known what tpx1 takes from XDP"),
    ],
)
def test_a_trace_says_why_the_kernel_sends(rig: Rig, can: Collection[str] | None, why: str) -> None:
    """And by which device."""
    rig.serve(service(VIPS[4], *FAR[4]))
    flow = FlowTuple.parse(f"198.51.100.77:40000 -> {VIPS[4]}:80 tcp")
    assert rig.balancer.trace(flow).handoff is None
    with devices(rig, tpx1=can):
        found = rig.balancer.trace(flow, IN)
        assert (found.verdict, found.egress, found.handoff) == (HANDOFF, OUT, why)
    rig.serve(service(VIPS[4], FAR_UNRESOLVED[4]))
    assert rig.balancer.trace(flow).handoff == "the next hop is not resolved"
