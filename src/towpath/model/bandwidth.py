# SPDX-License-Identifier: Apache-2.0
"""What pods may send and receive."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path  # noqa: TC003 -- read from the hints
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple

from towpath.model.kinds import AbsolutePath, Address, DeviceName, Flag, Integer, Name, OrNone, Word
from towpath.model.kinds.hosts import Hosts
from towpath.model.kinds.patterns import DevicePatterns
from towpath.model.kinds.rates import Quantity
from towpath.model.service import PYDANTIC

if TYPE_CHECKING:
    from towpath.model.decode import Findings, Tree
    from towpath.model.problems import FieldPath

RATE = Quantity(
    100_000,
    1_000_000_000_000,
    "bits a second",
    "a full frame would take more than 120 ms, and TCP retransmits what takes more than 200",
)
BURST = Quantity(1514, 1_000_000_000, "bytes", "a full frame must fit")
PACKETS = Integer(10, 1_000_000_000)
PRIORITY = Integer(0, 7)

BbrMode = Literal["host", "on", "off"]
BBR_MODE = Word("host", "on", "off")

LIMITED = ("egress", "ingress", "burst", "packets", "priority")
"""Fields that are a limit's."""


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod, or several with one limit. Where it is: one of device, netns and addresses."""

    __pydantic_config__: ClassVar[Any] = PYDANTIC

    name: Annotated[str, Name()]
    device: Annotated[str | None, OrNone(DeviceName())] = None
    """Its device on the node."""
    netns: Annotated[Path | None, OrNone(AbsolutePath())] = None
    """Its network namespace, such as /run/netns/web: all devices on the node that lead there."""
    addresses: Annotated[tuple[Address, ...] | None, Hosts()] = None
    """Its addresses, for pods that share a device."""
    egress: Annotated[int | None, OrNone(RATE)] = None
    """Bits a second that it sends out of the node."""
    ingress: Annotated[int | None, OrNone(RATE)] = None
    """Bits a second that it receives."""
    burst: Annotated[int | None, OrNone(BURST)] = None
    """Bytes at once after a pause. Default: 2 ms of egress, 50 ms of ingress."""
    packets: Annotated[int | None, OrNone(PACKETS)] = None
    """Packets a second, each way that has a rate."""
    priority: Annotated[int, PRIORITY] = 0
    """Of its packets (skb->priority): fq has bands of priority since Linux 6.7."""
    group: Annotated[str | None, OrNone(Name())] = None
    """Whose limit holds as well."""


@dataclass(frozen=True, slots=True)
class Group:
    """Pods with one common limit, besides their own ones: those of a namespace, say."""

    __pydantic_config__: ClassVar[Any] = PYDANTIC

    name: Annotated[str, Name()]
    egress: Annotated[int | None, OrNone(RATE)] = None
    """Bits a second that all of it sends out of the node."""
    ingress: Annotated[int | None, OrNone(RATE)] = None
    """Bits a second that all of it receives."""
    burst: Annotated[int | None, OrNone(BURST)] = None
    """As a pod's."""
    packets: Annotated[int | None, OrNone(PACKETS)] = None
    """As a pod's."""


@dataclass(frozen=True, slots=True)
class Section:
    """Bandwidth of pods. ``bandwidth`` in the configuration."""

    __pydantic_config__: ClassVar[Any] = PYDANTIC

    devices: Annotated[tuple[str, ...], DevicePatterns()]
    """By which pods' packets leave the node: they get fq, if the kernel has it."""
    pods: tuple[Pod, ...] = ()
    """Whose limits are set here. Others can be set while the agent runs."""
    groups: tuple[Group, ...] = ()
    """Common limits."""
    direct: Annotated[bool, Flag()] = False
    """Whether pods' packets go past the kernel's stack to these devices, and past netfilter's
    FORWARD and POSTROUTING: senders then are held back and lose no packets, and BBR works."""
    horizon: Annotated[int, Integer(10, 1000)] = 100
    """Milliseconds of delay above which packets are dropped; 192 KiB may wait in any case."""
    aggregates: Annotated[int, Integer(1, 16383)] = 1024
    """Pods and groups that there is room for, 1.3 kB each, and 176 bytes more on each CPU."""
    bbr: Annotated[BbrMode, BBR_MODE] = "host"
    """Congestion control in pods' namespaces: as the node has it, BBR, or CUBIC."""


class Sourced(NamedTuple):
    """Limits that a source has told, besides those of the configuration."""

    owner: str = ""
    """The source's name."""
    pods: tuple[Pod, ...] = ()
    """Where they are is told by addresses, which their devices' other ends have."""
    groups: tuple[Group, ...] = ()


@dataclass(frozen=True, slots=True)
class LimitChange:
    """Another limit for a pod or a group; what is None stays as it is configured."""

    __pydantic_config__: ClassVar[Any] = PYDANTIC

    egress: Annotated[int | None, OrNone(RATE)] = None
    """Bits a second that it sends out of the node."""
    ingress: Annotated[int | None, OrNone(RATE)] = None
    """Bits a second that it receives."""
    burst: Annotated[int | None, OrNone(BURST)] = None
    """Bytes at once after a pause."""
    packets: Annotated[int | None, OrNone(PACKETS)] = None
    """Packets a second."""
    priority: Annotated[int | None, OrNone(PRIORITY)] = None
    """Of its packets."""


def check(section: Tree, path: FieldPath, found: Findings) -> None:
    """Note what no field shows by itself: names and places that are there twice, and the like."""
    names: dict[str, str] = {}
    groups = {each["name"] for each in section.get("groups") or () if each and "name" in each}
    places: dict[str, str] = {}
    for key in ("groups", "pods"):
        for number, each in enumerate(section.get(key) or ()):
            if each is None:
                continue
            where = (*path, key, number)
            _once(each.get("name"), names, f"{key}[{number}]", (*where, "name"), found)
            # One that is wrong isn't among them.
            rates = [each.get(rate, 1) for rate in ("egress", "ingress")]
            if not any((*rates, each.get("group"))):
                found.add(where, "has no limit; allowed: egress, ingress or both")
            if key == "pods":
                _check_pod(each, where, groups, places, found)


def _check_pod(
    pod: Tree, where: FieldPath, groups: set[str], places: dict[str, str], found: Findings
) -> None:
    given = [key for key in ("device", "netns", "addresses") if pod.get(key)]
    if len(given) != 1:
        told = " and ".join(given) or "none"
        found.add(where, f"has {told}; allowed: one of device, netns and addresses")
    group = pod.get("group")
    if group and group not in groups:
        there = ", ".join(sorted(groups)) or "there is none"
        found.add((*where, "group"), f"{group} is no group; allowed: {there}")
    for key in given:
        values = pod[key] if key == "addresses" else [pod[key]]
        for each in values:
            _once(str(each), places, str(pod.get("name")), (*where, key), found)


def _once(
    value: str | None, seen: dict[str, str], who: str, where: FieldPath, found: Findings
) -> None:
    if value is None:
        return
    if value in seen:
        found.add(where, f"{value} is {seen[value]}'s already; allowed: each once")
    seen.setdefault(value, who)
