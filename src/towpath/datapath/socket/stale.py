# SPDX-License-Identifier: Apache-2.0
"""Sockets of UDP that are connected to a backend that has gone, or is down: they are ended.

A connected socket of UDP never learns that its backend is no more, and asks no program again. So
its connection is ended, with an error (ECONNABORTED) that its program sees when it sends or
receives next, and connects anew. A socket that isn't connected asks for each datagram, and is never
touched.
"""

from __future__ import annotations

import errno as errnos
import logging
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import numpy as np

from towpath.datapath.address import pack, unpack
from towpath.datapath.socket.identity import service_identity
from towpath.kernel.errors import KernelError
from towpath.kernel.net.namespaces import Namespaces
from towpath.kernel.net.sockets import Ends, destroy
from towpath.layered import Layered
from towpath.model.service import BackendState, Protocol, Scope, ServiceKey

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from towpath.datapath.address import Address
    from towpath.datapath.lb.services import Installed
    from towpath.datapath.socket.listing import Listing
    from towpath.model.service import Backend

    Array = np.ndarray[Any, Any]

log = logging.getLogger(__name__)

_ASKED = ("service", "backend", "vip", "vip_port", "family", "protocol")
PASSES = 8
"""Lists of sockets that change meanwhile may lack some: so it is looked again while there are
any, so often at most."""
_PROTOCOLS = {protocol.number: protocol for protocol in Protocol}
_SCOPES: tuple[Scope, ...] = get_args(Scope)
_ESTABLISHED = 1  # TCP_ESTABLISHED
_GONE = frozenset((errnos.ENOENT,))
"""Its own program was faster, or has connected it elsewhere."""


@dataclass(frozen=True, slots=True)
class Live:
    """The backends that may be talked to, of one moment. For any thread."""

    by_identity: Mapping[int, tuple[Backend, ...]]
    """Those of each service, among others that are down."""
    exact: Mapping[ServiceKey, tuple[Backend, ...]]
    """The same by what the services are for: one port of one address,"""
    others: Mapping[ServiceKey, tuple[Backend, ...]]
    """or more."""
    _packed: dict[int, frozenset[bytes]] = field(default_factory=dict, compare=False)
    """Addresses of those that aren't down, of each service that was asked about."""

    def has(self, note: Any) -> bool:
        """Whether a note's backend is one of its service's, or of whichever has its VIP now."""
        backend = note["backend"].tobytes()
        if self._is_among(self.by_identity.get(int(note["service"]), ()), backend):
            return True
        vip = unpack(note["vip"].tobytes(), int(note["family"]))
        port, number = int(note["vip_port"]), int(note["protocol"])
        protocol = _PROTOCOLS.get(number)
        if protocol is not None and any(
            self._is_among(self.exact.get(ServiceKey(vip, port, protocol, scope), ()), backend)
            for scope in _SCOPES
        ):
            return True
        return any(
            self._is_among(backends, backend)
            for key, backends in self.others.items()
            if _is_for(key, vip, port, number)
        )

    def _is_among(self, backends: tuple[Backend, ...], packed: bytes) -> bool:
        # As long as this is there, so are they: no other can have the same id.
        if (usable := self._packed.get(id(backends))) is None:
            up = (each for each in backends if each.state is not BackendState.DOWN)
            usable = self._packed[id(backends)] = frozenset([pack(each.address) for each in up])
        return packed in usable


class LiveBackends:
    """Keeps them in step with the services. `now` returns those of the moment."""

    def __init__(self, installed: Mapping[ServiceKey, Installed]) -> None:
        self._identities: Layered[int, tuple[Backend, ...]] = Layered()
        self._exact: Layered[ServiceKey, tuple[Backend, ...]] = Layered()
        self._others: Layered[ServiceKey, tuple[Backend, ...]] = Layered()
        self.change(installed, tuple(installed))

    def change(
        self, installed: Mapping[ServiceKey, Installed], keys: Collection[ServiceKey]
    ) -> None:
        """Look at these services again, as they are in the kernel. Others stay as they are."""
        # With the keys and backends that there are already: they take no memory here.
        those = (installed[key] for key in keys if key in installed)
        found = {each.key: each.backends() for each in those}
        gone = [key for key in keys if key not in installed]
        self._identities = self._identities.changed(
            {service_identity(key): each for key, each in found.items()},
            map(service_identity, gone),
        )
        exact = {key: each for key, each in found.items() if key.exact}
        others = {key: each for key, each in found.items() if not key.exact}
        self._exact = self._exact.changed(exact, gone)
        self._others = self._others.changed(others, gone)

    def now(self) -> Live:
        """Return those of the moment."""
        return Live(self._identities, self._exact, self._others)


def _is_for(key: ServiceKey, vip: Address, port: int, protocol: int) -> bool:
    if (vip.version, protocol) != (key.vip.version, key.protocol.number) or port not in key.ports:
        return False
    mine = key.vip
    return vip in mine if isinstance(mine, IPv4Network | IPv6Network) else bool(vip == mine)


class Ended(NamedTuple):
    """What came of looking for stale sockets."""

    ended: int
    left: int
    """That could not be ended."""
    passes: int


class Search:
    """One search for stale sockets, in all namespaces: list, then judge and end, again and again.

    Judged is by what is live after sockets were listed: by what was live before, a socket that has
    just connected to a backend that has just come would be ended. Steps may be of any thread.

    ``tcp``: connections of TCP too, which else find out by themselves.
    """

    def __init__(self, listing: Listing, *, tcp: bool = False) -> None:
        self._listing, self._tcp = listing, tcp
        self._seen: Array | None = None
        self._failed: set[int] = set()
        self._ended, self._passes = 0, 0

    @property
    def result(self) -> Ended:
        """What has come of it."""
        return Ended(self._ended, len(self._failed), self._passes)

    def list(self) -> bool:
        """List sockets; whether there are any to be judged. KernelError: they can't be listed."""
        if self._passes == PASSES:
            return False
        self._passes += 1
        seen = _connected(self._listing) if self._tcp else self._listing.read("udp")
        self._seen = seen[~np.isin(seen["cookie"], list(self._failed))]
        return bool(len(self._seen))

    def end(self, live: Live) -> bool:
        """End those whose backend isn't live; whether there were any."""
        found = None if self._seen is None else _stale(self._seen, live)
        if found is None or not len(found):
            return False
        done, lost = _end(found)
        self._ended += done
        self._failed |= lost
        return True


def _connected(listing: Listing) -> Array:
    seen = listing.read("notes")
    connected: Array = seen[seen["state"] == _ESTABLISHED]
    return connected


def _stale(seen: Array, live: Live) -> Array:
    """Those whose backend isn't live; what is alike is looked at once."""
    notes = _packed_fields(seen["note"], _ASKED)
    alike = notes.view(f"V{notes.dtype.itemsize}")
    _, first, which = np.unique(alike, return_index=True, return_inverse=True)
    dead = np.array([not live.has(notes[at]) for at in first], bool)
    stale: Array = seen[dead[which.reshape(-1)]]
    return stale


def _packed_fields(rows: Array, names: Sequence[str]) -> Array:
    """Copy some fields, with nothing between them. numpy's own function has 2 MiB imported."""
    made = np.empty(len(rows), [(name, rows.dtype[name]) for name in names])
    for name in names:
        made[name] = rows[name]
    return made


def _end(found: Array) -> tuple[int, set[int]]:
    """How many were ended, and the cookies of those that could not be."""
    done, lost = 0, set()
    namespaces = Namespaces()
    for inode in np.unique(found["netns"]).tolist():
        those = found[found["netns"] == inode]
        try:
            with namespaces.entered(inode):
                results = destroy(_ends(those))
        except (KernelError, OSError) as error:
            log.warning("stale sockets in network namespace %d: %s", inode, error)
            lost |= set(those["cookie"].tolist())
            continue
        for cookie, result in zip(those["cookie"].tolist(), results, strict=True):
            done += not result
            if result and result not in _GONE:
                lost.add(cookie)
    return done, lost


def _ends(seen: Array) -> list[Ends]:
    """What sock_diag is told of each: column by column, since there may be many."""
    columns = (seen[name].tolist() for name in ("family", "ifindex", "cookie"))
    ports = (seen[name].tolist() for name in ("local_port", "remote_port"))
    packed = (_packed(seen[name]) for name in ("local", "remote"))
    rows = zip(*columns, *ports, *packed, seen["note"]["protocol"].tolist(), strict=True)
    return [
        Ends(family, protocol, (local, local_port), (remote, remote_port), ifindex, cookie)
        for family, ifindex, cookie, local_port, remote_port, local, remote, protocol in rows
    ]


def _packed(addresses: Array) -> list[bytes]:
    raw, size = np.ascontiguousarray(addresses).tobytes(), addresses.dtype.itemsize
    return [raw[at : at + size] for at in range(0, len(raw), size)]
