# SPDX-License-Identifier: Apache-2.0
"""Which devices have which of masquerade's programs."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from towpath.kernel.net.link_state import LOOPBACK
from towpath.model.kinds.patterns import matches

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from towpath.kernel.net.link_state import Device
    from towpath.model.masquerade import Rule

_BELOW = frozenset({"bridge", "bond", "team", "openvswitch"})
"""Devices whose parts hand them what they receive: packets have their IP header read above."""
_RAW = frozenset({512, 519, 768, 769, 776, 778, 823, 65534})
"""ARPHRD_* of devices without a link-layer header: ppp, rawip, tunnels, none."""
_PAIRS = frozenset({"veth", "netkit"})


class Role(NamedTuple):
    """What a device is to masquerade."""

    device: Device
    rules: tuple[int, ...]
    """The rules for packets that come in by it; none: packets leave by it."""
    peer: bool
    """Its other end is in another namespace, and packets can be put there."""

    @property
    def programs(self) -> tuple[str, str]:
        """Names of the programs at its egress and its ingress."""
        if self.rules:
            return "masq_to_pod", "masq_from_pod"
        if self.device.ethernet:
            return "masq_to_net", "masq_from_net"
        return "masq_to_net_l3", "masq_from_net_l3"


def roles(devices: Mapping[int, Device], rules: Sequence[Rule]) -> dict[int, Role]:
    """What each device is, by its index. Those that are nothing are left out.

    A rule that names a bridge's port means the bridge, where the port's packets come in.
    """
    named: dict[int, set[int]] = {}
    for device in devices.values():
        for number in _named(device, rules):
            above = devices.get(device.master) if device.part_of in _BELOW else None
            named.setdefault((above or device).index, set()).add(number)
    return {
        device.index: Role(device, tuple(sorted(named.get(device.index, ()))), _is_peer(device))
        for device in devices.values()
        if _takes_part(device)
    }


def _named(device: Device, rules: Iterable[Rule]) -> list[int]:
    return [
        number
        for number, rule in enumerate(rules)
        if any(matches(pattern, device.name) for pattern in rule.devices)
    ]


def _takes_part(device: Device) -> bool:
    if device.flags & LOOPBACK or device.part_of in _BELOW:
        return False
    return device.ethernet or device.kind in _RAW


def _is_peer(device: Device) -> bool:
    return device.driver in _PAIRS and device.lower_elsewhere
