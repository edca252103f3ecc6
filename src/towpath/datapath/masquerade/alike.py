# SPDX-License-Identifier: Apache-2.0
"""Whether all flows to an address go one way, so that it need be asked for once.

Those between two addresses don't if a rule looks at ports, protocols or DSCP, or a route has
several next hops; those to one address don't either if a rule or a route looks at sources. What
isn't known is taken for different, until all is read anew.
"""

from __future__ import annotations

import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING

from towpath.closeable import Closeable
from towpath.kernel.net import selectors
from towpath.kernel.net.messages import ROUTE, Netlink
from towpath.kernel.net.routes import differences, has_several, has_sources
from towpath.kernel.net.watch import Group, Watch

if TYPE_CHECKING:
    from towpath.datapath.masquerade.program import MasqueradeProgram
    from towpath.kernel.net.watch import Change

_GROUPS = (
    Group.IPV4_ROUTE,
    Group.IPV6_ROUTE,
    Group.IPV4_RULE,
    Group.IPV6_RULE,
    Group.NEXT_HOP,
)
_NEW_ROUTE, _DEL_ROUTE = 24, 25  # RTM_*
_V4, _V6 = 4, 6


class Alike(Closeable):
    """Keeps the program told, in the calling thread's namespace. OSError: it can't be followed."""

    def __init__(self, program: MasqueradeProgram) -> None:
        self._states = program.maps["masq_states"]
        enum = "masquerade_alike"
        self._bits = {
            version: (
                program.constant(enum, f"MASQ_ALIKE{version}"),
                program.constant(enum, f"MASQ_ALIKE_SOURCES{version}"),
            )
            for version in (_V4, _V6)
        }
        with ExitStack() as undo:
            self._watch = undo.enter_context(Watch(_GROUPS))
            self._undo = undo.pop_all()

    def fileno(self) -> int:
        """The descriptor that is readable when something has changed."""
        return self._watch.fileno()

    def read(self) -> None:
        """Take in what has changed. OSError."""
        changes = self._watch.read()
        if changes is None or any(map(_may_differ, changes)):
            self._tell(0)

    def sync(self) -> None:
        """Read all anew. KernelError: the kernel refuses to tell."""
        self._watch.read()  # what it tells of is in what is read now
        with Netlink(ROUTE) as netlink:
            looked_at = selectors.dump(netlink)
        routes = differences()
        alike = 0
        for version, (flows, sources) in self._bits.items():
            if looked_at[version].fields or routes[version].several:
                continue
            alike |= flows
            if not looked_at[version].sources and not routes[version].sources:
                alike |= sources
        self._tell(alike)
        self.read()

    def _tell(self, alike: int) -> None:
        state = self._states.lookup(0)
        if int(state["alike"]) != alike:
            state["alike"] = alike
            self._states.update(0, state)

    def close(self) -> None:
        """Follow no longer: all are taken for different."""
        self._tell(0)
        self._undo.close()


def _may_differ(change: Change) -> bool:
    """Whether flows may go several ways since a change."""
    if change.kind == _DEL_ROUTE:
        return False
    if change.kind == _NEW_ROUTE and change.body[0] in (socket.AF_INET, socket.AF_INET6):
        return has_several(change.body) or has_sources(change.body)
    return True  # rules, nexthop objects
