# SPDX-License-Identifier: Apache-2.0
"""Messages about devices that this machine may be unable to have, as on a netlink socket."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from towpath.kernel.net.devices import Devices
from towpath.kernel.net.netns import new_netns
from towpath.kernel.net.watch import Change

if TYPE_CHECKING:
    from collections.abc import Iterator

NEWLINK, DELLINK, HEADER = 16, 17, 16


@pytest.fixture
def devices() -> Iterator[Devices]:
    """Of a namespace without any but its own."""
    with new_netns(), Devices() as made:
        yield made


def tell(devices: Devices, index: int, *attributes: tuple[str, Any], kind: int = NEWLINK) -> None:
    """Have it told of a device, in the kernel's bytes, which pyroute2 makes."""
    sent = ifinfmsg()
    sent["index"] = index
    sent["attrs"] = [("IFLA_IFNAME", f"d{index}"), *attributes]
    sent.encode()
    devices._take(Change(kind, bytes(sent.data[HEADER:])))


def tell_upper(
    devices: Devices, index: int, kind: str, link: int, *more: Any, data: Any = ()
) -> None:
    """The same of one that is on top of another one."""
    info = {"attrs": [("IFLA_INFO_KIND", kind), ("IFLA_INFO_DATA", {"attrs": list(data)})]}
    tell(devices, index, ("IFLA_LINK", link), *more, ("IFLA_LINKINFO", info))


def tell_part(devices: Devices, index: int, kind: str, master: int) -> None:
    """The same of one that belongs to another one."""
    info = {"attrs": [("IFLA_INFO_KIND", "veth"), ("IFLA_INFO_SLAVE_KIND", kind)]}
    tell(devices, index, ("IFLA_MASTER", master), ("IFLA_LINKINFO", info))


def tagged(vid: int, protocol: int = 0x8100) -> list[tuple[str, int]]:
    """Attributes of a VLAN device."""
    return [("IFLA_VLAN_ID", vid), ("IFLA_VLAN_PROTOCOL", protocol)]


@pytest.mark.parametrize("vid", [0, 1, 100, 4094])
def test_vlan_device_is_read(devices: Devices, vid: int) -> None:
    """Its index, that of the device below and the VLAN id; and it is gone when that is told."""
    tell_upper(devices, 7, "vlan", 2, data=tagged(vid))
    assert devices.vlans() == [(7, 2, vid)]
    tell(devices, 7, kind=DELLINK)
    assert devices.vlans() == []


def test_other_devices_are_left_out(devices: Devices) -> None:
    """Other kinds, service tags, and VLANs of devices that are elsewhere."""
    tell_upper(devices, 7, "veth", 2)
    tell_upper(devices, 8, "vlan", 2, data=tagged(5, protocol=0x88A8))
    tell_upper(devices, 9, "vlan", 2, ("IFLA_LINK_NETNSID", 0), data=tagged(5))
    assert devices.vlans() == []
    assert {7, 8, 9} <= {each.index for each in devices.interfaces}


def test_packets_come_in_by_vlan_devices_and_by_what_a_bond_is_made_of(devices: Devices) -> None:
    """Not by those of another device, nor by a bridge's ports."""
    tell_upper(devices, 7, "vlan", 2, data=tagged(5))
    tell_upper(devices, 8, "vlan", 3, data=tagged(5))
    tell_part(devices, 9, "bond", 2)
    tell_part(devices, 10, "bond", 3)
    tell_part(devices, 11, "bridge", 2)
    assert devices.entrances(2) == [2, 7, 9]
    tell_part(devices, 9, "bond", 3)
    assert devices.entrances(2) == [2, 7]


def test_a_device_that_was_moved_is_known_to_be_elsewhere(devices: Devices) -> None:
    """Until one of its index is here again, which is another one."""
    tell(devices, 7)
    before = devices.get(7)
    tell(devices, 7, ("IFLA_NEW_NETNSID", 0), kind=DELLINK)
    assert devices.get(7) is None
    assert devices.became(7) == "it was moved to another network namespace"
    tell(devices, 7)
    after = devices.get(7)
    assert before
    assert after
    assert before.serial != after.serial
    tell(devices, 7, kind=DELLINK)
    assert devices.became(7) == "it is gone"
