# SPDX-License-Identifier: Apache-2.0
"""Reading VLAN devices from link messages, encoded and decoded as on a netlink socket."""

from __future__ import annotations

from typing import Any

import pytest
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from towpath.kernel.net.interfaces import entrances_among, vlans_among


def received(index: int, kind: str, link: int, data: Any, *more: tuple[str, Any]) -> Any:
    """Make a link message as the kernel would send it."""
    sent = ifinfmsg()
    sent["index"] = index
    info = {"attrs": [("IFLA_INFO_KIND", kind), ("IFLA_INFO_DATA", {"attrs": data})]}
    sent["attrs"] = [("IFLA_IFNAME", f"d{index}"), ("IFLA_LINK", link), *more]
    sent["attrs"].append(("IFLA_LINKINFO", info))
    sent.encode()
    message = ifinfmsg(sent.data)
    message.decode()
    return message


def tagged(vid: int, protocol: int = 0x8100) -> list[tuple[str, int]]:
    """Attributes of a VLAN device."""
    return [("IFLA_VLAN_ID", vid), ("IFLA_VLAN_PROTOCOL", protocol)]


@pytest.mark.parametrize("vid", [1, 100, 4094])
def test_vlan_device_is_read(vid: int) -> None:
    """Its index, that of the device below and the VLAN id."""
    assert vlans_among([received(7, "vlan", 2, tagged(vid))]) == [(7, 2, vid)]


def test_other_devices_are_left_out() -> None:
    """Other kinds, service tags, and VLANs of devices that are elsewhere."""
    others = [
        received(7, "veth", 2, []),
        received(8, "vlan", 2, tagged(5, protocol=0x88A8)),
        received(9, "vlan", 2, tagged(5), ("IFLA_LINK_NETNSID", 0)),
    ]
    assert vlans_among(others) == []


def member(index: int, kind: str, master: int) -> Any:
    """A link message of a device that belongs to another one."""
    sent = ifinfmsg()
    sent["index"] = index
    info = {"attrs": [("IFLA_INFO_KIND", "veth"), ("IFLA_INFO_SLAVE_KIND", kind)]}
    sent["attrs"] = [("IFLA_IFNAME", f"d{index}"), ("IFLA_MASTER", master), ("IFLA_LINKINFO", info)]
    sent.encode()
    message = ifinfmsg(sent.data)
    message.decode()
    return message


def test_packets_come_in_by_vlan_devices_and_by_what_a_bond_is_made_of() -> None:
    """Not by those of another device, nor by a bridge's ports."""
    links = [
        received(7, "vlan", 2, tagged(5)),
        received(8, "vlan", 3, tagged(5)),
        member(9, "bond", 2),
        member(10, "bond", 3),
        member(11, "bridge", 2),
    ]
    assert entrances_among(links, 2) == ["d7", "d9"]
