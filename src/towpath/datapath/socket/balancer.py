# SPDX-License-Identifier: Apache-2.0
"""Services at the socket for the processes of a cgroup: programs, tables, what they have seen."""

from __future__ import annotations

import errno
import logging
from contextlib import ExitStack
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np

from towpath.closeable import Closeable
from towpath.datapath.attach.places import Places
from towpath.datapath.cgroup.root import CgroupRoot
from towpath.datapath.maps.pins import held
from towpath.datapath.socket.counters import Reading, Rows, carry
from towpath.datapath.socket.identity import Identities
from towpath.datapath.socket.listing import Listing
from towpath.datapath.socket.packets.follower import Follower
from towpath.datapath.socket.packets.node import detach as detach_packets
from towpath.datapath.socket.packets.node import is_attached
from towpath.datapath.socket.program import SocketProgram
from towpath.datapath.socket.stale import Ended, Live, LiveBackends, Search
from towpath.kernel.bpf.attach_types import AttachType, hook_name
from towpath.kernel.bpf.bpffs import remove_pins
from towpath.kernel.bpf.hooks import Cgroup
from towpath.kernel.bpf.rcu import wait_for_readers
from towpath.kernel.cgroup import cgroup_id
from towpath.kernel.errors import KernelError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from towpath.core.lb.plan import Transition
    from towpath.datapath.lb.contents import Contents
    from towpath.datapath.maps.shared import SharedMaps
    from towpath.datapath.snat.tracked import Tracked
    from towpath.documents import SocketCounters
    from towpath.model.socket import Packets

log = logging.getLogger(__name__)

LINKS, PACKETS = "links", "packets"
REFUSED = errno.ECONNREFUSED

HOOKS = (
    # What frees notes comes before what makes them, and what tells services' addresses before what
    # needs it to be told.
    AttachType.CGROUP_INET_SOCK_RELEASE,
    AttachType.CGROUP_UDP4_RECVMSG,
    AttachType.CGROUP_UDP6_RECVMSG,
    AttachType.CGROUP_INET4_GETPEERNAME,
    AttachType.CGROUP_INET6_GETPEERNAME,
    AttachType.CGROUP_UDP4_SENDMSG,
    AttachType.CGROUP_UDP6_SENDMSG,
    AttachType.CGROUP_INET4_CONNECT,
    AttachType.CGROUP_INET6_CONNECT,
)


class SocketBalancer(Closeable):
    """Sends connect() and datagrams of processes in ``cgroup`` straight to backends.

    The services are those of ``contents``, in ``tables``: `changed` is to be called whenever they
    are others. ``pins``: a directory in which what is in the kernel outlives this object; the next
    one takes it over. None: it ends with it. Sockets that are connected stay so in any case.

    ``cgroup``: a cgroup of version 2, an open file of one by its path in /proc/self/fd, or what was
    found for this node (to be closed after this is); None: there is none yet, `move` will say, and
    packets are translated meanwhile. ``within``: its programs are for processes in
    that cgroup only, which is in ``cgroup``: for kernels that don't run programs of nested cgroups;
    what was found for this node says itself which that is. ``exclude``: cgroups whose processes are
    left alone. ``refuse_with``: errno of calls to a service without a backend, 0 for EPERM.
    ``mark``: that of health checks' sockets, which are left alone, as others' whose marks have the
    bits of ``foreign`` in common. ``packets``: devices of pods whose packets are translated, in the
    calling thread's network namespace; ``tracked``: whose flows may be the kernel's.

    Not thread-safe, but for what is said to be. KernelError: ``cgroup`` is none, a program is there
    that lets no other be beside it, or there are as many as can be.
    """

    def __init__(
        self,
        tables: SharedMaps,
        contents: Contents,
        cgroup: Path | CgroupRoot | None,
        pins: Path | None = None,
        *,
        within: Path | None = None,
        exclude: Sequence[Path] = (),
        refuse_with: int = REFUSED,
        mark: int = 0,
        foreign: int = 0,
        packets: Packets | None = None,
        tracked: Tracked | None = None,
    ) -> None:
        self._be_for(cgroup, within)
        self.exclude = tuple(exclude)
        self.refuse_with = refuse_with
        self._pins = pins
        self._contents = contents
        self._tracked = tracked
        self._listing: Listing | None = None
        self._first = Lock()
        self._failed: dict[str, str] = {}
        self.stale = Ended(0, 0, 0)
        """All that was ended, what could not be at the last look, how often was looked."""
        with ExitStack() as undo:
            self._hold = None if pins is None else undo.enter_context(held(pins))
            self.program = undo.enter_context(
                SocketProgram(tables, pins, refuse_with=refuse_with, mark=mark, foreign=foreign)
            )
            self._rows = Rows(self.program)
            mask = (1 << self.program.constant("handle_bits", "HANDLE_INDEX_BITS")) - 1
            self._identities = Identities(
                self.program.rows("socket_service_ids"),
                self.program.rows("socket_backend_ids"),
                self._rows.services,
                mask,
            )
            self._identities.write(contents.tables.services)
            self._live = LiveBackends(contents.tables.services)
            self._seen = contents.tables
            self._choose_processes()
            self._places = Places(pins and pins / LINKS)
            undo.callback(self._leave)
            self._attach()
            wait_for_readers()
            carry(self.program, self._rows)
            self.program.settle()
            self.packets = self._begin_packets(tables, packets, undo)
            self._undo = undo.pop_all()

    def _begin_packets(
        self, tables: SharedMaps, wanted: Packets | None, undo: ExitStack
    ) -> Follower | None:
        pins = self._pins and self._pins / PACKETS
        tracked = self._tracked
        if wanted is not None:
            if tracked is not None:
                tracked.begin_pods(fresh=not is_attached(pins))
            epoch, tracks = self.program.epoch, tracked is not None
            made = Follower(tables, self._contents, wanted, epoch, pins, tracks=tracks)
            return undo.enter_context(made)
        if pins is not None and pins.exists():
            detach_packets(pins)
        return None

    # ---- In step ---------------------------------------------------------------------------------

    def changed(self, transition: Transition | None = None) -> None:
        """Follow the services, of which some are others than before."""
        services = self._contents.tables.services
        if transition is None or self._seen is not self._contents.tables:
            # Tables that were read again, after a change that failed, say what there is.
            self._seen = self._contents.tables
            self._identities.write(services)
            self._live = LiveBackends(services)
            return
        both = (each for change in transition.changes for each in change if each is not None)
        keys = {each.key for each in both}
        self._identities.write(services, keys)
        self._live.change(services, keys)

    def move(self, cgroup: Path | CgroupRoot) -> None:
        """Be for the processes of this cgroup from now on, and no more for those of the other.

        KernelError: as for a new object. What isn't attached is then attached by `follow`.
        """
        self._be_for(cgroup, None)
        self._choose_processes()
        self._attach()

    def _be_for(self, cgroup: Path | CgroupRoot | None, within: Path | None) -> None:
        self.cgroup: Path | None
        if isinstance(cgroup, CgroupRoot):
            self.cgroup, self.name = cgroup.path, cgroup.name
            self._within = cgroup.node if cgroup.within else None
        else:
            self.cgroup, self.name, self._within = cgroup, str(cgroup or ""), within

    def follow(self) -> None:
        """Attach and pin again what others have ended or removed, once there is a cgroup again."""
        failed: dict[str, str] = {}
        for name, step in (("attach", self._attach_again), ("pins", self._pin_again)):
            try:
                step()
            except (KernelError, OSError) as error:
                failed[name] = str(error)
                if self._failed.get(name) != failed[name]:
                    log.warning("%s", error)
        self._failed = failed

    @property
    def troubles(self) -> tuple[str, ...]:
        """What is wrong and can't be put right. For any thread."""
        of_packets = () if self.packets is None else self.packets.troubles
        return (*self._failed.values(), *of_packets)

    def _choose_processes(self) -> None:
        """Say which processes it is for. KernelError: a cgroup isn't there."""
        if self.cgroup is None:
            return
        wanted = {cgroup_id(path) for path in self.exclude}
        table = self.program.maps["socket_off"]
        for each in wanted:
            table.update(each, 1)
        record = np.zeros((), self.program.dtype("socket_scope"))
        record["off"] = len(wanted)
        record["within"] = 0 if self._within is None else cgroup_id(self._within)
        self.program.maps["socket_scopes"].update(0, record)
        for key in list(table.keys()):
            if int(key) not in wanted:
                table.delete(key, missing_ok=True)

    def replace_excluded(self, exclude: Sequence[Path]) -> None:
        """Leave the processes of these cgroups alone from now on. KernelError: those of before."""
        before, self.exclude = self.exclude, tuple(exclude)
        try:
            self._choose_processes()
        except KernelError:
            self.exclude = before
            self._choose_processes()
            raise

    # ---- Attached --------------------------------------------------------------------------------

    def _attach(self) -> None:
        if self.cgroup is None:
            return
        for hook in HOOKS:
            name = hook_name(hook)
            program = self.program.programs[f"socket_{name}"]
            self._places.take(name, program, Cgroup(self.cgroup, hook))

    def _attach_again(self) -> None:
        if self.cgroup is None:
            return
        if self._places.lost() or len([*self._places]) < len(HOOKS):
            self._attach()
            self._choose_processes()  # one of the same name is another one
            log.warning("attached to %s again", self.name)

    def _pin_again(self) -> None:
        if self._hold is None:
            return
        missing = [str(self._pins)] if self._hold.again() else []
        missing += ["maps"] if self.program.own.pin_again() else []
        missing += self._places.pin_again()
        if missing:
            log.warning("pins were removed by somebody else: %s; pinned again", ", ".join(missing))

    @property
    def contents(self) -> Contents:
        """The services."""
        return self._contents

    @property
    def node(self) -> Path | None:
        """The cgroup whose processes they are balanced for; None: there is none yet."""
        return self._within or self.cgroup

    @property
    def places(self) -> Places:
        """Where the programs are."""
        return self._places

    # ---- What it has seen ------------------------------------------------------------------------

    def verdicts(self) -> dict[str, dict[str, int]]:
        """Calls by hook and verdict: a part of `counters`. For any thread."""
        return self._rows.verdicts()

    def reading(self) -> Reading:
        """What was counted since the tables were made, as arrays."""
        return self._rows.read(self._contents.places, self._contents.by_key)

    def counters(self) -> SocketCounters:
        """The same as a document."""
        return self.reading().counters()

    def listing(self) -> Listing:
        """Sockets that talk to services. For any thread. KernelError: they can't be listed."""
        with self._first:
            if self._listing is None:
                self._listing = self._undo.enter_context(Listing(self.program))
        return self._listing

    def live(self) -> Live:
        """The backends that sockets may be connected to."""
        return self._live.now()

    def end_stale(self, *, tcp: bool = False) -> Ended:
        """End connected sockets of UDP whose backend has gone, or is down; what came of it.

        ``tcp``: connections of TCP, too. KernelError.
        """
        search = self.search(tcp=tcp)
        while search.list() and search.end(self.live()):
            pass
        return self.note(search)

    def search(self, *, tcp: bool = False) -> Search:
        """The same, step by step: for who mustn't wait for it. For any thread. KernelError."""
        return Search(self.listing(), tcp=tcp)

    def note(self, search: Search) -> Ended:
        """Count what came of it."""
        before, found = self.stale, search.result
        self.stale = Ended(before.ended + found.ended, found.left, before.passes + found.passes)
        return found

    # ---- The end ---------------------------------------------------------------------------------

    def detach(self) -> None:
        """Take everything out of the kernel; sockets that are connected stay so.

        Flows of packets are the kernel's from then on, where they are ``tracked``.
        """
        if self.packets is not None:
            if self._tracked is not None:
                self._tracked.give_pods(self.packets.asked(lambda node: node.program))
            self.packets.detach()
        self._places.detach()
        if self._pins is not None:
            remove_pins(self._pins)

    def _leave(self) -> None:
        if self._pins is None:
            self._places.detach()
        self._places.close()

    def close(self) -> None:
        """Let go of it: with pins it works on."""
        self._undo.close()


def detach(pins: Path) -> None:
    """Take out of the kernel what is pinned there."""
    with held(pins):
        detach_packets(pins / PACKETS)
        Places(pins / LINKS).detach_pinned()
        remove_pins(pins)
