# SPDX-License-Identifier: Apache-2.0
"""802.1Q: a tag is part of the frame here and a device of its own to routes and neighbours.

Ordinary devices stand for VLAN devices, which a kernel may have been built without. To the program
they are the same: an interface index that the tables map a tag to.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import pytest
from scapy.layers.l2 import Dot1Q
from tests.prog.lb.frames import VIPS, ether, frame, ip, segment
from tests.prog.lb.harness import Rig, service
from tests.prog.lb.network import (
    FAR,
    IN,
    NEAR,
    NEAR_UNRESOLVED,
    OUT,
    THIRD,
    THIRDS,
    neighbour,
)
from tests.prog.lb.oracle import HANDOFF, REDIRECT, TX

from towpath.kernel.net import interfaces, sysctl

BOTH_WAYS = True

if TYPE_CHECKING:
    from collections.abc import Iterator

COMBINATIONS = [(4, 4), (4, 6), (6, 6)]  # what is inside, what is outside
THIRD_UNRESOLVED = {v: neighbour(THIRD, v, 0x63) for v in (4, 6)}


@contextmanager
def vlans(rig: Rig, **found: tuple[str, int]) -> Iterator[None]:
    """Devices that stand for a tag on another device, as the load balancer would find them."""
    maps = rig.balancer._program.maps
    by_tag, by_device = maps["vlan_devices"], maps["egress_devices"]
    for name, (lower, vid) in found.items():
        upper, below = rig.devices[name], rig.devices[lower]
        tag = np.zeros((), by_tag.key_dtype)
        tag["ifindex"], tag["vid"] = below, vid
        way = np.zeros((), by_device.value_dtype)
        way["ifindex"], way["vlan"] = below, vid
        way["flags"] = by_device.lookup(below)["flags"]
        by_tag.update(tag, upper)
        by_device.update(upper, way)
        rig.world.vlan_devices[below, vid] = upper
        rig.world.egress_devices[upper] = below, vid
    rig.forget_ways()
    try:
        yield
    finally:
        # There are no VLAN devices: all that was written goes.
        rig.refresh_devices()
        rig.world.vlan_devices.clear()
        rig.world.egress_devices.clear()
        rig.forget_ways()


@pytest.fixture(autouse=True)
def forwarding_on_the_vlan_device() -> Iterator[None]:
    """Packets that come in with a tag come in there, as far as forwarding is concerned."""
    families: tuple[sysctl.Family, ...] = ("ipv4", "ipv6")
    before = [interfaces.set_forwarding(THIRD, family, on=True) for family in families]
    yield
    for family, was in zip(families, before, strict=True):
        interfaces.set_forwarding(THIRD, family, was)


def tagged(inside: int, vid: int, *, priority: int = 0, eligible: int = 0) -> bytes:
    """A frame with a tag: VLAN id, priority, drop eligible."""
    link = ether() / Dot1Q(vlan=vid, prio=priority, dei=eligible)
    return bytes(link / ip(inside) / segment())


def tag_of(out: bytes) -> int | None:
    """The tag control word of a frame, if it has one."""
    return int.from_bytes(out[14:16], "big") if out[12:14] == b"\x81\x00" else None


@pytest.mark.parametrize(("inside", "outside"), COMBINATIONS)
def test_a_tag_that_no_device_speaks_for_stays(rig: Rig, inside: int, outside: int) -> None:
    """With its priority, on what goes back where it came from; elsewhere it means nothing."""
    rig.serve(service(VIPS[inside], *NEAR[outside]))
    for vid, priority, eligible in ((1, 0, 0), (7, 3, 0), (4094, 7, 1), (4095, 0, 0), (0, 5, 0)):
        made = tagged(inside, vid, priority=priority, eligible=eligible)
        outcome = rig.expect(made, TX, IN)
        assert tag_of(outcome.frame) == priority << 13 | eligible << 12 | vid
        assert outcome.frame[16 + 2 + (20 if outside == 4 else 40) :] == made[18:]
        assert tag_of(rig.expect(made, REDIRECT, OUT).frame) is None


@pytest.mark.parametrize(("inside", "outside"), COMBINATIONS)
def test_a_tag_of_zeros_is_none(rig: Rig, inside: int, outside: int) -> None:
    """Neither VLAN nor priority: it says nothing and goes."""
    rig.serve(service(VIPS[inside], *NEAR[outside]))
    assert tag_of(rig.expect(tagged(inside, 0), TX).frame) is None


@pytest.mark.parametrize(("inside", "outside"), COMBINATIONS)
def test_tags_are_pushed_kept_and_popped(rig: Rig, inside: int, outside: int) -> None:
    """Between a device and a VLAN on it, all four ways."""
    with vlans(rig, tpx2=(IN, 100)):
        rig.serve(service(VIPS[inside], *THIRDS[outside]))
        assert tag_of(rig.expect(frame(inside), TX).frame) == 100
        # A priority is the sender's for this hop, not for the next.
        assert tag_of(rig.expect(tagged(inside, 100, priority=5), TX).frame) == 100
        assert tag_of(rig.expect(tagged(inside, 7), TX).frame) == 100
        rig.serve(service(VIPS[inside], *NEAR[outside]))
        assert tag_of(rig.expect(tagged(inside, 100), TX).frame) is None
        assert tag_of(rig.expect(tagged(inside, 7), TX).frame) == 7
        assert tag_of(rig.expect(frame(inside), TX).frame) is None


@pytest.mark.parametrize(("inside", "outside"), COMBINATIONS)
def test_a_tag_is_exchanged_for_another(rig: Rig, inside: int, outside: int) -> None:
    """From one VLAN of a device to another of the same."""
    with vlans(rig, tpx2=(IN, 100), tpx1=(IN, 0xFFE)):
        rig.serve(service(VIPS[inside], *FAR[outside]))
        assert tag_of(rig.expect(tagged(inside, 100), TX).frame) == 0xFFE
        rig.serve(service(VIPS[inside], *THIRDS[outside]))
        assert tag_of(rig.expect(tagged(inside, 0xFFE, priority=1), TX).frame) == 100


@pytest.mark.parametrize(("inside", "outside"), COMBINATIONS)
def test_a_vlan_of_another_device(rig: Rig, inside: int, outside: int) -> None:
    """Redirected to the device below, with the tag."""
    with vlans(rig, tpx2=(OUT, 300)):
        rig.serve(service(VIPS[inside], *THIRDS[outside]))
        assert tag_of(rig.expect(frame(inside), REDIRECT, IN).frame) == 300
        assert tag_of(rig.expect(tagged(inside, 9), REDIRECT, IN).frame) == 300
        assert tag_of(rig.expect(tagged(inside, 300), TX, OUT).frame) == 300


@pytest.mark.parametrize(("inside", "outside"), COMBINATIONS)
def test_tags_take_turns_within_a_jiffy(rig: Rig, inside: int, outside: int) -> None:
    """What is kept of a look-up holds for the tag that it was made for."""
    with vlans(rig, tpx2=(IN, 100)):
        rig.serve(service(VIPS[inside], NEAR[outside][0]))
        for _ in range(30):
            for made in (frame(inside), tagged(inside, 100), tagged(inside, 7, priority=1)):
                rig.expect(made, TX)


@pytest.mark.parametrize(("inside", "outside"), COMBINATIONS)
def test_the_kernel_pushes_tags_itself(rig: Rig, inside: int, outside: int) -> None:
    """A packet handed over goes out of the VLAN device, and comes without a tag."""
    with vlans(rig, tpx2=(IN, 100)):
        rig.serve(service(VIPS[inside], THIRD_UNRESOLVED[outside]))
        for made in (frame(inside), tagged(inside, 100), tagged(inside, 7)):
            rig.expect(made, HANDOFF)
        rig.serve(service(VIPS[inside], NEAR_UNRESOLVED[outside]))
        rig.expect(tagged(inside, 100), HANDOFF)


@pytest.mark.parametrize("outside", [4, 6])
def test_forwarding_is_the_vlan_devices_business(rig: Rig, outside: int) -> None:
    """A packet comes in on the VLAN device, whose setting is not the lower device's."""
    rig.serve(service(VIPS[4], *NEAR[outside]))
    with vlans(rig, tpx2=(IN, 100)):
        interfaces.set_forwarding(THIRD, "ipv4" if outside == 4 else "ipv6", on=False)
        rig.world.not_forwarding = {(rig.devices[THIRD], outside)}
        rig.expect(tagged(4, 100), "drop_no_forwarding")
        rig.expect(frame(4), TX)
        rig.expect(tagged(4, 7), TX)
        rig.world.not_forwarding.clear()


def test_vlan_devices_are_found_and_may_forward(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those on our devices: nothing else switches it on for a VLAN device made later."""
    for family in ("ipv4", "ipv6"):
        interfaces.set_forwarding(THIRD, family, on=False)
    upper, lower = rig.devices[THIRD], rig.devices[IN]
    with vlans(rig), monkeypatch.context() as patch:
        devices = rig.balancer._host.devices
        patch.setattr(devices, "vlans", lambda: [(upper, lower, 100)])
        patch.setattr(devices, "entrances", lambda at: [at, upper] if at == lower else [at])
        rig.refresh_devices()
        rig.world.vlan_devices[lower, 100] = upper
        rig.world.egress_devices[upper] = lower, 100
        for inside, outside in COMBINATIONS:
            rig.serve(service(VIPS[inside], *NEAR[outside]))
            assert tag_of(rig.expect(tagged(inside, 100), TX).frame) is None
            rig.serve(service(VIPS[inside], *THIRDS[outside]))
            assert tag_of(rig.expect(frame(inside), TX).frame) == 100
