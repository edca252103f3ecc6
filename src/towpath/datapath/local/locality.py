# SPDX-License-Identifier: Apache-2.0
"""Which addresses are on this node: its own, and those of pods behind devices of its own."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from typing import TYPE_CHECKING

from towpath.closeable import Closeable
from towpath.kernel.net import routes
from towpath.kernel.net.watch import Group, Watch
from towpath.model.kinds.patterns import matches

if TYPE_CHECKING:
    from collections.abc import Iterable

    from towpath.datapath.address import Address
    from towpath.kernel.net.devices import Devices
    from towpath.model.service import Backend, Forwarding
    from towpath.model.settings import Local

log = logging.getLogger(__name__)

_GROUPS = (
    Group.IPV4_ROUTE,
    Group.IPV6_ROUTE,
    Group.IPV4_RULE,
    Group.IPV6_RULE,
    Group.LINK,
)
"""What may lead an address to another device."""


class Locality(Closeable):
    """Says what is on this node, in the calling thread's network namespace.

    ``wish`` says which devices and prefixes are pods', ``devices`` has the node's. Not thread-safe.
    OSError: the kernel's routes can't be followed.
    """

    def __init__(self, wish: Local, devices: Devices) -> None:
        self._wish = wish
        self._devices = devices
        self._behind: dict[Address, bool] = {}
        """Those that were asked for, and whether the route to them leads to a pod's device."""
        self.translates = False
        """There are programs that translate for backends here: without, no translated one is."""
        with ExitStack() as undo:
            self._watch = undo.enter_context(Watch(_GROUPS)) if wish.devices else None
            self._own = self._addresses()
            self._own_numbers = frozenset(map(int, self._own))
            self._undo = undo.pop_all()

    def _addresses(self) -> frozenset[Address]:
        return frozenset(each.interface.ip for each in self._devices.addresses())

    def is_here(self, forwarding: Forwarding, backend: Backend) -> bool:
        """Whether packets of a forwarding to a backend are delivered on this node.

        Those that aren't translated if it is the node itself: a pod has them by its device, as any
        other host.
        """
        if forwarding == "snat":
            return self.translates and self.is_meant(backend)
        return self.is_own(backend.address)

    def is_meant(self, backend: Backend) -> bool:
        """Whether it is on this node, as somebody has said or addresses and routes do."""
        return backend.local or self.has(backend.address)

    def is_own(self, address: Address) -> bool:
        """Whether it is the node's own."""
        # Of a number the hash is there at once; of an address it takes longer than all else.
        return int(address) in self._own_numbers and address in self._own

    def has(self, address: Address) -> bool:
        """Whether it is the node's, or a pod's on it."""
        if self.is_own(address):
            return True
        if self._wish.prefixes and any(address in each for each in self._wish.prefixes):
            return True
        return bool(self._wish.devices) and self._is_behind(address)

    def _is_behind(self, address: Address) -> bool:
        if address not in self._behind:
            self._ask((address,))
        return self._behind[address]

    def _ask(self, addresses: Iterable[Address]) -> None:
        """Ask by which devices these are reached. KernelError, OSError: it isn't known."""
        addresses = tuple(addresses)
        questions = [routes.Question(each) for each in addresses]
        for address, route in zip(addresses, routes.routes(questions), strict=True):
            self._behind[address] = route.forwards and all(
                hop.gateway is None and self._is_pods(hop.device) for hop in route.hops
            )

    def _is_pods(self, index: int) -> bool:
        device = self._devices.get(index)
        return device is not None and any(
            matches(pattern, device.name) for pattern in self._wish.devices or ()
        )

    def look(self, addresses: Iterable[Address]) -> bool:
        """See what has changed, of what ``addresses`` ask for; whether anything has.

        ``devices`` has to have been read before. OSError, KernelError.
        """
        before = self._own
        self._own = self._addresses()
        self._own_numbers = frozenset(map(int, self._own))
        return self._look_at_routes(addresses) or self._own != before

    def _look_at_routes(self, addresses: Iterable[Address]) -> bool:
        if self._watch is None or self._watch.read() == []:
            return False
        before = self._behind
        self._behind = {}
        try:
            self._ask(each for each in addresses if each in before)
        except BaseException:
            self._behind = before
            raise
        return any(before[each] != now for each, now in self._behind.items())

    def close(self) -> None:
        """Follow no longer. Twice is once."""
        self._undo.close()
