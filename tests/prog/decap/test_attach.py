# SPDX-License-Identifier: Apache-2.0
"""Decap and its pins: what is attached, what is undone, what is refused."""

from __future__ import annotations

import errno
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.prog.decap.wire import ip

from towpath.datapath.decap.addresses import DecapError
from towpath.datapath.decap.decap import Decap, detach_pinned
from towpath.kernel.bpf.links import xdp_program_id
from towpath.kernel.bpf.maps import Map
from towpath.kernel.errors import KernelError, LayoutError
from towpath.kernel.net.interfaces import device_index

if TYPE_CHECKING:
    from collections.abc import Iterator

DEVICE = "tpdca"
ADDRESS = "192.0.2.11"
PINS = Path("/sys/fs/bpf/towpath-decap")
ROOM = 1024


@pytest.fixture
def device() -> Iterator[int]:
    """A veth device with nothing attached, and its index."""
    ip("link", "add", DEVICE, "type", "veth", "peer", "name", "tpdcb")
    try:
        yield device_index(DEVICE)
    finally:
        ip("link", "delete", DEVICE)


@pytest.fixture
def pinned(device: int) -> Iterator[int]:
    """A device with a pinned program, and its index."""
    Decap(DEVICE, [ADDRESS], pins=PINS).close()
    yield device
    if PINS.exists():
        detach_pinned(PINS)


def test_leaving_the_block_detaches(device: int) -> None:
    """Closing once more is nothing."""
    with Decap(device, [ADDRESS]) as decap:
        assert xdp_program_id(device) != 0
        assert (decap.device, decap.ifindex, decap.mode) == (DEVICE, device, "native")
    assert xdp_program_id(device) == 0
    decap.close()


def test_auto_mode_says_why_it_settled_for_generic() -> None:
    """The loopback device has no native XDP."""
    with Decap("lo", [ADDRESS]) as decap:
        assert decap.mode == "generic"
        assert "native mode" in decap.why_generic


def test_addresses_come_and_go_while_attached(device: int) -> None:
    """In order, IPv4 first; one that is added twice is there once."""
    with Decap(device, ["2001:db8::2", "192.0.2.12"]) as decap:
        decap.add(ADDRESS)
        decap.add(ip_address(ADDRESS))
        assert [str(one) for one in decap.addresses] == [ADDRESS, "192.0.2.12", "2001:db8::2"]
        decap.remove("2001:db8::2")
        assert [str(one) for one in decap.addresses] == [ADDRESS, "192.0.2.12"]
        assert decap.counters().addresses.keys() == set(decap.addresses)


def test_removing_an_address_that_is_not_there_names_those_that_are(device: int) -> None:
    """A typo is seen at once."""
    with Decap(device, [ADDRESS]) as decap:
        with pytest.raises(DecapError, match=r"192\.0\.2\.1: not unwrapped for.*192\.0\.2\.11"):
            decap.remove("192.0.2.1")
        assert decap.addresses == (ip_address(ADDRESS),)


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("backend", "not an IPv4 or IPv6 address"),
        ("", "not an IPv4 or IPv6 address"),
        ("192.0.2.11/24", "without prefix length or port"),
        ("192.0.2.11:80", "without prefix length or port"),
        ("192.0.2.300", "not an IPv4 or IPv6 address"),
        ("0.0.0.0", "no address at all"),
        ("::", "no address at all"),
        ("224.0.0.1", "multicast"),
        ("ff02::1", "multicast"),
        ("fe80::1%eth0", "zone"),
        ("::ffff:192.0.2.11", "IPv4-mapped"),
    ],
)
def test_what_no_packet_is_sent_to_is_refused(device: int, address: str, reason: str) -> None:
    """The message has the address and what is wrong with it; nothing is attached."""
    with pytest.raises(DecapError, match=reason) as caught:
        Decap(device, [ADDRESS, address])
    assert address in str(caught.value)
    assert xdp_program_id(device) == 0


def test_more_addresses_than_there_is_room_for_are_refused(device: int) -> None:
    """The message has the limit; nothing is attached."""
    first = int(ip_address(ADDRESS))
    addresses = [ip_address(first + i) for i in range(ROOM)]
    with Decap(device, addresses) as decap:
        assert len(decap.addresses) == ROOM
        with pytest.raises(DecapError, match=f"no room; {ROOM} addresses at most"):
            decap.add("2001:db8::1")
    with pytest.raises(DecapError, match=f"{ROOM} addresses at most"):
        Decap(device, [*addresses, "2001:db8::1"])
    assert xdp_program_id(device) == 0


@pytest.mark.parametrize("missing", ["tpdcz", 999_999])
def test_a_device_that_is_not_there_is_refused(missing: str | int) -> None:
    """The message has its name or index, and the devices that there are."""
    with pytest.raises(KernelError, match=f"{missing}.*there are: .*lo"):
        Decap(missing, [ADDRESS])


def test_a_device_that_is_taken_is_left_alone(device: int) -> None:
    """Whatever is attached already stays."""
    with Decap(device, [ADDRESS]):
        there = xdp_program_id(device)
        with pytest.raises(KernelError, match=f"{DEVICE}.*program {there} is attached") as caught:
            Decap(device, [ADDRESS])
        assert caught.value.errno == errno.EBUSY
        assert xdp_program_id(device) == there


def test_what_is_pinned_outlives_its_maker(pinned: int) -> None:
    """Another process finds addresses and counters there, and can change them."""
    assert xdp_program_id(pinned) != 0
    with Decap.pinned(PINS) as decap:
        assert decap.device == DEVICE
        assert decap.counters().verdicts["unwrapped"] == 0
        decap.add("2001:db8::11")
    with Decap.pinned(PINS) as decap:
        assert [str(one) for one in decap.addresses] == [ADDRESS, "2001:db8::11"]
        decap.detach()
    assert xdp_program_id(pinned) == 0
    assert not PINS.exists()


def test_pins_are_not_pinned_over(pinned: int) -> None:
    """The program that is there goes on."""
    there = xdp_program_id(pinned)
    with pytest.raises(DecapError, match="pinned there already"):
        Decap("lo", [ADDRESS], pins=PINS)
    assert xdp_program_id(pinned) == there
    assert xdp_program_id(device_index("lo")) == 0


def test_pins_of_another_layout_are_refused_and_can_be_taken_down(pinned: int) -> None:
    """All differences are named."""
    pin = PINS / "addresses"
    pin.unlink()
    with Map.from_pin(PINS / "verdicts") as other:
        other.pin(pin)
    with pytest.raises(LayoutError, match="another version") as caught:
        Decap.pinned(PINS)
    assert len(caught.value.differences) > 1
    detach_pinned(PINS)
    assert xdp_program_id(pinned) == 0
    assert not PINS.exists()


def test_pins_outside_a_bpf_file_system_are_refused(device: int, tmp_path: Path) -> None:
    """Nothing stays attached, no directory is left."""
    with pytest.raises(KernelError, match="not on a BPF file system"):
        Decap(device, [ADDRESS], pins=tmp_path / "pins")
    assert xdp_program_id(device) == 0
    assert list(tmp_path.iterdir()) == []


def test_where_nothing_is_pinned_nothing_is_found() -> None:
    """For reading and for detaching alike."""
    with pytest.raises(DecapError, match="no decapsulation is pinned"):
        Decap.pinned(PINS)
    with pytest.raises(DecapError, match="no decapsulation is pinned"):
        detach_pinned(PINS)


@pytest.mark.usefixtures("pinned")
def test_a_pinned_program_whose_device_has_gone_can_be_taken_down() -> None:
    """The kernel detached it with the device; counters and pins are still there."""
    ip("link", "delete", DEVICE)
    try:
        with Decap.pinned(PINS) as decap:
            assert decap.ifindex == 0
            assert decap.counters().verdicts["unwrapped"] == 0
        detach_pinned(PINS)
        assert not PINS.exists()
    finally:
        ip("link", "add", DEVICE, "type", "veth", "peer", "name", "tpdcb")
