# SPDX-License-Identifier: Apache-2.0
"""What bandwidth needs of a kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING

from towpath.doctor.capability import Answer, no, yes
from towpath.doctor.probes import Probe
from towpath.doctor.rules import Rule, Way
from towpath.kernel.bpf import probe
from towpath.kernel.net import qdiscs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from towpath.model.bandwidth import Section

_BANDWIDTH = "bandwidth"


def rules(section: Section | None) -> Iterator[Rule]:
    """What a section needs; None: what any needs."""
    tc = (Way("tcx"), Way("clsact", "a process that is killed leaves its filters behind"))
    yield Rule("limits at both sides of tc", tc, _BANDWIDTH, "nothing is limited", required=True)
    yield Rule(
        "fq",
        (Way("bandwidth_fq"),),
        _BANDWIDTH,
        "what pods send is policed by a token bucket, and loses packets instead of waiting",
    )
    yield Rule(
        "atomics that return a value",
        (Way("bandwidth_atomics"), Way("clsact", "charges are made under a lock")),
        _BANDWIDTH,
        "nothing is limited",
    )
    if section is not None and not section.direct:
        loses = "SO_TXTIME in pods says nothing"
    else:
        loses = "with direct: true BBR isn't paced, and SO_TXTIME in pods says nothing"
    yield Rule("departure times of TCP out of pods", (Way("bandwidth_tcp"),), _BANDWIDTH, loses)
    yield Rule("departure times of UDP out of pods", (Way("bandwidth_udp"),), _BANDWIDTH, loses)


def _fq() -> Answer:
    return yes("") if qdiscs.has_fq() else no("the kernel has no qdisc of that kind")


def _atomics() -> Answer:
    return yes("") if probe.atomics() else no("")


def _survives(protocol: str) -> Answer:
    from towpath.datapath.bandwidth.survival import survival  # noqa: PLC0415 -- takes long to import

    told = "a packet through a pair of veth devices"
    return yes(told) if getattr(survival(), protocol) else no(f"{told} has lost it")


PROBES = {
    "bandwidth_fq": Probe(_fq, "namespace"),
    "bandwidth_atomics": Probe(_atomics),
    "bandwidth_tcp": Probe(lambda: _survives("tcp"), "namespace"),
    "bandwidth_udp": Probe(lambda: _survives("udp"), "namespace"),
}
