# SPDX-License-Identifier: Apache-2.0
"""What an aggregate may have, as ``struct bandwidth_limit`` has it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from towpath.datapath.bandwidth.program import BandwidthProgram

SECOND = 1_000_000_000  # ns
_MS = 1_000_000
HORIZON = 100 * _MS
FRAME = 1514
"""Bytes of a full frame."""
GSO = 65_536
"""Bytes of the longest packet that is divided later, but for BIG TCP."""
_PACED_BURST = 2 * _MS
"""What an idle aggregate makes up for: timers are late by so much."""
_BUCKET = 50 * _MS
"""Depth of a token bucket: as much as TCP sends in a round trip of that length."""
_HORIZON_GSO = 3
_HORIZON_MOST = 4 * SECOND
_MARK_SHARE = 4
"""A packet is marked if its delay is beyond the horizon divided by this."""


@dataclass(frozen=True, slots=True)
class Limit:
    """Bits, packets per second, and bytes; None: as many as there are."""

    egress: int | None = None
    ingress: int | None = None
    burst: int | None = None
    """Bytes that an idle aggregate may have at once, each way; None: see `bursts`."""
    packets: int | None = None
    """A second, each way."""
    priority: int = 0
    horizon: int = HORIZON
    """ns of delay above which packets are dropped; more at low rates: `horizon`."""


def cost(rate: int, shift: int) -> int:
    """Return ns per byte at so many bits a second, in fixed point, rounded."""
    return ((8 * SECOND << shift) + rate // 2) // rate


def nanoseconds(size: int, rate: int) -> int:
    """Return how long so many bytes take at so many bits a second."""
    return 8 * SECOND * size // rate


def horizon(limit: Limit) -> int:
    """Return ns of delay above which packets are dropped.

    A sender that is held back has two of the longest packets waiting and one on its way: these
    must fit at low rates, too. fq drops what is 10 s ahead.
    """
    packets = nanoseconds(_HORIZON_GSO * GSO, limit.egress) if limit.egress else 0
    return max(limit.horizon, min(packets, _HORIZON_MOST))


def bucket(limit: Limit, rate: int) -> int:
    """Return ns of a rate that a token bucket holds."""
    if limit.burst is not None:
        return nanoseconds(max(limit.burst, FRAME), rate)
    return max(_BUCKET, nanoseconds(2 * GSO, rate))


def row(program: BandwidthProgram, limit: Limit, group: int = 0) -> Any:
    """Return what the table has of a limit. ``group``: number of the aggregate's group, 0: none."""
    found = program.record("bw_limits")
    shift = program.constant("bandwidth_limits", "BANDWIDTH_COST_SHIFT")
    packet = round(SECOND / limit.packets) if limit.packets else 0
    if limit.egress:
        burst = limit.burst and nanoseconds(limit.burst, limit.egress)
        found["egress_cost"], found["egress_packet"] = cost(limit.egress, shift), packet
        found["egress_burst"] = _PACED_BURST if burst is None else burst
        found["egress_bucket"] = bucket(limit, limit.egress)
    if limit.ingress:
        found["ingress_cost"], found["ingress_packet"] = cost(limit.ingress, shift), packet
        found["ingress_bucket"] = bucket(limit, limit.ingress)
    found["horizon"] = horizon(limit)
    found["mark"] = horizon(limit) // _MARK_SHARE
    found["group"], found["priority"] = group, limit.priority
    return found
