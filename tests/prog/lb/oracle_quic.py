# SPDX-License-Identifier: Apache-2.0
"""What a connection id of QUIC must say, a second time in plain Python.

Written from RFC 8999 (what all versions have alike), RFC 9000, 17.2 and RFC 9369, 3.2 (types of
long headers in versions 1 and 2) and draft-ietf-quic-load-balancers (3 and 5). Katran's ids: two
bits of version, then 16 bits of id in version 1; in 2 and 3 the id is in the 3 or 4 bytes behind
the first one; 8 bytes at least.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.prog.lb.oracle_parse import UDP, Packet, number, transport_offset

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.prog.lb.oracle_parse import Address

NAMED, INITIAL, UNKNOWN, DOWN = "named", "initial", "unknown", "down"
FURTHEST = 1024  # where UDP's header may begin in a frame
NONCE = 4
FIRST_TYPES = {1: (0, 1), 0x6B3343CF: (1, 2)}
"""Of Initial and 0-RTT packets, by version."""


@dataclass(frozen=True)
class Ids:
    """What a service's ids look like, and whom they name."""

    katran: bool = False
    length: int = 0
    rotation: int = 0
    tells: bool = False
    servers: Mapping[int, Address] = field(default_factory=dict, hash=False)
    down: frozenset[Address] = frozenset()


def datagram(packet: Packet, link: int) -> bytes:
    """The data behind UDP's header, as far as the packet has it. ``link``: bytes before that."""
    at = transport_offset(packet)
    if link + at > FURTHEST:
        return b""
    udp = packet.behind_link[at : packet.length]
    return udp[8 : number(udp[4:6])]


def ask(ids: Ids, packet: Packet, link: int) -> tuple[str, Address | None]:
    """What the id says, and the backend that it names."""
    assert packet.flow.protocol == UDP
    said, server = server_of(ids, datagram(packet, link))
    if said != NAMED:
        return said, None
    backend = ids.servers.get(server)
    if backend is None:
        return UNKNOWN, None
    return (DOWN, None) if backend in ids.down else (NAMED, backend)


def server_of(ids: Ids, data: bytes) -> tuple[str, int]:
    """What the id in a datagram says by itself, and the server's."""
    if not data:
        return UNKNOWN, 0
    if not data[0] & 0x80:
        return in_id(ids, data[1:], told=None)
    if len(data) < 6:
        return UNKNOWN, 0
    version, kind = number(data[1:5]), data[0] >> 4 & 3
    if kind in FIRST_TYPES.get(version, ()):
        return INITIAL, 0
    connection_id = data[6 : 6 + data[5]]
    if len(connection_id) < data[5]:
        return UNKNOWN, 0
    return in_id(ids, connection_id, told=len(connection_id))


def in_id(ids: Ids, raw: bytes, told: int | None) -> tuple[str, int]:
    """The server's id in a connection id, of which ``raw`` may be longer where nobody has told."""
    if ids.katran:
        version = raw[0] >> 6 if len(raw) >= 8 else 0
        if version == 1:
            return NAMED, number(raw[:3]) >> 6 & 0xFFFF
        return (NAMED, number(raw[1 : 2 + version])) if version else (UNKNOWN, 0)
    if len(raw) < 1 + ids.length + NONCE or raw[0] >> 5 != ids.rotation:
        return UNKNOWN, 0
    if ids.tells:
        size = 1 + (raw[0] & 31)
        right = size == told if told is not None else 1 + ids.length + NONCE <= size <= len(raw)
        if not right:
            return UNKNOWN, 0
    return NAMED, number(raw[1 : 1 + ids.length])
