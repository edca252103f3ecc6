# SPDX-License-Identifier: Apache-2.0
"""Which neighbours are kept, and in what order the kernel is asked for them."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Collection, Hashable, Mapping

K = TypeVar("K", bound="Hashable")


class Entry(Protocol):
    """What the kernel has for a next hop, as far as it matters here."""

    @property
    def ours(self) -> bool:
        """Made by Towpath, and since then changed by no one else."""

    @property
    def taken(self) -> bool:
        """Somebody's on purpose: permanent, or learnt by another program."""

    @property
    def valid(self) -> bool:
        """The kernel has a MAC address for it."""

    @property
    def lasting(self) -> bool:
        """It is kept though its device loses its carrier."""


class Action(enum.Enum):
    """What is to be done for one next hop."""

    MAKE = "make"
    """There is none: the kernel makes one, and asks the network."""
    ADOPT = "adopt"
    """There is one that the kernel has made for a packet: it is kept from now on."""
    HOLD = "hold"
    """It is resolved: from now on it outlasts a loss of carrier."""
    REMOVE = "remove"
    """It is ours, and nobody wants it any more."""


def action(entry: Entry | None, *, wanted: bool, can_hold: bool) -> Action | None:
    """What is to be done for a next hop; None: nothing.

    ``can_hold``: the kernel knows entries that outlast a loss of carrier.
    """
    if entry is None:
        return Action.MAKE if wanted else None
    if not wanted:
        return Action.REMOVE if entry.ours else None
    if entry.ours:
        return Action.HOLD if can_hold and entry.valid and not entry.lasting else None
    return None if entry.taken else Action.ADOPT


def plan(wanted: Collection[K], present: Mapping[K, Entry], *, can_hold: bool) -> dict[K, Action]:
    """Compare all that is wanted, each once, with all that the kernel has.

    In the order in which it is to be done: what is wanted comes in its own order, last what is
    to be removed.
    """
    found: dict[K, Action] = {}
    known = 0
    for key in wanted:
        entry = present.get(key)
        known += entry is not None
        todo = action(entry, wanted=True, can_hold=can_hold)
        if todo is not None:
            found[key] = todo
    if known < len(present):
        found |= _unwanted(wanted, present, can_hold=can_hold)
    return found


def _unwanted(
    wanted: Collection[K], present: Mapping[K, Entry], *, can_hold: bool
) -> dict[K, Action]:
    keys = set(wanted)
    others = {key: entry for key, entry in present.items() if key not in keys}
    found = {key: action(entry, wanted=False, can_hold=can_hold) for key, entry in others.items()}
    return {key: todo for key, todo in found.items() if todo is not None}
