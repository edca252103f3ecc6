# SPDX-License-Identifier: Apache-2.0
"""Flows as text."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from towpath.model import Address, FlowTuple, Protocol
from towpath.model.kinds import not_unicast


def flows(addresses: st.SearchStrategy[Address]) -> st.SearchStrategy[FlowTuple]:
    """Flows of one family."""
    address = addresses.filter(is_unicast)
    port = st.integers(1, 65535)
    return st.builds(FlowTuple, address, port, address, port, st.sampled_from(Protocol))


def is_unicast(address: Address) -> bool:
    """Whether a flow can have it."""
    return not_unicast(address) is None


def test_ipv4() -> None:
    """The form that the command line takes; tcp if no protocol is given."""
    flow = FlowTuple(
        ip_address("198.51.100.7"), 40000, ip_address("203.0.113.10"), 80, Protocol.TCP
    )
    assert FlowTuple.parse("198.51.100.7:40000 -> 203.0.113.10:80 tcp") == flow
    assert FlowTuple.parse("  198.51.100.7:40000->203.0.113.10:80 TCP ") == flow
    assert FlowTuple.parse("198.51.100.7:40000 -> 203.0.113.10:80") == flow
    assert str(flow.key) == "203.0.113.10:80/tcp"


def test_ipv6() -> None:
    """Addresses in brackets."""
    text = "[2001:db8::7]:40000 -> [2001:db8::10]:80 udp"
    flow = FlowTuple.parse(text)
    assert (flow.source, flow.protocol) == (ip_address("2001:db8::7"), Protocol.UDP)
    assert str(flow) == text


@given(st.one_of(flows(st.ip_addresses(v=4)), flows(st.ip_addresses(v=6))))
def test_text_and_back(flow: FlowTuple) -> None:
    """What str() writes, parse() reads."""
    assert FlowTuple.parse(str(flow)) == flow


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' is not a flow; allowed: SRC:PORT -> DST:PORT PROTOCOL, such as '198.51"),
        ("198.51.100.7:1 203.0.113.10:80 tcp", "is not a flow"),
        ("198.51.100.7:1 -> 203.0.113.10:80 tcp x", "is not a flow"),
        ("198.51.100.7 -> 203.0.113.10:80 tcp", "source: '198.51.100.7' is not ADDRESS:PORT"),
        ("2001:db8::7:1 -> [2001:db8::1]:80", "source: '2001:db8::7:1' is not ADDRESS:PORT"),
        ("198.51.100.7:1 -> 203.0.113.300:80", "destination: '203.0.113.300' is not an IPv4"),
        ("198.51.100.7:1 -> [203.0.113.1]:80", "destination: '203.0.113.1' is not an IPv6"),
        ("198.51.100.7:0 -> 203.0.113.10:80", "source: 0 is out of range; allowed: 1 to 65535"),
        ("198.51.100.7:1 -> 203.0.113.10:65536", "destination: 65536 is out of range"),
        ("198.51.100.7:1 -> 203.0.113.10:" + "9" * 5000, "is not ADDRESS:PORT"),
        ("224.0.0.1:1 -> 203.0.113.10:80", "source: 224.0.0.1 is a multicast address"),
        ("198.51.100.7:1 -> 127.0.0.1:80", "destination: 127.0.0.1 is a loopback address"),
        ("198.51.100.7:1 -> [2001:db8::1]:80", "source 198.51.100.7 is IPv4, destination 2001"),
        ("198.51.100.7:1 -> 203.0.113.10:80 icmp", "protocol: 'icmp' is not known; allowed: tcp"),
    ],
)
def test_wrong_flows_are_refused(text: str, message: str) -> None:
    """The message says which part is wrong and what is allowed."""
    with pytest.raises(ValueError, match="allowed: ") as caught:
        FlowTuple.parse(text)
    assert message in str(caught.value)


@given(st.text(alphabet="0123456789abcdef:.[]-> tcpud%/", max_size=60))
def test_no_text_causes_another_error(text: str) -> None:
    """Whatever the text, it is a flow or a ValueError."""
    try:
        flow = FlowTuple.parse(text)
    except ValueError:
        return
    assert FlowTuple.parse(str(flow)) == flow
