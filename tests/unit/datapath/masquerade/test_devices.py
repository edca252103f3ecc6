# SPDX-License-Identifier: Apache-2.0
"""What each device of a node is to masquerade."""

from __future__ import annotations

from ipaddress import ip_network

from towpath.datapath.masquerade.devices import roles
from towpath.kernel.net.link_state import LOOPBACK, Device
from towpath.model.masquerade import Rule

ETHERNET, NONE, LOOP, CAN = 1, 65534, 772, 280
PREFIXES = (ip_network("10.244.0.0/24"),)


def device(index: int, name: str, kind: int = ETHERNET, **more: object) -> Device:
    """A device that is there."""
    return Device(index, name, 0, kind, 1500, **more)  # type: ignore[arg-type]


def named(devices: list[Device], *rules: Rule) -> dict[str, tuple[tuple[int, ...], str]]:
    """Rules and the program at the ingress, by the device's name."""
    found = roles({each.index: each for each in devices}, rules)
    return {role.device.name: (role.rules, role.programs[1]) for role in found.values()}


def test_pods_devices_are_told_by_name() -> None:
    """All others are ways out, tunnels without frames among them; lo is nothing."""
    devices = [
        Device(1, "lo", LOOPBACK, LOOP, 65536),
        device(2, "eth0"),
        device(3, "veth1"),
        device(4, "wg0", NONE),
        device(5, "can0", CAN),
    ]
    assert named(devices, Rule(("veth*",), PREFIXES)) == {
        "eth0": ((), "masq_from_net"),
        "veth1": ((0,), "masq_from_pod"),
        "wg0": ((), "masq_from_net_l3"),
    }


def test_a_bridges_port_stands_for_the_bridge() -> None:
    """Ports of bridges and parts of bonds have no programs; those of a VRF do."""
    devices = [
        device(2, "cni0"),
        device(3, "veth1", master=2, part_of="bridge"),
        device(4, "bond0"),
        device(5, "eth0", master=4, part_of="bond"),
        device(6, "blue"),
        device(7, "eth1", master=6, part_of="vrf"),
    ]
    rules = Rule(("veth*",), PREFIXES), Rule(("cni0",), (ip_network("fd00::/64"),))
    assert named(devices, *rules) == {
        "cni0": ((0, 1), "masq_from_pod"),
        "bond0": ((), "masq_from_net"),
        "blue": ((), "masq_from_net"),
        "eth1": ((), "masq_from_net"),
    }


def test_a_peer_is_one_of_a_pair_in_another_namespace() -> None:
    """Where it is known to be."""
    devices = {
        each.index: each
        for each in (
            device(2, "veth1", driver="veth", lower_elsewhere=True),
            device(3, "veth2", driver="veth"),
            device(4, "macvlan1", driver="macvlan", lower_elsewhere=True),
        )
    }
    found = roles(devices, [Rule(("*",), PREFIXES)])
    assert {role.device.name for role in found.values() if role.peer} == {"veth1"}
