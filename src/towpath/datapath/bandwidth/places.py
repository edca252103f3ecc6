# SPDX-License-Identifier: Apache-2.0
"""Where pods are: their devices on the node."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from towpath.datapath.bandwidth.ends import PAIRS
from towpath.kernel.errors import KernelError
from towpath.kernel.net import link_state, routes
from towpath.kernel.net.netns import in_netns

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from towpath.datapath.address import Address
    from towpath.datapath.bandwidth.ends import Ends
    from towpath.datapath.bandwidth.wanted import Aggregate
    from towpath.kernel.net.link_state import Device


class Located(NamedTuple):
    """Devices of pods, by their indexes, and whose they are."""

    owners: dict[int, str]
    """Devices of one pod's own."""
    by_address: dict[int, dict[Address, str]]
    """Devices by which pods are reached that have them in common, and the pods' addresses."""
    missing: dict[str, str]
    """Pods that are nowhere, and why."""

    @property
    def indexes(self) -> set[int]:
        """Of all."""
        return {*self.owners, *self.by_address}

    def devices_of(self, name: str) -> list[int]:
        """Those by which a pod is reached."""
        shared = [index for index, each in self.by_address.items() if name in each.values()]
        return sorted({index for index, each in self.owners.items() if each == name} | {*shared})


def locate(
    pods: Iterable[Aggregate], devices: Mapping[int, Device], ends: Ends | None = None
) -> Located:
    """Find the pods' devices. KernelError: the kernel refuses to tell.

    ``ends``: who finds those of pods that a source has told.
    """
    found = Located({}, {}, {})
    pods = list(pods)
    indexes = {each.name: each.index for each in devices.values()}
    addressed: list[tuple[Address, str]] = []
    for pod in pods:
        if pod.sourced and ends is not None:
            continue
        if pod.addresses:
            addressed += [(address, pod.name) for address in pod.addresses]
            continue
        mine = _by_device(pod, indexes) if pod.device else _by_namespace(pod, devices, found)
        for index in mine:
            if index in found.owners:
                found.missing[pod.name] = (
                    f"device {devices[index].name} is {found.owners[index]}'s already"
                )
            found.owners.setdefault(index, pod.name)
        if not mine and pod.name not in found.missing:
            found.missing[pod.name] = f"there is no device {pod.device}"
    _by_routes(addressed, devices, found)
    if ends is not None:
        _by_ends([each for each in pods if each.sourced], devices, ends, found)
    return found


def _by_device(pod: Aggregate, indexes: Mapping[str, int]) -> list[int]:
    return [indexes[pod.device]] if pod.device in indexes else []


def _by_namespace(pod: Aggregate, devices: Mapping[int, Device], found: Located) -> list[int]:
    """The devices of pairs whose other end is in a namespace, and has them for its other end."""
    try:
        with in_netns(str(pod.netns)):
            inside = link_state.devices()
    except KernelError as error:
        found.missing[pod.name] = str(error)
        return []
    mine = [
        index
        for index, each in devices.items()
        if each.driver in PAIRS and each.lower_elsewhere and _are_pair(each, inside)
    ]
    if not mine:
        found.missing[pod.name] = f"no device of this node leads to {pod.netns}"
    return mine


def _are_pair(outside: Device, inside: Mapping[int, Device]) -> bool:
    other = inside.get(outside.lower)
    return other is not None and other.driver in PAIRS and other.lower == outside.index


def _by_ends(
    pods: list[Aggregate], devices: Mapping[int, Device], ends: Ends, found: Located
) -> None:
    """All devices that lead to the namespace that has a pod's addresses."""
    leading = ends.find({address for pod in pods for address in pod.addresses}, devices)
    for pod in pods:
        mine = [index for address in pod.addresses for index in leading.get(address, ())]
        if not mine:
            text = ", ".join(map(str, pod.addresses))
            found.missing[pod.name] = f"no device of this node leads to {text}"
        for index in mine:
            owner = found.owners.setdefault(index, pod.name)
            if owner != pod.name:
                name = devices[index].name
                found.missing[pod.name] = f"device {name} is {owner}'s already"


def _by_routes(
    addressed: list[tuple[Address, str]], devices: Mapping[int, Device], found: Located
) -> None:
    answers = routes.routes(routes.Question(address) for address, _ in addressed)
    for (address, name), route in zip(addressed, answers, strict=True):
        near = [hop.device for hop in route.hops if hop.gateway is None]
        if route.kind != "unicast" or not near or near[0] not in devices:
            found.missing[name] = f"{address} isn't reached by a device of this node"
            continue
        found.by_address.setdefault(near[0], {})[address] = name
