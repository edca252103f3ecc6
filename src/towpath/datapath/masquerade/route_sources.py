# SPDX-License-Identifier: Apache-2.0
"""The source that each route prefers, for kernels whose FIB look-up doesn't tell it (before 6.7).

A table by longest prefix, of the device that a packet leaves by and its destination, in step with
all routes. Which of several tables rules choose isn't looked at: the device is the FIB's answer.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from towpath.closeable import Closeable
from towpath.datapath.masquerade.tables import PrefixTable
from towpath.kernel.net.messages import ROUTE, Netlink
from towpath.kernel.net.routes import listed
from towpath.kernel.net.watch import Group, Watch

if TYPE_CHECKING:
    from collections.abc import Iterable

    from towpath.datapath.address import Address
    from towpath.datapath.masquerade.program import MasqueradeProgram
    from towpath.datapath.masquerade.tables import Sources
    from towpath.kernel.net.devices import Owned
    from towpath.kernel.net.routes import Listed
    from towpath.model.kinds import Prefix

_GROUPS = (Group.IPV4_ROUTE, Group.IPV6_ROUTE, Group.NEXT_HOP)


class RouteSources(Closeable):
    """The table, in the calling thread's namespace. OSError: routes can't be followed."""

    def __init__(self, program: MasqueradeProgram) -> None:
        self._table = PrefixTable(program.maps["masq_routes4"], program.maps["masq_routes6"])
        with ExitStack() as undo:
            self._watch = undo.enter_context(Watch(_GROUPS))
            self._netlink = undo.enter_context(Netlink(ROUTE))
            self._undo = undo.pop_all()

    def fileno(self) -> int:
        """The descriptor that is readable when routes have changed."""
        return self._watch.fileno()

    def read(self) -> bool:
        """Whether routes have changed since the last call. OSError."""
        changes = self._watch.read()
        return changes is None or bool(changes)

    def sync(self, sources: Sources, addresses: Iterable[Owned]) -> None:
        """Read all routes. KernelError: there is no room for them. OSError."""
        owned = list(addresses)
        wanted: dict[tuple[int, Prefix], int] = {}
        for route in listed(self._netlink):
            source = route.source or _nearest(route, owned)
            number = None if source is None else sources.by_address.get(source)
            if number is not None:
                wanted.setdefault((route.device, route.prefix), number)
        self._table.replace(wanted)

    def close(self) -> None:
        """Follow no longer. Twice is once."""
        self._undo.close()


def _nearest(route: Listed, addresses: Iterable[Owned]) -> Address | None:
    """The address of the route's device that is in one network with its next hop, else its first.

    As the kernel chooses (inet_select_addr), but for scopes.
    """
    near = route.gateway or route.prefix.network_address
    first: Address | None = None
    for each in addresses:
        interface = each.interface
        usable = each.usable and not each.deprecated and not interface.is_link_local
        if each.device != route.device or interface.version != route.prefix.version or not usable:
            continue
        if near in interface.network and not each.secondary:
            return interface.ip
        first = first or interface.ip
    return first
