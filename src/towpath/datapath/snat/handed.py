# SPDX-License-Identifier: Apache-2.0
"""Flows of translated services as the kernel is given them, to go on with (`Tracked.give`)."""

from __future__ import annotations

from ipaddress import IPv4Address
from socket import AF_INET, AF_INET6
from typing import TYPE_CHECKING, Any

from towpath.datapath.flows.nat_table import ALL, CLOSING
from towpath.kernel.net.conntrack_flows import Ends, Handed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from towpath.datapath.flows.nat_table import NatFlows, Wanted
    from towpath.datapath.socket.packets.flows import FlowTable as PacketFlows

_FAMILIES: dict[int, int] = {AF_INET: 4, AF_INET6: 16}
"""Bytes of an address; the numbers of families are those of ``enum family``."""
_TCP, _UDP = 6, 17
_OPEN_SECONDS, _ENDING_SECONDS, _UDP_SECONDS = 86_400, 60, 120
"""After which the kernel forgets a flow that was handed to it, of which no packet has come: it has
times of its own from the first packet on."""


def elsewhere(translated: NatFlows, wanted: Wanted = ALL) -> Iterator[Handed]:
    """Flows whose backends see an address of ours."""
    for chunk in translated.chunks(wanted):
        for at in range(len(chunk)):
            source = translated.sources[int(chunk.sources[at])]
            family = AF_INET if isinstance(source, IPv4Address) else AF_INET6
            udp = bool(chunk.udp[at])
            ending = int(chunk.states[at]) == CLOSING
            backend = translated.backend_of(int(chunk.handles[at]))
            yield Handed(
                Ends(
                    family,
                    _UDP if udp else _TCP,
                    _short(chunk.clients[at].tobytes(), family),
                    _short(chunk.vips[at].tobytes(), family),
                    _port(chunk.client_ports[at]),
                    _port(chunk.vip_ports[at]),
                ),
                _short(backend, family),
                _port(chunk.backend_ports[at]),
                (source.packed, _port(chunk.ports[at])),
                passed=False,
                seconds=_seconds(udp=udp, ending=ending),
                ending=ending,
            )


def here(table: PacketFlows, seen: Mapping[Ends, tuple[bytes, bytes]]) -> Iterator[Handed]:
    """Flows whose backends, on this node, see the client.

    ``seen``: of a client as it leaves the programs here, what its backend sees where the kernel has
    it be somebody else.
    """
    for entries, states, _ in table.live():
        for entry, state in zip(entries, states, strict=True):
            family, protocol = int(entry["family"]), int(entry["protocol"])
            ending = str(state) == "closing"
            client = _short(entry["client"].tobytes(), family)
            backend = _short(entry["backend"].tobytes(), family)
            port, backend_port = _port(entry["port"]), _port(entry["backend_port"])
            there = Ends(family, protocol, client, backend, port, backend_port)
            yield Handed(
                there._replace(
                    destination=_short(entry["vip"].tobytes(), family),
                    source_port=_port(entry["client_port"]),
                    port=_port(entry["vip_port"]),
                ),
                backend,
                backend_port,
                seen.get(there, (client, port)),
                passed=True,
                seconds=_seconds(udp=protocol == _UDP, ending=ending),
                ending=ending,
            )


def in_parts(flows: Iterable[Handed], most: int) -> Iterator[list[Handed]]:
    """So many at once, and the rest."""
    some: list[Handed] = []
    for each in flows:
        some.append(each)
        if len(some) == most:
            yield some
            some = []
    if some:
        yield some


def _seconds(*, udp: bool, ending: bool) -> int:
    if udp:
        return _UDP_SECONDS
    return _ENDING_SECONDS if ending else _OPEN_SECONDS


def _short(packed: bytes, family: int) -> bytes:
    return packed[-_FAMILIES[family] :]


def _port(number: Any) -> bytes:
    return int(number).to_bytes(2, "big")
