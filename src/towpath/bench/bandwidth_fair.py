# SPDX-License-Identifier: Apache-2.0
"""How a group's limit is shared by its pods' flows, and whether a pod takes from another's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from towpath.bench.bandwidth_traffic import Sender, each_achieved, tcp_on_wire, udp_on_wire
from towpath.bench.bandwidth_ways import paced
from towpath.bench.bandwidth_world import OTHER_DEVICE, POD_DEVICE
from towpath.model.bandwidth import Group, Pod, Section

if TYPE_CHECKING:
    from collections.abc import Sequence

    from towpath.bench.bandwidth_traffic import Sink
    from towpath.bench.bandwidth_world import World

FLOWS = (2, 8, 32)
SMALL = 1 / 4
"""What a small flow asks for, of an equal share."""
FLOOD = 10.0
_WARM = 4.0


@dataclass(frozen=True, slots=True)
class Fairness:
    """Flows of two pods with one limit, by TCP; ``small`` of them ask for a quarter of a share.

    ``jain``: Jain's index of what each got, divided by what is its share by max-min fairness.
    ``error``: of all together, in percent of the limit. ``least``: of the flows' ratios.
    """

    rate: int
    flows: int
    small: int
    jain: float
    least: float
    error: float


@dataclass(frozen=True, slots=True)
class Separate:
    """A pod that has a limit of its own, beside another. ``error``: in percent of its limit."""

    pod: str
    rate: int
    traffic: str
    error: float


def jain(values: Sequence[float]) -> float:
    """Return Jain's index: 1 where all are equal, 1 / n where one has all."""
    total = sum(values)
    return total * total / (len(values) * sum(each * each for each in values)) if total else 0.0


def shares(rate: float, asked: Sequence[float]) -> list[float]:
    """Return what flows get of a rate by max-min fairness. They ask for more than 0 each."""
    given = [0.0] * len(asked)
    left, order = rate, sorted(range(len(asked)), key=asked.__getitem__)
    for place, flow in enumerate(order):
        given[flow] = min(asked[flow], left / (len(asked) - place))
        left -= given[flow]
    return given


def fairness_of(
    here: World, sink: Sink, rate: int, flows: int, small: int, seconds: float
) -> Fairness:
    """Have two pods with one limit send so many flows, the small ones first. BenchError."""
    asked = [SMALL * rate / flows] * small + [float(rate)] * (flows - small)
    devices = (POD_DEVICE, OTHER_DEVICE)
    section = Section(
        devices=("eth0",),
        groups=(Group("both", egress=rate),),
        pods=tuple(Pod(device, device=device, group="both") for device in devices),
        direct=True,
        aggregates=8,
    )
    with paced(section), Sender() as sender:
        first = len(sink.received)
        for number, most in enumerate(asked):
            pod = (here.pod, here.other)[number % 2]
            sender.stream(pod, rate=most if most < rate else 0)
            sink.wait_for(first + number + 1)
        got = [tcp_on_wire(each) for each in each_achieved(sink, seconds, _WARM)[first:]]
    ratios = [each / share for each, share in zip(got, shares(rate, asked), strict=True)]
    return Fairness(
        rate,
        flows,
        small,
        round(jain(ratios), 4),
        round(min(ratios), 3),
        round(100 * (sum(got) / rate - 1), 2),
    )


def separate(here: World, sink: Sink, rate: int, seconds: float) -> tuple[Separate, ...]:
    """Have one of two pods flood its own limit, and see what both get. BenchError.

    The flood is of datagrams, ten times the pod's limit, which is a tenth of the other's.
    """
    slow = rate // 10
    pods = (
        Pod("pod", device=POD_DEVICE, egress=rate),
        Pod("other", device=OTHER_DEVICE, egress=slow),
    )
    section = Section(devices=("eth0",), pods=pods, direct=True, aggregates=8)
    with paced(section), Sender() as sender:
        sender.stream(here.pod)
        sender.datagrams(here.other, FLOOD * slow)
        datagrams, *streams = each_achieved(sink, seconds, _WARM)
    got = tcp_on_wire(sum(streams)), udp_on_wire(datagrams)
    return (
        Separate("pod", rate, "tcp-cubic-1", round(100 * (got[0] / rate - 1), 2)),
        Separate("other", slow, f"udp-{FLOOD:g}", round(100 * (got[1] / slow - 1), 2)),
    )
