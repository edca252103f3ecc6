# SPDX-License-Identifier: Apache-2.0
"""A flow as people write it: ``198.51.100.7:40000 -> 203.0.113.10:80 tcp``."""

import re
from dataclasses import dataclass

from towpath.model.kinds import Address, FieldError, not_unicast, shown, split_endpoint
from towpath.model.service import Protocol, ServiceKey, endpoint

_EXAMPLES = (
    "SRC:PORT -> DST:PORT PROTOCOL, such as '198.51.100.7:40000 -> 203.0.113.10:80 tcp' or "
    "'[2001:db8::7]:40000 -> [2001:db8::10]:80 udp'"
)


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
        """Read ``SRC:PORT -> DST:PORT PROTOCOL``; without a protocol it is tcp.

        Raises ValueError that says which part is wrong and what is allowed.
        """
        match = re.fullmatch(r"\s*(\S+)\s*->\s*(\S+)(?:\s+(\S+))?\s*", text)
        if match is None:
            raise FieldError(f"{shown(text)} is not a flow; allowed: {_EXAMPLES}")
        source, source_port = _end(match[1], "source")
        destination, destination_port = _end(match[2], "destination")
        if source.version != destination.version:
            raise FieldError(
                f"source {source} is IPv{source.version}, destination {destination} is "
                f"IPv{destination.version}; allowed: both of one family"
            )
        protocol = _protocol(match[3] or "tcp")
        return cls(source, source_port, destination, destination_port, protocol)

    @property
    def key(self) -> ServiceKey:
        """The service that the flow would be for."""
        return ServiceKey(self.destination, self.destination_port, self.protocol)

    def __str__(self) -> str:
        source = endpoint(self.source, self.source_port)
        destination = endpoint(self.destination, self.destination_port)
        return f"{source} -> {destination} {self.protocol}"


def _end(text: str, which: str) -> tuple[Address, int]:
    try:
        address, port = split_endpoint(text)
    except FieldError as error:
        raise FieldError(f"{which}: {error}") from None
    if reason := not_unicast(address):
        raise FieldError(f"{which}: {address} {reason}; allowed: a unicast address")
    return address, port


def _protocol(word: str) -> Protocol:
    try:
        return Protocol(word.lower())
    except ValueError:
        allowed = ", ".join(Protocol)
        raise FieldError(f"protocol: {shown(word)} is not known; allowed: {allowed}") from None
