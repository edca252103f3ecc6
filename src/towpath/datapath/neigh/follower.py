# SPDX-License-Identifier: Apache-2.0
"""Next hops that are kept resolved while the network changes: a keeper with a thread of its own."""

from __future__ import annotations

import atexit
import logging
import os
import select
import socket
import threading
import time
from collections import deque
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

from towpath.closeable import Closeable
from towpath.datapath.follow import told
from towpath.datapath.neigh.keeper import REQUESTS_PER_SECOND, Keeper
from towpath.kernel.bpf.probe_net import managed_neighbours
from towpath.kernel.net import link_state, neighbours, routes
from towpath.kernel.net.messages import ROUTE, Netlink
from towpath.kernel.net.netns import Share
from towpath.kernel.net.watch import Group, Watch

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable
    from typing import TypeVar

    from towpath.datapath.address import Address
    from towpath.datapath.neigh.differences import ByVersion
    from towpath.datapath.neigh.next_hops import Destination, Trouble
    from towpath.kernel.net.watch import Change

    T = TypeVar("T")

log = logging.getLogger(__name__)

GROUPS = (
    Group.LINK,
    Group.NEIGHBOUR,
    Group.IPV4_ADDRESS,
    Group.IPV6_ADDRESS,
    Group.IPV4_ROUTE,
    Group.IPV6_ROUTE,
    Group.IPV4_RULE,
    Group.IPV6_RULE,
    Group.NEXT_HOP,
)
_NEW_ROUTE = 24
_NEW_LINK, _DEL_LINK, _NEW_NEIGHBOUR, _DEL_NEIGHBOUR = 16, 17, 28, 29  # RTM_*

SETTLE_SECONDS = 0.02
"""From a change of routes to the look-up: changes often come together."""
SHARE = 4
"""Looking up takes at most a fifth of the time: after one that took long there is a pause."""
RESYNC_SECONDS = 60.0
"""All is read anew so often, whatever has been told."""
LET_GO_TRIES, LET_GO_SECONDS = 50, 0.02
"""An entry that somebody looks at in this moment can't be removed."""
RETRY_SECONDS = 1.0
"""After the kernel has refused to tell or to do anything."""


class Follower(Closeable):
    """Keeps next hops resolved, in the calling thread's network namespace, until it is closed.

    What it has made in the kernel stays when it is closed; `let_go` removes it. ``per_second``: how
    often the network is asked a second. Several of one namespace, in whatever process, leave each
    other's entries alone; the first takes over what was left. For any thread. OSError, KernelError:
    the kernel's tables of routes and neighbours can't be read.
    """

    def __init__(self, *, per_second: float = REQUESTS_PER_SECOND) -> None:
        self._lock = threading.Lock()
        self._stopped = False
        self._process = os.getpid()
        self._doubts: deque[Address] = deque()
        self._routes_changed: float | None = None
        """Since when there is something to look up."""
        self._look_all_up = False
        """It is all of it, not only what is wanted and wasn't before."""
        self._looked_up = 0.0
        self._resync_at = 0.0
        self._publish: Callable[[ByVersion], None] | None = None
        self._told: ByVersion | None = None
        self.trouble: str | None = None
        """What keeps it from its work; None: nothing."""
        with ExitStack() as undo:
            self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            undo.callback(os.close, self._wake)
            share = undo.enter_context(Share())
            managed = managed_neighbours()
            self._watch = undo.enter_context(Watch(GROUPS))
            netlink = undo.enter_context(Netlink(ROUTE))
            self._keeper = Keeper(
                netlink, managed=managed, per_second=per_second, inherit=share.first
            )
            self._resync()
            share.begun()
            self._undo = undo.pop_all()
        self._thread = threading.Thread(target=self._run, name="next hops", daemon=True)
        self._thread.start()

    # ---- For others ------------------------------------------------------------------------------

    def want(self, who: Hashable, destinations: Iterable[Destination]) -> None:
        """Have these resolved from now on, in this order, and none else that ``who`` wanted."""
        wanted = tuple(destinations)

        def note() -> None:
            self._keeper.note(who, wanted)
            self._note_change(of_routes=False)

        self._tell(note)

    def prefer(self, addresses: Iterable[Address]) -> None:
        """Name destinations that have traffic: theirs are made before others'."""
        wanted = frozenset(addresses)
        self._tell(lambda: self._keeper.prefer(wanted))

    def doubt(self, address: Address) -> None:
        """Resolve anew how a destination is reached: something says that it isn't there.

        Doesn't wait for its turn.
        """
        self._doubts.append(address)
        os.eventfd_write(self._wake, 1)

    def asked(self, question: Callable[[Keeper], T]) -> T:
        """Answer a question about what is kept, while nothing changes."""
        with self._lock:
            return question(self._keeper)

    def tell(self, publish: Callable[[ByVersion], None] | None) -> None:
        """Have this called whenever it changes how flows' ways may differ, and soon.

        By whatever thread, one at a time; it may not wait. None: nothing any more.
        """
        with self._lock:
            self._publish = publish
            self._told = None
            self._tell_differences()

    def _tell_differences(self) -> None:
        """Not before what has changed is looked up: it may be just what was told before."""
        found = self._keeper.differences
        settled = self._routes_changed is None
        if settled and self._publish is not None and found != self._told:
            self._publish(found)
            self._told = found

    def troubles(self) -> dict[Destination, Trouble]:
        """Destinations that packets don't get to, and why."""
        return self.asked(Keeper.troubles)

    def let_go_at_exit(self) -> None:
        """Have it let go when the process ends, if nobody has closed it by then."""
        atexit.register(self._exit)

    def _exit(self) -> None:
        if os.getpid() == self._process:  # a forked child has made nothing
            self.let_go()

    def let_go(self) -> None:
        """Remove all that it has made, and close. Twice is once."""
        atexit.unregister(self._exit)
        if self._stopped:
            return
        self._end()
        for _ in range(LET_GO_TRIES):
            if self._keeper.let_go():
                break
            time.sleep(LET_GO_SECONDS)
        else:
            log.warning("not all next hops could be removed")
        self._undo.close()

    def close(self) -> None:
        """End its thread. What it has made stays. Twice is once."""
        atexit.unregister(self._exit)
        self._end()
        self._undo.close()

    def _tell(self, change: Callable[[], None]) -> None:
        with self._lock:
            change()
        os.eventfd_write(self._wake, 1)

    def _end(self) -> None:
        if not self._stopped:
            self._stopped = True
            os.eventfd_write(self._wake, 1)
            self._thread.join()

    # ---- Its thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._watch.fileno(), select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        while not self._stopped:
            pause = self._turn()
            poll.poll(None if pause is None else max(1, round(pause * 1000)))
            with suppress(BlockingIOError):
                os.eventfd_read(self._wake)

    def _turn(self) -> float | None:
        """Take in what has changed and do what is due; seconds until the next turn."""
        try:
            with self._lock:
                pause = self._follow()
                self._tell_differences()
        except Exception as error:  # noqa: BLE001 - a thread that ends follows nothing
            self.trouble = told("next hops aren't followed", error, self.trouble)
            self._resync_at = 0.0
            return RETRY_SECONDS
        if self.trouble:
            log.info("next hops are followed again")
        self.trouble = None
        return pause

    def _follow(self) -> float:
        changes = self._watch.read()
        now = time.monotonic()
        if changes is None or now >= self._resync_at:
            self._resync()
        else:
            for change in changes:
                self._take(change)
            self._reroute(now)
        while self._doubts:
            self._keeper.doubt(self._doubts.popleft())
        now = time.monotonic()
        times = [self._resync_at - now, self._keeper.work(now)]
        if self._routes_changed is not None:
            times.append(self._due() - now)
        return max(0.0, min(each for each in times if each is not None))

    def _take(self, change: Change) -> None:
        if change.kind in (_NEW_NEIGHBOUR, _DEL_NEIGHBOUR):
            self._take_neighbour(change)
            return
        if change.kind in (_NEW_LINK, _DEL_LINK):
            self._take_link(change)
        if change.kind == _NEW_ROUTE and routes.has_several(change.body):
            self._keeper.has_several(4 if change.body[0] == socket.AF_INET else 6)
        self._note_change()

    def _note_change(self, *, of_routes: bool = True) -> None:
        self._look_all_up |= of_routes
        if self._routes_changed is None:
            self._routes_changed = time.monotonic()

    def _take_neighbour(self, change: Change) -> None:
        entry = neighbours.read(change.body)
        if entry is None:
            return
        if change.kind == _NEW_NEIGHBOUR:
            self._keeper.entry_changed(entry)
        else:
            self._keeper.entry_gone(entry.key)

    def _take_link(self, change: Change) -> None:
        if change.body[0] != socket.AF_UNSPEC:
            return  # of a bridge's ports: the device itself is still there when such a one goes
        device = link_state.read(change.body)
        if change.kind == _NEW_LINK:
            self._keeper.device_changed(device)
        else:
            self._keeper.device_gone(device.index)

    def _due(self) -> float:
        """When routes that have changed are looked up."""
        assert self._routes_changed is not None  # noqa: S101 -- that is when this is asked
        return max(self._routes_changed + SETTLE_SECONDS, self._looked_up)

    def _reroute(self, now: float) -> None:
        if self._routes_changed is None or now < self._due():
            return
        self._routes_changed = None
        if self._look_all_up:
            self._look_all_up = False
            self._keeper.reroute()
        else:
            self._keeper.extend()
        after = time.monotonic()
        self._looked_up = after + SHARE * (after - now)

    def _resync(self) -> None:
        self._routes_changed, self._look_all_up = None, False
        self._keeper.resync()
        self._resync_at = time.monotonic() + RESYNC_SECONDS
