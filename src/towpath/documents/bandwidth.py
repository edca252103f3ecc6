# SPDX-License-Identifier: Apache-2.0
"""Limits of what pods send and receive."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class BandwidthDevice:
    """A device by which limited pods' packets leave the node."""

    name: str
    paces: bool
    """It has fq, and packets get times of departure; false: a token bucket."""
    why: str
    """Why it doesn't pace, empty: it does."""
    dropped: int
    """Packets that its fq has dropped by itself."""


@dataclass(frozen=True, slots=True)
class BandwidthAggregate:
    """A pod, or a group of pods, with one limit. Counted since the limit was made."""

    name: str
    kind: Literal["pod", "group"]
    origin: str
    """configuration; kubernetes; either, changed; set."""
    group: str | None
    devices: tuple[str, ...]
    """On the node, by which the pod is reached."""
    egress: int | None
    """Bits a second."""
    ingress: int | None
    burst: int | None
    """Bytes, None: the default."""
    packets: int | None
    """A second."""
    priority: int
    egress_bytes: int
    """On the wire: all segments with their headers. A pod's."""
    ingress_bytes: int
    verdicts: dict[str, int]
    """Packets. Each that a program sees is counted once by it; a GSO packet is one."""
    stamps_converted: int
    """Times of departure of CLOCK_TAI that were made monotonic."""
    stamps_cleared: int
    """Those of a clock that fq doesn't know."""
    backlog_ms: float
    """How long what was charged takes to leave, now."""
    delayed_ms: float
    """Of all packets together."""
    longest_ms: float
    """The longest delay that a packet was given."""
    flows: int
    """That were ahead of the present when they were last counted."""


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """Bandwidth of pods."""

    direct: bool
    """Packets go past the stack to the devices that they leave by."""
    charges: Literal["atomic", "locked"]
    stamps_kept: tuple[str, ...] | None
    """Of which packets (tcp, udp) times of departure survive the way out of a pod's namespace.

    None: that can't be tried here."""
    devices: tuple[BandwidthDevice, ...]
    aggregates: tuple[BandwidthAggregate, ...]
    room: int
    """Aggregates at most."""
    unlimited: dict[str, int]
    """Packets of no aggregate, by verdict; and their stamps."""
    troubles: tuple[str, ...]
    """What isn't as it should be."""
