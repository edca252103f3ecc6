# SPDX-License-Identifier: Apache-2.0
"""A packet of a flow as people write it for a trace."""

import re
from dataclasses import dataclass
from typing import Literal, get_args

from towpath.model.flow import FlowTuple
from towpath.model.kinds import FieldError
from towpath.model.service import Protocol

Kind = Literal["packet", "syn", "rst", "error", "fragment", "quic"]

_SUFFIX = re.compile(
    r"(?P<flow>.*\S)\s+"
    r"(?:size\s+(?P<size>\S+)|quic\s+(?P<id>\S+)|(?P<kind>syn|rst|error|fragment))\s*"
)
_IP_HEADER = {4: 20, 6: 40}
_TRANSPORT_HEADER = {6: 20, 17: 8}
# As large as an IPv4 packet can be. Kernels before 5.18 take no more than a page has room for.
MAX_SIZE = 65535
# RFC 9000, 17.2.
_MAX_ID = 20


@dataclass(frozen=True, slots=True)
class TracedPacket(FlowTuple):
    """A packet of a flow, or one about it: what a trace runs the program on."""

    kind: Kind = "packet"
    """packet: TCP or UDP, of a flow that goes on. syn: TCP, of one that begins. rst: TCP, of one
    that is reset. error: an ICMP error that quotes a packet to the client. fragment: the first
    fragment of a packet. quic: a datagram with a short header and a connection id."""
    size: int | None = None
    """Bytes of the IP packet. None: as few as its headers have."""
    connection_id: str = ""
    """Of QUIC, in hexadecimal digits."""

    @classmethod
    def parse(cls, text: str) -> "TracedPacket":
        """Read a flow, behind which may stand ``size BYTES``, ``quic ID`` or a kind: ``syn``, ...

        Raises ValueError that says which part is wrong and what is allowed.
        """
        match = _SUFFIX.fullmatch(text)
        if match is None:
            return cls.of(FlowTuple.parse(text))
        flow = FlowTuple.parse(match["flow"])
        if match["kind"] is not None:
            kind = next(each for each in get_args(Kind) if each == match["kind"])
            if kind in {"syn", "rst"} and flow.protocol is not Protocol.TCP:
                raise FieldError(f"{kind}: of {flow.protocol}; allowed: of tcp")
            return cls.of(flow, kind)
        if match["id"] is not None:
            return cls.of(flow, "quic", connection_id=_connection_id(match["id"], flow))
        return cls.of(flow, size=_size(match["size"], flow))

    @classmethod
    def of(
        cls,
        flow: FlowTuple,
        kind: Kind = "packet",
        size: int | None = None,
        connection_id: str = "",
    ) -> "TracedPacket":
        """Return a packet of a flow."""
        return cls(
            flow.source,
            flow.source_port,
            flow.destination,
            flow.destination_port,
            flow.protocol,
            kind,
            size,
            connection_id,
        )

    def __str__(self) -> str:
        suffix = "" if self.kind == "packet" else f" {self.kind}"
        suffix += f" {self.connection_id}" if self.connection_id else ""
        return FlowTuple.__str__(self) + (suffix if self.size is None else f" size {self.size}")


def smallest(flow: FlowTuple) -> int:
    """Return the bytes of a flow's packet without data."""
    return _IP_HEADER[flow.source.version] + _TRANSPORT_HEADER[flow.protocol.number]


def _size(text: str, flow: FlowTuple) -> int:
    least = smallest(flow)
    if not re.fullmatch(r"\d{1,6}", text, re.ASCII) or not least <= int(text) <= MAX_SIZE:
        raise FieldError(f"size: {text} is no size; allowed: {least} to {MAX_SIZE} bytes")
    return int(text)


def _connection_id(text: str, flow: FlowTuple) -> str:
    if flow.protocol is not Protocol.UDP:
        raise FieldError(f"quic: of {flow.protocol}; allowed: of udp")
    if not re.fullmatch(rf"([0-9a-f]{{2}}){{1,{_MAX_ID}}}", text.lower(), re.ASCII):
        raise FieldError(
            f"quic: {text} is no connection id; allowed: 1 to {_MAX_ID} bytes in hexadecimal digits"
        )
    return text.lower()
