# SPDX-License-Identifier: Apache-2.0
"""Pods whose packets somebody else shapes already, such as the CNI bandwidth plugin.

Its limit is never taken away, and there are never two: what a source says of a pod's own rate isn't
put into force in the direction in which its device is shaped. A group's limit is.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from towpath.kernel.net.shapers import Shaped, shaped

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from towpath.datapath.bandwidth.places import Located
    from towpath.datapath.bandwidth.wanted import Aggregate

PATIENCE_SECONDS = 10.0
"""A pod of a source may be without a device for so long: it is about to come, or to go."""
_NONE = Shaped()


def shaped_elsewhere(aggregates: Iterable[Aggregate], located: Located) -> dict[int, Shaped]:
    """Devices of sources' pods that somebody else shapes. KernelError."""
    sourced = {each.name for each in aggregates if each.sourced}
    mine = {index for index, name in located.owners.items() if name in sourced}
    return shaped(mine) if mine else {}


def spared(
    aggregates: list[Aggregate], located: Located, found: Mapping[int, Shaped]
) -> list[Aggregate]:
    """The same aggregates without the limits that somebody else keeps."""
    by_name = _by_name(located, found)
    return [
        _without(each, by_name[each.name]) if each.name in by_name else each for each in aggregates
    ]


def _by_name(located: Located, found: Mapping[int, Shaped]) -> dict[str, Shaped]:
    together: dict[str, Shaped] = {}
    for index, each in found.items():
        name = located.owners[index]
        before = together.get(name, _NONE)
        together[name] = Shaped(before.egress or each.egress, before.ingress or each.ingress)
    return together


def _without(pod: Aggregate, by: Shaped) -> Aggregate:
    limit = pod.limit
    egress = None if by.ingress else limit.egress
    ingress = None if by.egress else limit.ingress
    return replace(pod, limit=replace(limit, egress=egress, ingress=ingress))


def told(located: Located, found: Mapping[int, Shaped], names: Mapping[int, str]) -> list[str]:
    """Say it of each, for people."""
    said = []
    for index, each in sorted(found.items()):
        ways = [f"what it sends by {each.ingress}"] if each.ingress else []
        ways += [f"what it receives by {each.egress}"] if each.egress else []
        where = f"{located.owners[index]}: its device {names.get(index, index)} is shaped already"
        said.append(f"{where}, {' and '.join(ways)}: that limit holds, and no other is added")
    return said


class Needs:
    """Which programs a pod's device needs: all, unless somebody else shapes there.

    Before Linux 6.6 they can't be attached beside the plugin's ingress qdisc; then nothing is tried
    that nothing depends on.
    """

    def __init__(
        self, aggregates: Iterable[Aggregate], located: Located, found: Mapping[int, Shaped]
    ) -> None:
        self._by_name = {each.name: each for each in aggregates}
        self._owners, self._shaped = located.owners, found

    def tag(self, index: int) -> bool:
        """What marks what the pod sends."""
        pod = self._pod(index)
        return pod is None or bool(pod.limit.egress or pod.limit.priority or self._group(pod))

    def receive(self, index: int) -> bool:
        """What limits what the pod receives."""
        pod = self._pod(index)
        return pod is None or bool(pod.limit.ingress or self._group(pod))

    def _pod(self, index: int) -> Aggregate | None:
        """None: nobody shapes there."""
        return self._by_name.get(self._owners[index]) if index in self._shaped else None

    def _group(self, pod: Aggregate) -> bool:
        return pod.group in self._by_name


class Lost:
    """Since when pods of sources are nowhere."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}

    def lasting(self, missing: Mapping[str, str]) -> dict[str, str]:
        """Those that are nowhere for longer than while they come or go."""
        now = time.monotonic()
        self._since = {name: self._since.get(name, now) for name in missing}
        return {
            name: why
            for name, why in missing.items()
            if now - self._since[name] >= PATIENCE_SECONDS
        }
