# SPDX-License-Identifier: Apache-2.0
"""Keeps next hops resolved: asks for managed neighbours, and follows what becomes of them.

The kernel resolves and refreshes; nothing here speaks ARP or ND. Entries of ours carry
``PROTOCOL`` and the flags that they were made with: both, since the number stays when somebody
else changes an entry.
"""

from __future__ import annotations

import errno as errnos
import logging
import random
from typing import TYPE_CHECKING, NamedTuple

from towpath.core.neigh.keep import Action, action, plan
from towpath.core.neigh.rate import Rate, asked_together
from towpath.datapath.neigh.differences import NONE, differences
from towpath.datapath.neigh.next_hops import Way, doubtful, find
from towpath.datapath.neigh.silence import Silence
from towpath.kernel import jiffies
from towpath.kernel.net import link_state, neighbours, routes, selectors
from towpath.kernel.net.neighbours import (
    EXTERN_LEARN,
    MANAGED,
    NOARP,
    PERMANENT,
    REACHABLE,
    STALE,
    USE,
    VALIDATED,
    Request,
)

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence

    from towpath.datapath.address import Address
    from towpath.datapath.neigh.next_hops import Destination, Trouble
    from towpath.kernel.net.link_state import Device
    from towpath.kernel.net.messages import Netlink
    from towpath.kernel.net.neighbours import Key, Neighbour

log = logging.getLogger(__name__)

PROTOCOL = 116
"""``NDA_PROTOCOL`` of our entries; ``ip neigh`` shows it as ``proto 116``."""
REQUESTS_PER_SECOND = 100.0
"""As a rule: so often a second the network is asked, when entries are made and ever after."""
REFRESH_SECONDS = 20.0
"""Where the kernel doesn't manage entries: how often it is told that one is in use, at least, and
up to half as much again."""
DOUBT_SECONDS = 2.0
"""A next hop is resolved anew at most so often, unless its device has found a carrier since."""
RETRY_SECONDS = 1.0
"""After the kernel has refused an entry."""


class Kept(NamedTuple):
    """An entry of the kernel's, as `towpath.core.neigh.keep` looks at it."""

    entry: Neighbour
    managed: bool
    """The kernel can manage entries, so ours are."""

    @property
    def ours(self) -> bool:
        """Made here, and since then changed by no one else."""
        entry = self.entry
        by_flags = entry.flags & EXTERN_LEARN and (entry.extended & MANAGED or not self.managed)
        return entry.protocol == PROTOCOL and bool(by_flags) and not entry.state & PERMANENT

    @property
    def taken(self) -> bool:
        """Somebody's on purpose. What has our number alone was ours, and is the user's now."""
        entry = self.entry
        flagged = entry.flags & EXTERN_LEARN or entry.extended & MANAGED or entry.protocol
        return not self.ours and bool(flagged or entry.state & (PERMANENT | NOARP))

    @property
    def valid(self) -> bool:
        """The kernel has a MAC address for it."""
        return self.entry.valid

    @property
    def lasting(self) -> bool:
        """It is kept though its device loses its carrier."""
        return bool(self.entry.extended & VALIDATED)

    @property
    def unanswered(self) -> bool:
        """The peer hasn't answered, and the kernel asks it at its old MAC address for ever.

        It does with entries that outlast a loss of carrier: others fail, and are resolved anew.
        """
        return self.lasting and bool(self.entry.state & STALE) and self.entry.probes > 0

    @property
    def sure(self) -> bool:
        """The peer has said within the reachable time that it is there."""
        return bool(self.entry.state & REACHABLE)


class Keeper:
    """Next hops of one network namespace, that of ``netlink``. Not thread-safe.

    ``per_second``: how often the network may be asked, of which follows how many entries are made.
    ``managed``: whether the kernel can manage neighbours (`probe_net.managed_neighbours`).
    ``inherit``: entries that are there when all is read first are this one's, and it removes those
    that nobody wants; otherwise they are another keeper's.
    Nothing is changed but by `work`, which the caller has done when it says so, and after each
    call of another method. KernelError of all methods: the kernel refuses altogether.
    """

    def __init__(
        self,
        netlink: Netlink,
        *,
        managed: bool,
        per_second: float = REQUESTS_PER_SECOND,
        inherit: bool = True,
    ) -> None:
        self._netlink = netlink
        self.managed = managed
        """Whether the kernel keeps entries resolved by itself."""
        self._rate = Rate(per_second, asked_together(jiffies.per_second()))
        self._can_hold: bool | None = None  # not known until it is tried
        self._wanted: dict[Hashable, tuple[Destination, ...]] = {}
        self._first: frozenset[Address] = frozenset()
        self._devices: dict[int, Device] = {}
        self._present: dict[Key, Kept] = {}
        self._todo: dict[Key, Action] = {}
        self._doubted: dict[Key, None] = {}
        self._renewed: dict[Key, float] = {}
        self._refused: dict[Key, tuple[int, float]] = {}
        self._again: dict[Key, float] = {}  # when to remove what should be gone by now
        self._refresh: dict[Key, float] = {}
        self._silence = Silence()
        self._inherit = inherit
        self._mine: set[Key] = set()  # what this one may remove
        self._unsure: set[Key] = set()  # of these, what is told to be gone
        self.ways: dict[Destination, Way] = {}
        """How each destination is reached."""
        self._hops: dict[Key, list[Destination]] = {}
        self._cut_off: dict[Destination, Trouble] = {}
        self._several = {4: False, 6: False}
        self._doubled: frozenset[routes.Place] = frozenset()
        self.differences = NONE
        """Whether flows between the same hosts may have different ways."""

    # ---- What is wanted --------------------------------------------------------------------------

    def want(self, who: Hashable, destinations: Iterable[Destination]) -> None:
        """Have these resolved from now on, in this order, and none else that ``who`` wanted."""
        self.note(who, destinations)
        self.reroute()

    def note(self, who: Hashable, destinations: Iterable[Destination]) -> None:
        """The same from the next `reroute` or `extend` on."""
        self._wanted[who] = tuple(destinations)

    def prefer(self, addresses: Iterable[Address]) -> None:
        """Name destinations that have traffic: theirs are made before others'."""
        self._first = frozenset(addresses)

    def doubt(self, address: Address) -> None:
        """Resolve anew how a destination is reached: something says that it isn't there.

        The kernel finds out by itself, but takes as long as its reachable time and its probes.
        """
        for destination, way in self.ways.items():
            if destination.address == address:
                self._doubted |= dict.fromkeys(filter(self._is_ours, way.hops))

    # ---- What the kernel has ---------------------------------------------------------------------

    def resync(self) -> None:
        """Read all anew: devices, routes, neighbours."""
        found = neighbours.dump(self._netlink)
        self._present = {each.key: Kept(each, self.managed) for each in found}
        for kept in self._present.values():
            self._silence.look_at(kept)
        if self._inherit:
            self._mine = {key for key, kept in self._present.items() if kept.ours}
        elif len(self._mine) > len(self._hops):
            self._mine = {key for key in self._mine if self._is_ours(key)}
        self._inherit = False
        found_ = routes.differences()
        self._several = {version: each.several for version, each in found_.items()}
        self._doubled = frozenset().union(*(each.doubled for each in found_.values()))
        self.reroute()

    def reroute(self) -> None:
        """Ask the routes again, after a change of them, of rules, addresses or devices."""
        devices = link_state.dump(self._netlink)
        for index in self._devices.keys() - devices.keys():
            self.device_gone(index)
        for device in devices.values():
            self.device_changed(device)
        self.ways = find(self._netlink, self._everything(), self._devices)
        self._arrange()

    def extend(self) -> None:
        """Ask the routes for what is wanted now and wasn't before: they are as they were."""
        wanted = dict.fromkeys(self._everything())
        new = [each for each in wanted if each not in self.ways]
        if len(new) == len(wanted):
            self.ways = find(self._netlink, new, self._devices)
        else:
            known = self.ways | find(self._netlink, new, self._devices) if new else self.ways
            self.ways = {each: known[each] for each in wanted}
        self._arrange()

    def _everything(self) -> Iterator[Destination]:
        return (each for some in self._wanted.values() for each in some)

    def _arrange(self) -> None:
        """Find out by the ways what is to be done."""
        self._cut_off = {each: way.trouble for each, way in self.ways.items() if way.trouble}
        self._hops = {}
        for destination, way in self.ways.items():
            for hop in way.hops:
                self._hops.setdefault(hop, []).append(destination)
        self._silence.keep(self._hops.keys())
        self.differences = differences(
            selectors.dump(self._netlink), self.ways.items(), self._several
        )
        found = plan(self._hops, self._present, can_hold=self._holds)
        self._todo = {key: todo for key, todo in found.items() if self._may(key, todo)}

    def has_several(self, version: int) -> None:
        """Note that some route of a family has several next hops, until all is read anew."""
        self._several[version] = True

    def device_changed(self, device: Device) -> None:
        """Follow a device. What has come back is asked anew: its peers may be others now."""
        before = self._devices.get(device.index)
        self._devices[device.index] = device
        was_up = before is not None and before.up and before.carriers == device.carriers
        if device.up and not was_up:
            on_it = [
                each.entry.key
                for each in self._present.values()
                if each.entry.key.device == device.index
                and each.ours
                and not (before is None and each.sure)
            ]
            self._doubted |= dict.fromkeys(on_it)
            for key in on_it:
                self._renewed.pop(key, None)

    def device_gone(self, index: int) -> None:
        """Follow a device that was removed, or moved to another namespace."""
        self._devices.pop(index, None)

    def entry_changed(self, entry: Neighbour) -> None:
        """Follow an entry that was made or changed."""
        before = self._present.get(entry.key)
        kept = self._present[entry.key] = Kept(entry, self.managed)
        if entry.key in self._hops:
            self._silence.look_at(kept)
        self._look_at(entry.key)
        # One that the peer has announced by itself has another MAC address, not confirmed yet.
        if kept.ours and kept.unanswered and before and before.entry.mac == entry.mac:
            self._doubted[entry.key] = None

    def entry_gone(self, key: Key) -> None:
        """Follow an entry that was removed, by whomever."""
        self._present.pop(key, None)
        self._look_at(key)

    def _look_at(self, key: Key) -> None:
        if not self._is_ours(key):
            self._doubted.pop(key, None)
        kept, wanted = self._present.get(key), key in self._hops
        todo = action(kept, wanted=wanted, can_hold=self._holds)
        if kept is None and not wanted and key in self._mine:
            self._unsure.add(key)
        if todo is None or not self._may(key, todo):
            self._todo.pop(key, None)
        else:
            self._todo[key] = todo

    def _may(self, key: Key, todo: Action) -> bool:
        """Another keeper of this namespace may want what this one doesn't."""
        return todo is not Action.REMOVE or key in self._mine

    @property
    def _holds(self) -> bool:
        return self.managed and self._can_hold is not False

    # ---- What is done ----------------------------------------------------------------------------

    def work(self, now: float) -> float | None:
        """Do what may be done by now; seconds until there is more, None: nothing is left.

        ``now`` is in seconds of a clock that doesn't go back.
        """
        if self._unsure:
            self._look_whether_gone(now)
        self._remove([key for key, todo in self._todo.items() if todo is Action.REMOVE], now)
        self._hold([key for key, todo in self._todo.items() if todo is Action.HOLD])
        self._ask(self._next(self._rate.allowed(now), now), now)
        return self._pause(now)

    def _look_whether_gone(self, now: float) -> None:
        """The kernel tells that a managed entry is gone that is only marked, and comes back."""
        found = {each.key: each for each in neighbours.dump(self._netlink)}
        for key in self._unsure:
            if key in found:
                self.entry_changed(found[key])
                self._again[key] = now + RETRY_SECONDS
            else:
                self._mine.discard(key)
        self._unsure.clear()

    def _next(self, most: int, now: float) -> list[Key]:
        """Those whose turn it is: with traffic first, then the doubted, then the others."""
        if not most:
            return []
        due = [key for key, when in self._times(now) if when <= now]
        return sorted(dict.fromkeys(due), key=self._rank)[:most]

    def _times(self, now: float) -> Iterator[tuple[Key, float]]:
        """When each may be asked for that is to be. Not before its device is up."""
        for key in self._doubted:
            if self._is_up(key):
                yield key, self._renewed.get(key, now - DOUBT_SECONDS) + DOUBT_SECONDS
        for key, todo in self._todo.items():
            if todo in (Action.MAKE, Action.ADOPT) and self._is_up(key):
                yield key, self._refused[key][1] if key in self._refused else now
        yield from self._refresh.items()

    def _is_up(self, key: Key) -> bool:
        device = self._devices.get(key.device)
        return device is not None and device.up

    def _rank(self, key: Key) -> bool:
        return not any(each.address in self._first for each in self._hops.get(key, ()))

    def _ask(self, keys: Sequence[Key], now: float) -> None:
        """Have entries made or taken over; the doubted are removed first, in the same breath."""
        neighbours.delete(self._netlink, [key for key in keys if key in self._doubted])
        results = neighbours.put(self._netlink, [self._request(key) for key in keys])
        self._rate.made(len(keys))
        for key, error in zip(keys, results, strict=True):
            self._asked(key, error, now)

    def _asked(self, key: Key, error: int, now: float) -> None:
        if key in self._doubted:
            del self._doubted[key]
            self._renewed[key] = now
        self._refresh.pop(key, None)
        if error:
            if self._refused.get(key, (0, 0))[0] != error:
                log.warning("next hop %s: %s", key.address, errnos.errorcode.get(error, error))
            self._refused[key] = error, now + RETRY_SECONDS
            return
        self._refused.pop(key, None)
        self._todo.pop(key, None)
        self._mine.add(key)
        if not self.managed:
            # Spread out, so that they don't all come at once.
            self._refresh[key] = now + REFRESH_SECONDS * random.uniform(1, 1.5)  # noqa: S311

    def _request(self, key: Key) -> Request:
        if self.managed:
            return Request(key, EXTERN_LEARN, MANAGED, PROTOCOL)
        return Request(key, EXTERN_LEARN | USE, 0, PROTOCOL)

    def _is_ours(self, key: Key) -> bool:
        kept = self._present.get(key)
        return kept is not None and kept.ours

    def _remove(self, keys: Sequence[Key], now: float) -> None:
        """Remove entries, again and again until the kernel says that they are gone.

        It answers success also where it only marks one as failed, since somebody looks at it in
        this moment (a reference is held); a managed entry then comes back to life.
        """
        due = [key for key in keys if self._again.get(key, now) <= now]
        neighbours.delete(self._netlink, due)
        later = now + RETRY_SECONDS
        self._again = {key: later if key in due else self._again[key] for key in keys}
        for key in due:
            self._refresh.pop(key, None)

    def _hold(self, keys: Sequence[Key]) -> None:
        """Have resolved entries outlast a loss of carrier, where the kernel can (6.17)."""
        if self._can_hold is None and keys:
            self._can_hold = self._try_hold(keys[0])
        if self._can_hold:
            neighbours.put(self._netlink, [self._held(key) for key in keys])
        # One that was refused is not resolved any more: it will be told when it is.
        for key in keys:
            self._todo.pop(key, None)

    def _try_hold(self, key: Key) -> bool | None:
        """Whether the kernel can; None: the entry changed meanwhile, so that it can't be told."""
        (error,) = neighbours.put(self._netlink, [self._held(key)])
        found = {each.key: each for each in neighbours.dump(self._netlink)}.get(key)
        if found is None or not found.valid:
            return None
        return not error and bool(found.extended & VALIDATED)

    def _held(self, key: Key) -> Request:
        return Request(key, EXTERN_LEARN, MANAGED | VALIDATED, PROTOCOL)

    def _pause(self, now: float) -> float | None:
        asked = [when - now for _, when in self._times(now)]
        times = [max(self._rate.pause(), min(asked))] if asked else []
        times += [when - now for when in self._again.values()]
        return max(0.0, min(times)) if times else None

    # ---- What is told ----------------------------------------------------------------------------

    def entries(self) -> Mapping[Key, Kept | None]:
        """What the kernel has for each next hop that is wanted; None: nothing."""
        return {key: self._present.get(key) for key in self._hops}

    def device_name(self, index: int) -> str:
        """What a device is called; its index if it is gone."""
        device = self._devices.get(index)
        return device.name if device else f"#{index}"

    def wanted_by(self, key: Key) -> Iterable[Destination]:
        """Who is reached by a next hop."""
        return tuple(self._hops.get(key, ()))

    def troubles(self) -> dict[Destination, Trouble]:
        """Destinations that packets don't get to, and why."""
        silent = {each for hop in self._silence for each in self._hops.get(hop, ())}
        found = {
            each: self._silence.trouble(self.ways[each].hops, self.device_name) for each in silent
        }
        return found | self._cut_off

    def doubtful(self) -> dict[Address, Trouble]:
        """Destinations that two routes are equally good for, as far as routes were read."""
        reached = dict.fromkeys(each.address for each, way in self.ways.items() if not way.trouble)
        return doubtful(self._netlink, list(reached), self._doubled)

    def refusals(self) -> Mapping[Key, int]:
        """Error numbers of entries that the kernel has refused, for now."""
        return {key: error for key, (error, _) in self._refused.items() if key in self._hops}

    def let_go(self) -> bool:
        """Remove all that is this one's; whether it is gone. If not, try again a little later."""
        self._wanted.clear()
        self.resync()
        ours = [key for key in self._mine if self._is_ours(key)]
        self._again.clear()
        self._remove(ours, 0.0)
        return not ours
