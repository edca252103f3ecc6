# SPDX-License-Identifier: Apache-2.0
"""A device that takes VLAN tags off frames doesn't, for as long as packets are balanced there.

A veth says that it does and can be told not to, which stands for a card here: it is otherwise left
out, since it is its peer that has tags beside frames. Frames are sent in tests/guest.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest
from tests.lab.harness_balancer import (
    DEVICE,
    PINS,
    SECOND,
    SMALL,
    add_second,
    device,
    ip,
    script,
)

from towpath import Device, LoadBalancer
from towpath.datapath.program import tags
from towpath.doctor.devices import vlan_tags
from towpath.kernel.bpf.bpffs import remove_pins
from towpath.kernel.errors import KernelError
from towpath.kernel.net.devices import Devices
from towpath.kernel.net.interfaces import device_index
from towpath.kernel.net.offloads import OFF, ON, RX_VLAN, Offload, State

if TYPE_CHECKING:
    from collections.abc import Iterator

VLANS, RENAMED = "tp-vlan", "tp-other"
TAG, STAG = RX_VLAN


@pytest.fixture(autouse=True)
def _device(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(tags, "_SAYS_NOTHING", frozenset[str]())
    with device():
        add_second()
        assert TAG.state(DEVICE) == State(on=True, fixed=False)
        yield
    remove_pins(PINS)


def balancer(*devices: str) -> LoadBalancer:
    """A load balancer on the first device unless others are named."""
    return LoadBalancer(*(devices or (DEVICE,)), limits=SMALL)


def vlan_on(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A VLAN device on a device, which not every kernel can have."""
    found = vars(Devices)["interfaces"].fget

    def interfaces(self: Devices) -> tuple[object, ...]:
        there = found(self)
        lower = next(each.index for each in there if each.name == name)
        return (*there, type(there[0])(9999, VLANS, lower=lower, vlan=10))

    monkeypatch.setattr(Devices, "interfaces", property(interfaces))


def fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have devices take tags off, whatever they are told."""
    monkeypatch.setattr(Offload, "state", lambda *_: State(on=True, fixed=True))


def test_it_is_off_where_packets_are_balanced_and_on_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """And nowhere else. A device of another name has its own back."""
    caplog.set_level(logging.INFO)
    with balancer() as lb:
        assert (TAG.read(DEVICE), STAG.read(DEVICE), TAG.read(SECOND)) == (OFF, OFF, ON)
        assert f"{TAG} of {DEVICE}: off, was on" in caplog.messages
        ip(f"link set {DEVICE} down\nlink set {DEVICE} name {RENAMED}\nlink set {RENAMED} up")
        assert lb.follow() != ()
        assert TAG.read(RENAMED) == OFF
    assert (TAG.read(RENAMED), STAG.read(RENAMED)) == (ON, ON)


def test_what_is_off_already_stays_so() -> None:
    """Afterwards, too."""
    TAG.write(DEVICE, OFF)
    with balancer():
        assert (TAG.read(DEVICE), STAG.read(DEVICE)) == (OFF, OFF)
    assert (TAG.read(DEVICE), STAG.read(DEVICE)) == (OFF, ON)


def test_who_switches_it_on_is_undone(caplog: pytest.LogCaptureFixture) -> None:
    """And told."""
    with balancer() as lb:
        TAG.write(DEVICE, ON)
        assert lb.follow() == ()
        assert TAG.read(DEVICE) == OFF
        (told,) = [each for each in caplog.messages if "somebody else" in each]
        assert told.startswith(f"{TAG} of {DEVICE} was set to on by somebody else")


def test_a_device_that_comes_later_is_told_so_too() -> None:
    """As is one that comes back."""
    with balancer(DEVICE, SECOND) as lb:
        ip(f"link delete {SECOND}")
        assert lb.follow() != ()
        add_second()
        assert TAG.read(SECOND) == ON
        assert lb.follow() == ()
        assert TAG.read(SECOND) == OFF
    assert TAG.read(SECOND) == ON


HOLDS = f"""
import signal
from pathlib import Path
from tests.lab.harness_balancer import SMALL
from towpath import LoadBalancer
from towpath.datapath.program import tags
tags._SAYS_NOTHING = frozenset()
lb = LoadBalancer("{DEVICE}", limits=SMALL, pins=Path("{PINS}"))
print("ready", flush=True)
signal.pause()
"""


def test_what_a_process_that_was_killed_has_switched_is_set_back_by_its_heir() -> None:
    """Until then tags stay in frames: packets are still balanced."""
    with script(HOLDS) as running:
        running.kill()
        running.wait()
    assert TAG.read(DEVICE) == OFF
    with LoadBalancer(DEVICE, limits=SMALL, pins=PINS):
        assert TAG.read(DEVICE) == OFF
    assert TAG.read(DEVICE) == OFF
    with LoadBalancer(DEVICE, limits=SMALL, pins=PINS) as heir:
        heir.detach()
    assert (TAG.read(DEVICE), STAG.read(DEVICE)) == (ON, ON)


def test_a_start_that_fails_sets_it_back() -> None:
    """Wherever it fails."""
    with pytest.raises(Exception, match="no such device"):
        balancer(DEVICE, "tp-typo")
    assert TAG.read(DEVICE) == ON


def test_vlans_on_a_device_that_can_not_be_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """They would be mixed up: it isn't balanced on, and what is in the way is named."""
    vlan_on(DEVICE, monkeypatch)
    with balancer():
        pass  # it can be told
    fixed(monkeypatch)
    with pytest.raises(KernelError) as refused:
        balancer()
    assert str(refused.value) == (
        f"attach to {DEVICE}: {TAG} of {DEVICE} is on and can't be switched off, {STAG} of {DEVICE}"
        f" is on and can't be switched off: packets of {VLANS} would be balanced as if they had no"
        " tag"
    )
    with balancer(SECOND) as lb:
        assert lb.follow() == ()


def test_a_vlan_that_comes_later_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a device that takes tags off in any case: until then it does no harm."""
    fixed(monkeypatch)
    with balancer() as lb:
        assert lb.follow() == ()
        vlan_on(DEVICE, monkeypatch)
        (trouble,) = lb.follow()
        assert f"packets of {VLANS} would be balanced as if they had no tag" in trouble


def test_one_whose_driver_does_not_do_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though it says that it can: nothing is noted then, and nothing counted as put right."""

    def refuse(offload: Offload, device: str, value: str) -> None:
        raise KernelError(f"switch {offload} of {device} {value}", hint="its driver doesn't")

    monkeypatch.setattr(Offload, "write", refuse)
    with balancer() as lb:
        assert lb.follow() == ()
        assert lb._balancer.followed.settings == 0
    vlan_on(DEVICE, monkeypatch)
    with pytest.raises(KernelError, match=f"switch {TAG} of {DEVICE} off: its driver doesn't"):
        balancer()


def test_parts_of_a_bond_are_told_so_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is there that tags are taken off."""
    with Devices() as devices:
        bond, part, other = devices.interfaces[:3]
        made = type(bond)(part.index, part.name, part.serial, master=bond.index, bonded=True)
        monkeypatch.setitem(devices._by_index, part.index, made)
        assert [each.name for each in devices.parts(bond.index)] == [bond.name, part.name]
        assert [each.name for each in devices.parts(other.index)] == [other.name]


@pytest.mark.parametrize(
    ("state", "works", "found"),
    [
        (State(on=False, fixed=True), True, "in the frame"),
        (
            State(on=True, fixed=True),
            False,
            f"{TAG} of {{0}}, {STAG} of {{0}} can't be switched off",
        ),
        (
            State(on=True, fixed=False),
            True,
            f"{TAG}, {STAG}: on, off while the load balancer is attached",
        ),
    ],
)
def test_the_doctor_says_so(
    monkeypatch: pytest.MonkeyPatch, *, state: State, works: bool, found: str
) -> None:
    """Of a device that isn't veth; of one that is its peer decides."""
    index = device_index(DEVICE)
    assert "its peer's to say" in vlan_tags(DEVICE, index).found
    monkeypatch.setattr(Offload, "state", lambda *_: state)
    answer = vlan_tags("lo", device_index("lo"))
    assert (answer.works, answer.found) == (works, found.format("lo"))


def test_generic_mode_needs_it_as_well() -> None:
    """The kernel has the tag beside the packet there, too."""
    with LoadBalancer(Device(DEVICE, "generic"), limits=SMALL):
        assert TAG.read(DEVICE) == OFF
    assert TAG.read(DEVICE) == ON
