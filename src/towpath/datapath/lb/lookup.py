# SPDX-License-Identifier: Apache-2.0
"""Which packets are for which service: what ``bpf/lb/service.h`` looks up.

One port of one address is a key of the index of VIPs. More ports, or more
addresses, are a prefix in the same index that leads to pages of ports; and every
VIP is there once more without ports, for packets that have none. A change of the
ports is one store, to the slot of the prefix.
"""

from __future__ import annotations

from collections import ChainMap, Counter
from contextlib import ExitStack
from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import TYPE_CHECKING, Any

from towpath.datapath.address import family, pack, unpack
from towpath.datapath.errors import CapacityError
from towpath.datapath.lb.dry_run import DryRunCounts, DryRunIndex, DryRunPages
from towpath.model.kinds import Address, Ports, Prefix
from towpath.model.service import Protocol, ServiceKey

if TYPE_CHECKING:
    from collections.abc import Iterator, MutableMapping

    import numpy as np

    from towpath.datapath.lb.port_pages import PortPages
    from towpath.datapath.lb.vips import VipIndex

_ANY_PROTOCOL = 0
_PRESENT = 1
_NODE = 0x80
"""VIP_NODE: added to the protocol of what is for this node only."""
_PROTOCOLS = {protocol.number: protocol for protocol in Protocol}
Space = tuple[Address | Prefix, int]
"""A prefix and a protocol: what has pages of ports of its own."""


def pack_key(key: ServiceKey) -> bytes:
    """Return the 20 bytes of ``struct vip_key`` of an exact key."""
    vip, port = key.vip, key.port
    if not isinstance(vip, IPv4Address | IPv6Address) or not isinstance(port, int):
        raise TypeError(f"{key} is for more than one port of one address")
    number = key.protocol.number | (_NODE if key.scope == "node" else 0)
    return pack(vip) + port.to_bytes(2, "big") + bytes((number, family(vip)))


class Lengths:
    """Which lengths the prefixes in the index have, as the program looks for them.

    ``words`` is a field of ``struct vip_lengths``: for IPv4 and IPv6 a word with room for ``most``
    lengths. A length is there while someone needs it.
    """

    def __init__(self, words: np.ndarray[Any, Any], most: int) -> None:
        self._words = words
        self._most = most
        self._users: dict[int, Counter[int]] = {4: Counter(), 6: Counter()}

    def dry_run(self) -> Lengths:
        """Return a copy that the program does not see."""
        copy = Lengths(self._words.copy(), self._most)
        copy._users = {version: users.copy() for version, users in self._users.items()}
        return copy

    def need(self, vip: Address | Prefix) -> None:
        """Have prefixes of that length looked for. CapacityError: they are too many lengths."""
        users = self._users[vip.version]
        length = _length(vip)
        if length not in users and len(users) == self._most:
            raise CapacityError("lengths of VIP prefixes", self._most + 1, self._most)
        users[length] += 1
        self._store(vip.version)

    def leave(self, vip: Address | Prefix) -> None:
        """Need a length no more."""
        users = self._users[vip.version]
        users[_length(vip)] -= 1
        if not users[_length(vip)]:
            del users[_length(vip)]
        self._store(vip.version)

    def _store(self, version: int) -> None:
        word = sum(n << 8 * i for i, n in enumerate(sorted(self._users[version], reverse=True)))
        self._words[0 if version == 4 else 1] = word  # noqa: PLR2004 - the IP version


class Endpoints:
    """Leads packets to services.

    ``prefix_flag`` is VIP_PREFIX. ``with_ports`` and ``known``: the lengths of prefixes that have
    pages of ports, and of all VIPs.
    """

    def __init__(
        self,
        index: VipIndex | DryRunIndex,
        pages: PortPages | DryRunPages,
        with_ports: Lengths,
        known: Lengths,
        prefix_flag: int,
    ) -> None:
        self._index = index
        self._pages = pages
        self._with_ports = with_ports
        self._known = known
        self._flag = prefix_flag
        self._spaces: MutableMapping[Space, dict[int, Ports]] = {}
        self._vips: Counter[Address | Prefix] | DryRunCounts[Address | Prefix] = Counter()

    def dry_run(self) -> Endpoints:
        """Return a copy for going through changes, which leaves the kernel's tables alone."""
        copy = Endpoints(
            DryRunIndex(self._index.get),
            DryRunPages(self._pages),
            self._with_ports.dry_run(),
            self._known.dry_run(),
            self._flag,
        )
        copy._spaces = ChainMap({}, self._spaces)
        copy._vips = DryRunCounts(self._vips)
        return copy

    def publish(self, key: ServiceKey, service: int) -> None:
        """Let packets for ``key`` find a service. CapacityError: there is no room; as before."""
        if key.scope == "node":
            # Packets that come in have no part in it: the address is no VIP to them.
            self._index.set(pack_key(key), service)
            return
        self._learn(key.vip)
        try:
            if key.exact:
                self._index.set(pack_key(key), service)
            else:
                self._rebuild(key, self._ports(_space(key)) | {service: key.ports})
        except CapacityError:
            self._forget(key.vip)
            raise

    def withdraw(self, key: ServiceKey, service: int) -> None:
        """Let packets for ``key`` pass to the kernel, if they find that service."""
        if not key.exact:
            self._rebuild(key, self._without(_space(key), service))
        elif self._index.get(pack_key(key)) == service:
            self._index.remove(pack_key(key))
        if key.scope == "all":
            self._forget(key.vip)

    def move(self, old: ServiceKey, new: ServiceKey, service: int) -> None:
        """Let packets for ``new`` find a service that was found for ``old``.

        Where both are ports of one prefix it is one store, else the new is there before the old
        goes. CapacityError: as before.
        """
        if old.exact or new.exact or _space(old) != _space(new):
            self.publish(new, service)
            self.withdraw(old, service)
            return
        self._rebuild(new, self._without(_space(old), service) | {service: new.ports})

    def adopt(self) -> Iterator[tuple[ServiceKey, int]]:
        """Take over what is in the kernel: yield each key and its service."""
        for raw, value in list(self._index):
            vip, number = self._unpack(raw)
            if not raw[19] & self._flag:
                port = int.from_bytes(raw[16:18], "big")
                if number & _NODE:
                    yield ServiceKey(vip, port, _PROTOCOLS[number & ~_NODE], "node"), value
                    continue
                self._learn(vip)
                yield ServiceKey(vip, port, _PROTOCOLS[number]), value
            elif number != _ANY_PROTOCOL:
                yield from self._adopt_pages(vip, number, value)
        self._drop_unknown()

    def _adopt_pages(
        self, vip: Address | Prefix, number: int, page: int
    ) -> Iterator[tuple[ServiceKey, int]]:
        self._pages.reserve(page)
        self._with_ports.need(vip)
        for service, ports in self._pages.read(page).items():
            self._learn(vip)
            self._spaces.setdefault((vip, number), {})[service] = ports
            yield ServiceKey(vip, ports.plain, _PROTOCOLS[number]), service

    def _drop_unknown(self) -> None:
        """A VIP may be known still, or known already, of which no service is left or came."""
        for raw, _ in list(self._index):
            if not raw[19] & self._flag:
                continue
            vip, number = self._unpack(raw)
            if number == _ANY_PROTOCOL and vip not in self._vips:
                self._index.remove(raw)

    def _without(self, space: Space, service: int) -> dict[int, Ports]:
        return {each: ports for each, ports in self._ports(space).items() if each != service}

    def _ports(self, space: Space) -> dict[int, Ports]:
        return self._spaces.get(space) or {}

    def _rebuild(self, key: ServiceKey, ports: dict[int, Ports]) -> None:
        """Give the space of a key other ports: new pages first, then one store."""
        space = _space(key)
        raw = self._prefix_key(*space)
        old = self._index.get(raw)
        if not ports:
            self._index.remove(raw)
            self._with_ports.leave(key.vip)
            self._spaces[space] = {}
        else:
            with ExitStack() as undo:
                page = self._pages.build(ports)
                undo.callback(self._pages.retire, page)
                if not old:
                    self._with_ports.need(key.vip)
                    undo.callback(self._with_ports.leave, key.vip)
                self._index.set(raw, page)
                undo.pop_all()
            self._spaces[space] = ports
        if old:
            self._pages.retire(old)

    def _learn(self, vip: Address | Prefix) -> None:
        if vip not in self._vips:
            with ExitStack() as undo:
                self._known.need(vip)
                undo.callback(self._known.leave, vip)
                self._index.set(self._prefix_key(vip, _ANY_PROTOCOL), _PRESENT)
                undo.pop_all()
        self._vips[vip] += 1

    def _forget(self, vip: Address | Prefix) -> None:
        self._vips[vip] -= 1
        if not self._vips[vip]:
            del self._vips[vip]
            self._index.remove(self._prefix_key(vip, _ANY_PROTOCOL))
            self._known.leave(vip)

    def _prefix_key(self, vip: Address | Prefix, number: int) -> bytes:
        address = vip if isinstance(vip, IPv4Address | IPv6Address) else vip.network_address
        tail = bytes((number, family(address) | self._flag))
        return pack(address) + _length(vip).to_bytes(2, "big") + tail

    def _unpack(self, raw: bytes) -> tuple[Address | Prefix, int]:
        """The VIP and the protocol number in a key."""
        address = unpack(raw[:16], raw[19] & ~self._flag)
        length = int.from_bytes(raw[16:18], "big")
        if not raw[19] & self._flag or length == address.max_prefixlen:
            return address, raw[18]
        return ip_network((address, length)), raw[18]


def _space(key: ServiceKey) -> Space:
    return key.vip, key.protocol.number


def _length(vip: Address | Prefix) -> int:
    """The length of a prefix; of an address all its bits."""
    return vip.max_prefixlen if isinstance(vip, IPv4Address | IPv6Address) else vip.prefixlen
