# SPDX-License-Identifier: Apache-2.0
"""Packets for traces, as text."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.model.test_flow import flows

from towpath.model import FlowTuple, Protocol, TracedPacket
from towpath.model.traced import smallest

FLOW = "198.51.100.7:40000 -> 203.0.113.10:80 tcp"
public = st.one_of(
    flows(st.ip_addresses(v=4, network="198.51.0.0/16")),
    flows(st.ip_addresses(v=6, network="2001:db8::/32")),
)


@given(public, st.one_of(st.none(), st.integers(60, 3000)))
def test_what_is_written_is_read(flow: FlowTuple, size: int | None) -> None:
    """With a size, without, and of each other kind."""
    packets = [TracedPacket.of(flow, size=size)]
    packets += [TracedPacket.of(flow, "error"), TracedPacket.of(flow, "fragment")]
    if flow.protocol is Protocol.TCP:
        packets += [TracedPacket.of(flow, kind) for kind in ("syn", "rst")]
    for packet in packets:
        assert TracedPacket.parse(str(packet)) == packet
        assert TracedPacket.parse(f"  {packet} ") == packet
        assert packet.key == flow.key


def test_a_flow_is_a_packet_of_it() -> None:
    """Nothing has to stand behind it."""
    assert TracedPacket.parse(FLOW) == TracedPacket.of(FlowTuple.parse(FLOW))
    assert TracedPacket.parse(f"{FLOW} size 1500").size == 1500
    assert TracedPacket.parse("198.51.100.7:1->203.0.113.10:80 error").kind == "error"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"{FLOW} size 39", "size: 39 is no size; allowed: 40 to 65535 bytes"),
        (f"{FLOW} size 65536", "size: 65536 is no size; allowed: 40 to 65535 bytes"),
        (f"{FLOW} size -1", "size: -1 is no size"),
        (f"{FLOW} size ten", "size: ten is no size"),
        (f"{FLOW} size 99999999999999999999", "is no size"),
        (f"{FLOW} echo", "is not a flow; allowed: SRC:PORT"),
        (f"{FLOW} error error", "is not a flow"),
        (f"{FLOW[:-3]}udp syn", "syn: of udp; allowed: of tcp"),
        (f"{FLOW[:-3]}udp rst", "rst: of udp; allowed: of tcp"),
        ("error", "is not a flow"),
        ("198.51.100.7:x -> 203.0.113.10:80 tcp error", "source"),
        ("198.51.100.7:1 -> 203.0.113.10:80 sctp size 100", "protocol: 'sctp' is not known"),
    ],
)
def test_what_is_wrong_is_said(text: str, said: str) -> None:
    """And what would be right."""
    with pytest.raises(ValueError, match=re.escape(said)):
        TracedPacket.parse(text)


def test_the_smallest_sizes() -> None:
    """Headers and nothing else."""
    kinds = ("203.0.113.10", "198.51.100.7"), ("[2001:db8::1]", "[2001:db8::2]")
    sizes = [
        smallest(FlowTuple.parse(f"{a}:1 -> {b}:2 {protocol}"))
        for a, b in kinds
        for protocol in ("tcp", "udp")
    ]
    assert sizes == [40, 28, 60, 48]
