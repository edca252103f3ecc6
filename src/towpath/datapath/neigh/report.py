# SPDX-License-Identifier: Apache-2.0
"""Next hops as they are shown."""

from __future__ import annotations

import errno as errnos
from typing import TYPE_CHECKING, Literal

from towpath.documents import Doubtful, NextHop, NextHops, Unreached
from towpath.kernel.net.neighbours import STATES

if TYPE_CHECKING:
    from towpath.datapath.neigh.keeper import Keeper, Kept
    from towpath.kernel.net.neighbours import Key

_NEVER = 10 * 365 * 86400.0
"""Seconds: an entry that nothing has confirmed has the age of the machine's clock ticks."""


def report(keeper: Keeper) -> NextHops:
    """All that a keeper keeps, and what it can't reach."""
    unreached = {each.address: trouble for each, trouble in keeper.troubles().items()}
    return NextHops(
        tuple(_next_hop(keeper, key, kept) for key, kept in keeper.entries().items()),
        tuple(Unreached(each, text, reason) for each, (reason, text) in unreached.items()),
        keeper.managed,
        tuple(Doubtful(each, text, reason) for each, (reason, text) in keeper.doubtful().items()),
    )


def _next_hop(keeper: Keeper, key: Key, kept: Kept | None) -> NextHop:
    refused = keeper.refusals().get(key)
    entry = kept.entry if kept else None
    return NextHop(
        address=key.address,
        device=keeper.device_name(key.device),
        state=STATES.get(entry.state, "none") if entry else "none",
        mac=entry.mac.hex(":") if entry and entry.valid else None,
        owner=_owner(kept),
        held=bool(kept and kept.lasting),
        age=round(entry.confirmed, 2)
        if entry and entry.valid and entry.confirmed < _NEVER
        else None,
        probes=entry.probes if entry else 0,
        destinations=tuple(dict.fromkeys(each.address for each in keeper.wanted_by(key))),
        refused=errnos.errorcode.get(refused, str(refused)) if refused else None,
    )


def _owner(kept: Kept | None) -> Literal["towpath", "kernel", "other", "none"]:
    if kept is None:
        return "none"
    if kept.ours:
        return "towpath"
    return "other" if kept.taken else "kernel"
