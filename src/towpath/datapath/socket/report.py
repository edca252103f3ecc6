# SPDX-License-Identifier: Apache-2.0
"""What there is to say of services at the socket."""

from __future__ import annotations

import errno
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from towpath.datapath.address import unpack
from towpath.datapath.socket.packets.flows import FlowTable, packet_flows
from towpath.datapath.socket.program import chooses_errors
from towpath.documents import (
    Socket,
    SocketFlow,
    SocketHook,
    SocketPackets,
    SocketProgram,
    SocketStale,
)
from towpath.kernel.errors import KernelError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from towpath.datapath.address import Address
    from towpath.datapath.attach.places import Place
    from towpath.datapath.cgroup.root import Proof
    from towpath.datapath.socket.balancer import SocketBalancer
    from towpath.datapath.socket.counters import Reading
    from towpath.datapath.socket.packets.node import Node
    from towpath.documents import PacketFlow

_PROTOCOLS = {6: "tcp", 17: "udp"}


class Taken(NamedTuple):
    """What only the thread that changes services can tell; it is quickly taken."""

    reading: Reading
    hooks: tuple[SocketHook, ...]


def take(sockets: SocketBalancer) -> Taken:
    """Take it. KernelError."""
    return Taken(sockets.reading(), tuple(_hook(place) for place in sockets.places))


def report(sockets: SocketBalancer, taken: Taken, proof: Proof) -> Socket:
    """All of it but the sockets. For any thread. KernelError."""
    chosen = sockets.refuse_with if chooses_errors() else 0
    stale = sockets.stale
    return Socket(
        cgroup=sockets.name,
        refuse=errno.errorcode[chosen or errno.EPERM],
        excluded=tuple(map(str, sockets.exclude)),
        proven=proof.proven,
        proof=proof.why,
        hooks=taken.hooks,
        counters=taken.reading.counters(),
        stale=SocketStale(stale.ended, stale.left, stale.passes),
        troubles=sockets.troubles,
        packets=report_packets(sockets),
    )


def report_packets(sockets: SocketBalancer) -> SocketPackets | None:
    """What was counted of packets; None: none are translated. For any thread. KernelError."""
    return None if sockets.packets is None else sockets.packets.asked(_packets)


def _packets(node: Node) -> SocketPackets:
    counts = node.program.counts()
    bytes_ = {name: each.pop("bytes") for name, each in counts.items()}
    begun = sum(each.pop("begun") for each in counts.values())
    return SocketPackets(
        devices=tuple(sorted(node.devices.values())),
        verdicts=counts,
        begun=begun,
        bytes=bytes_,
        flows=FlowTable(node.program).count(),
        capacity=node.capacity,
    )


def _hook(place: Place) -> SocketHook:
    try:
        programs = tuple(
            SocketProgram(
                each.name, each.program_id, each.place, each.program_id == place.program.id
            )
            for each in place.hook.programs()
        )
    except KernelError:  # its cgroup has gone
        programs = ()
    return SocketHook(place.name, not place.lost, programs)


# ---- Sockets -------------------------------------------------------------------------------------


class Wanted(NamedTuple):
    """Which sockets: all that is given must be so."""

    service: str | None = None
    backend: Address | None = None
    protocol: str | None = None
    connected: bool | None = None
    netns: int | None = None

    @property
    def packets(self) -> dict[str, object] | None:
        """The same of flows whose packets are translated. None: none of them is wanted."""
        if self.connected is not None or self.netns is not None:
            return None
        return {"service": self.service, "backend": self.backend, "protocol": self.protocol}


def flows(sockets: SocketBalancer, wanted: Wanted, limit: int) -> list[SocketFlow]:
    """Sockets that talk to services, ``limit`` at most. KernelError: they can't be listed."""
    return list(islice(_flows(sockets, wanted), limit))


def packets(sockets: SocketBalancer, wanted: Wanted, limit: int) -> list[PacketFlow]:
    """Flows whose packets are translated, ``limit`` at most. KernelError: they can't be read."""
    asked = wanted.packets
    if sockets.packets is None or asked is None:
        return []
    return sockets.packets.asked(lambda node: packet_flows(node, limit, **asked))


def _flows(sockets: SocketBalancer, wanted: Wanted) -> Iterator[SocketFlow]:
    ids = sockets.program.rows("socket_service_ids")
    names = {key: each.name for key, each in sockets.contents.by_key.items()}
    services = {
        int(ids[each.index]): names.get(each.key, str(each.key))
        for each in sockets.contents.installed
    }
    for which in ("notes", "peers"):
        for seen in sockets.listing().read(which):
            made = _flow(seen, services, connected=which == "notes")
            if made is not None and _is_wanted(made, wanted):
                yield made


def _flow(seen: Any, services: dict[int, str], *, connected: bool) -> SocketFlow | None:
    note = seen["note"]
    family = int(note["family"])
    backend, port = unpack(note["backend"].tobytes(), family), int(note["backend_port"])
    if connected and int(seen["remote_port"]) != port:
        return None  # it is connected no more, or elsewhere
    local = unpack(seen["local"].tobytes(), int(seen["family"]))
    return SocketFlow(
        protocol=_PROTOCOLS[int(note["protocol"])],
        service=services.get(int(note["service"]), ""),
        vip=unpack(note["vip"].tobytes(), family),
        port=int(note["vip_port"]),
        backend=backend,
        backend_port=port,
        connected=connected,
        local=getattr(local, "ipv4_mapped", None) or local,
        local_port=int(seen["local_port"]),
        cookie=int(seen["cookie"]),
        netns=int(seen["netns"]),
    )


def _is_wanted(flow: SocketFlow, wanted: Wanted) -> bool:
    asked = wanted._asdict()
    return all(value is None or getattr(flow, name) == value for name, value in asked.items())
