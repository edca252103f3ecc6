# SPDX-License-Identifier: Apache-2.0
"""Connected sockets of UDP in many network namespaces, whose backend is removed."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack, closing
from dataclasses import replace
from ipaddress import IPv4Address
from typing import NamedTuple

from towpath.bench.errors import BenchError
from towpath.bench.socket_world import Worker
from towpath.datapath.lb.contents import Contents
from towpath.datapath.maps.shared import SharedMaps
from towpath.datapath.socket.balancer import SocketBalancer
from towpath.kernel.cgroup import mount_point
from towpath.kernel.net import interfaces
from towpath.kernel.net.netns import new_netns
from towpath.model.service import Backend, Protocol, Service
from towpath.model.settings import Limits

NAMESPACES, EACH = 50, 200
_VIP, _OTHER = IPv4Address("198.18.64.1"), IPv4Address("198.18.64.2")
_GONE, _STAYS = IPv4Address("198.19.0.10"), IPv4Address("198.19.0.11")
_PORT = 53
_CONTROLS = 10


class Moved(NamedTuple):
    """What came of the removal."""

    sockets: int
    """Connected to the backend that was removed."""
    moved_ms: float
    """From the removal until all of them were ended."""
    touched_wrongly: int
    """Of others: not connected, of another service on that backend, or of its own address."""
    others: int
    namespaces: int


def measure_stale(namespaces: int = NAMESPACES, each: int = EACH) -> Moved:
    """Remove the backend of sockets, and see what becomes of these and of others."""
    limits = replace(
        Limits(), services=16, backends=64, flows=1024, nat_flows=1024, table_slots=16384
    )
    with ExitStack() as undo:
        path = mount_point() / f"towpath-bench-stale-{os.getpid()}"
        path.mkdir()
        undo.callback(path.rmdir)
        tables = undo.enter_context(closing(SharedMaps(limits)))
        contents = Contents(tables)
        sockets = undo.enter_context(SocketBalancer(tables, contents, path))
        contents.apply([_service(_VIP, _GONE), _service(_OTHER, _GONE)])
        sockets.changed()
        sockets.listing()  # as an agent that runs has it
        home = undo.enter_context(new_netns())
        mine, others = (undo.enter_context(Worker(home, path)) for _ in range(2))
        _keep(undo, mine, others, namespaces, each)
        begun = time.perf_counter()
        sockets.changed(contents.apply([_service(_VIP, _STAYS), _service(_OTHER, _GONE)]))
        sockets.end_stale()
        took = time.perf_counter() - begun
        ended, touched = mine.ask("errors"), others.ask("errors")
    if ended["errors"] != namespaces * each:
        raise BenchError(f"{namespaces * each - ended['errors']} sockets were not ended")
    return Moved(
        namespaces * each,
        round(took * 1e3, 1),
        touched["errors"],
        touched["sockets"],
        namespaces,
    )


def _service(vip: IPv4Address, backend: IPv4Address) -> Service:
    return Service(f"s{vip}", vip, _PORT, Protocol.UDP, (Backend(backend),), table_size=251)


def _keep(undo: ExitStack, mine: Worker, others: Worker, namespaces: int, each: int) -> None:
    """Have sockets that are to be ended, and others that are not."""
    for _ in range(namespaces):
        namespace = undo.enter_context(new_netns())
        with interfaces.connected() as wire:
            loopback = interfaces.device_index("lo")
            wire.link("set", index=loopback, state="up")
            for address in (_GONE, _STAYS):
                wire.addr("add", index=loopback, address=str(address), prefixlen=32)
        where = {"port": _PORT, "namespace": f"/proc/{os.getpid()}/fd/{namespace}"}
        mine.ask("keep", address=str(_VIP), number=each, connected=True, **where)
        for address, connected in ((_VIP, False), (_OTHER, True), (_GONE, True)):
            others.ask("keep", address=str(address), number=_CONTROLS, connected=connected, **where)
