# SPDX-License-Identifier: Apache-2.0
"""A flow as people write it: ``198.51.100.7:40000 -> 203.0.113.10:80 tcp``."""

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from towpath.model.kinds import Address, Integer, not_unicast, shown
from towpath.model.service import Protocol, ServiceKey

_EXAMPLES = (
    "'198.51.100.7:40000 -> 203.0.113.10:80 tcp' or '[2001:db8::7]:40000 -> [2001:db8::10]:80 udp'"
)
_PORT = Integer(1, 65535)


@dataclass(frozen=True, slots=True)
class FlowTuple:
    """Both ends of a flow, from the client's side."""

    source: Address
    source_port: int
    destination: Address
    destination_port: int
    protocol: Protocol

    @classmethod
    def parse(cls, text: str) -> "FlowTuple":
        """Read ``SRC:PORT -> DST:PORT PROTO``; the protocol may be left out: tcp.

        Raises ValueError that says which part is wrong and what is allowed.
        """
        match = re.fullmatch(r"\s*(\S+)\s*->\s*(\S+)(?:\s+(\S+))?\s*", text)
        if match is None:
            raise ValueError(f"{shown(text)} is not a flow; allowed: {_EXAMPLES}")
        source, source_port = _endpoint(match[1], "source")
        destination, destination_port = _endpoint(match[2], "destination")
        if source.version != destination.version:
            raise ValueError(
                f"source {source} is IPv{source.version} and destination {destination} is "
                f"IPv{destination.version}; allowed: both of one family"
            )
        protocol = _protocol(match[3] or "tcp")
        return cls(source, source_port, destination, destination_port, protocol)

    @property
    def key(self) -> ServiceKey:
        """The service that the flow would be for."""
        return ServiceKey(self.destination, self.destination_port, self.protocol)

    def __str__(self) -> str:
        source = _shown_endpoint(self.source, self.source_port)
        destination = _shown_endpoint(self.destination, self.destination_port)
        return f"{source} -> {destination} {self.protocol}"


def _endpoint(text: str, which: str) -> tuple[Address, int]:
    match = re.fullmatch(r"(?:\[([^]]*)\]|([^:]*)):([0-9]+)", text)
    if match is None:
        raise ValueError(
            f"{which} {shown(text)} is not ADDRESS:PORT (an IPv6 address in brackets); "
            f"allowed: such as {_EXAMPLES}"
        )
    try:
        address = IPv4Address(match[2]) if match[1] is None else IPv6Address(match[1])
        reason = not_unicast(address)
    except ValueError:
        family = "IPv4" if match[1] is None else "IPv6"
        given = match[2] if match[1] is None else match[1]
        raise ValueError(f"{which} {shown(given)} is not an {family} address") from None
    if reason:
        raise ValueError(f"{which} {address} {reason}; allowed: a unicast address")
    try:
        return address, _PORT.parse(int(match[3]))
    except ValueError as error:
        raise ValueError(f"{which} port {error}") from None


def _protocol(word: str) -> Protocol:
    try:
        return Protocol(word.lower())
    except ValueError:
        allowed = ", ".join(Protocol)
        raise ValueError(f"protocol {shown(word)} is not known; allowed: {allowed}") from None


def _shown_endpoint(address: Address, port: int) -> str:
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"
