# SPDX-License-Identifier: Apache-2.0
"""Flows of translated services that the kernel translates: those of before, those to hand back.

Whoever has served these services before, by rules of netfilter, has flows in the kernel's
connection tracking. Their packets pass, for as long as the kernel lists them:

1. `take`, before the first packet: what no flow here is known of and doesn't begin by a SYN passes,
   and is noted by the program. So nothing can fall between the list and what comes after it.
2. `settle`, once all services are there: the kernel's list is taken. Only those in it pass now.
3. And again, from time to time: those that it lists no longer are forgotten, and those of UDP that
   nothing has been sent of for a while end here and there.

A flow of the kernel's may have an address of ours, if it was given by one that went before: what
comes back of it is noted as well, and no flow that begins here has the same port towards the same
backend.

A load balancer that goes does the reverse (`give`): it enters its flows into connection tracking.
What isn't known any more passes meanwhile. See ``tracked`` in ``bpf/abi/lb.h``.

Pods whose packets are translated (:mod:`towpath.datapath.socket.packets`) are clients just so, of
services for this node as well. Others' clients on the node have such flows, too, whose packets no
program sees: the kernel alone decides when these are over.
"""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from itertools import chain
from socket import AF_INET
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from towpath.datapath.flows.flow_table import Filter
from towpath.datapath.flows.keys import flow_key as _key
from towpath.datapath.flows.nat_table import Wanted
from towpath.datapath.maps.pins import LINKS
from towpath.datapath.snat.handed import elsewhere, here, in_parts
from towpath.datapath.socket.packets.flows import FlowTable as PacketFlows
from towpath.kernel.bpf.rcu import wait_for_readers
from towpath.kernel.errors import KernelError
from towpath.kernel.net import conntrack_flows
from towpath.kernel.net.conntrack_flows import Handed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from towpath.datapath.flows.nat_table import NatFlows
    from towpath.datapath.lb.contents import Contents
    from towpath.datapath.local.path import LocalPath
    from towpath.datapath.maps.shared import SharedMaps
    from towpath.datapath.socket.packets.program import PacketProgram
    from towpath.kernel.net.conntrack_flows import Ends, Rewritten
    from towpath.model.snat import Snat

    Array = np.ndarray[Any, Any]
    Served = set[tuple[bytes, bytes, int]]
    """Address, port, protocol."""

log = logging.getLogger(__name__)

_TCP, _UDP = 6, 17
_PROTOCOL = 36
"""Where a key has it."""
_HELD_AT_ONCE = 512
"""Connections that are without an owner while they are given to the kernel."""
_ATTEMPTS = 3
"""To enter a flow: a packet that comes between two steps has the kernel know another one."""
_NAMED = 4
"""Fields of `Handed` that say which it is: by whom, to whom, as whom."""
_KEPT_SECONDS = 86_400
"""So long the kernel knows a flow of UDP, if nobody ends it."""
_MOST_ENDED = 1000
"""Of these at one look: each takes two system calls."""


class Tracked:
    """``tracked`` of ``tables``, and the word that says what is done with it.

    ``contents``: the services; ``snat``: what they are translated to. For the thread that changes
    these, but for what says otherwise.
    """

    def __init__(self, tables: SharedMaps, contents: Contents, snat: Snat) -> None:
        self._map = tables.maps["tracked"]
        self._settings = tables.rows("settings")
        self._names = {
            name: tables.constant("tracking", f"TRACKING_{name}")
            for name in ("NONE", "KNOWN", "TAKE", "GIVE")
        }
        self._held, self._seen = (
            int(tables.constant("tracked_value", f"TRACKED_{name}")) for name in ("HELD", "SEEN")
        )
        self._scopes = {"all"}
        """Of services that are asked about."""
        self._bare = False
        self._contents = contents
        self._ours = {each.packed for version in (4, 6) for each in snat.addresses(version)}
        self._ports = range(snat.ports.first, snat.ports.last + 1)
        self._noted: set[bytes] = set()
        """Keys of TCP that are there unless the program has taken one out: by a SYN."""
        self._full = False
        self.of_udp = False
        """Whether some of UDP pass, as of the last `settle`."""

    @classmethod
    def begun(
        cls,
        tables: SharedMaps,
        contents: Contents,
        snat: Snat,
        pins: Path | None,
        *,
        bare: bool = False,
    ) -> Self:
        """Have flows of before pass from the first packet on that a device's program sees.

        Where there is a program already no flow has begun elsewhere since: the kernel's list says
        all. ``bare``: there is no such device.
        """
        made = cls(tables, contents, snat)
        made._bare = bare
        if bare:
            return made
        if pins is None or not _is_attached(pins / LINKS):
            made.take()
            with suppress(KernelError):  # who settles it tells that
                made._reserve(made.listed())
            return made
        made._fill()
        return made

    def begin_pods(self, *, fresh: bool) -> None:
        """The same for pods whose packets are translated. ``fresh``: until now no program has.

        With devices it is begun, and where their program was there before they decide: to let all
        pass that isn't known would cost clients outside.
        """
        self._scopes = {"all", "node"}
        if self._bare and fresh:
            self.take()
        elif self._bare:
            self._fill()

    @property
    def of_pods(self) -> bool:
        """Whether pods' packets are asked about."""
        return "node" in self._scopes

    def _fill(self) -> None:
        try:
            self.fill()
        except KernelError as error:
            log.warning("%s", error)

    # ---- Flows of before -------------------------------------------------------------------------

    @property
    def count(self) -> int:
        """Keys of flows that pass."""
        served = self.served()
        return sum(1 for each in self.known() if _asked(each) in served)

    @property
    def takes(self) -> bool:
        """Whether what isn't known passes."""
        return self._state == self._names["TAKE"]

    @property
    def any(self) -> bool:
        """Whether packets are asked about at all."""
        return self._state != self._names["NONE"]

    def take(self) -> None:
        """Have what isn't known pass from now on, until `settle`."""
        self._state = self._names["TAKE"]

    def fill(self) -> None:
        """Have all flows pass that the kernel lists, whoever they are to. KernelError."""
        try:
            found, known = self.listed(), self.known()
            # Of one that is kept the program says how long it lasts.
            new = (each for each in found if not (each.kept and _key(each.original) in known))
            self._enter({_key(each.original): self._told(each) for each in new})
            self._reserve(found)
        finally:
            if not self.takes:
                self._state = self._names["KNOWN" if self.known() else "NONE"]

    def _reserve(self, found: Iterable[Rewritten]) -> None:
        """Have no flow begin with the port of one of these."""
        ours = (each for each in found if self._is_ours(each.reply))
        self._enter({_key(each.reply): self._told(each) for each in ours})

    def _told(self, flow: Rewritten) -> int:
        """Until when the kernel knows one, as it is entered."""
        return flow.until & ~self._seen | self._seen * flow.kept

    def _is_ours(self, answer: Ends) -> bool:
        return answer.destination in self._ours and _number(answer.port) in self._ports

    def known(self) -> dict[bytes, int]:
        """The keys that are there, and until when each is. For any thread."""
        keys, values = self._map.snapshot()
        return dict(zip((each.tobytes() for each in keys), values.tolist(), strict=True))

    @staticmethod
    def listed() -> list[Rewritten]:
        """What the kernel lists. For any thread. KernelError."""
        return conntrack_flows.rewritten()

    def settle(
        self, found: Iterable[Rewritten], before: Mapping[bytes, int], served: Served
    ) -> None:
        """Have those pass that are to services, and no others. For any thread.

        ``before``: `known`, as it was before the kernel's list was taken: what the program has
        noted since may be in no list yet. ``served``: where services are.

        Of UDP it is decided here when one is over, and the kernel keeps it until then: a new sender
        may have its port, and must find either both, the key and the kernel's entry, or neither.
        Those of which a program has seen a packet, that is: of others it can't be known here.
        """
        flows = {each: keys for each in found if (keys := self._keys(each, served))}
        until = {each: self._until_now(each, keys, before) for each, keys in flows.items()}
        now = time.monotonic_ns()
        udp = {e for e in flows if e.original.protocol == _UDP and _is_to(e, served)}
        seen = {each for each in udp if until[each] & self._seen}
        # Those that begin anew first: their clients wait.
        over = [each for each in flows if self._begins_anew(_key(each.original), before)]
        over += [each for each in seen if until[each] <= now]
        del over[_MOST_ENDED:]
        going = flows.keys() - over - {each for each in udp - seen if until[each] <= now}
        wanted = {key: until[each] for each in going for key in flows[each]}
        self._enter({key: last for key, last in wanted.items() if before.get(key, -1) < last})
        self._keep([each for each in seen if each in going and not each.kept])
        ending = {each: flows[each] for each in over}
        self._end(ending)
        for key in before.keys() - wanted.keys() - {*chain.from_iterable(ending.values())}:
            self._forget(key)
        self._noted = {each for each in wanted if each[_PROTOCOL] == _TCP}
        self.of_udp = len(self._noted) < len(wanted)
        if self._full:
            self._noted &= self.known().keys()

    def _until_now(
        self, flow: Rewritten, keys: Iterable[bytes], before: Mapping[bytes, int]
    ) -> int:
        """How long one lasts if no packet comes: as the program knows it, or else the kernel."""
        if flow.original.protocol != _UDP:
            return 0
        known = [before.get(key, 0) for key in keys]
        seen = flow.kept or any(each & self._seen for each in known)
        last = max(known) if flow.kept and any(known) else max(flow.until, *known)
        return last & ~self._seen | self._seen * seen

    def _begins_anew(self, key: bytes, before: Mapping[bytes, int]) -> bool:
        """Whether a SYN has taken it out: what the kernel has of it would be in the way."""
        return key in self._noted and key not in before

    def _keys(self, flow: Rewritten, served: Served) -> tuple[bytes, ...]:
        """Of what is sent to a service, and of answers that could be taken for what is ours."""
        # Also answers to an address and port that a service has as well.
        ends = [flow.original, flow.reply] if _is_to(flow, served) else []
        keys = [_key(each) for each in ends if _there(each) in served]
        if self._is_ours(flow.reply):
            keys.append(_key(flow.reply))
        return tuple(dict.fromkeys(keys))

    def conclude(self) -> int:
        """Have nothing be noted any more; how many keys there are."""
        self._state = self._names["KNOWN" if self.known() else "NONE"]
        return self.count

    def _keep(self, flows: Sequence[Rewritten]) -> None:
        try:
            results = conntrack_flows.keep(flows, _KEPT_SECONDS) if flows else []
        except KernelError as error:
            log.warning("%s", error)
            return
        for each, refused in zip(flows, results, strict=True):
            if refused:  # it is over: just now
                self._forget(_key(each.original))

    def _end(self, flows: Mapping[Rewritten, Iterable[bytes]]) -> None:
        if not flows:
            return
        with suppress(OSError), conntrack_flows.Ending() as ending:
            for each, keys in flows.items():
                # Asked once more, and right before: a new sender may have had its port since the
                # list was taken, and its answer is on the way.
                if any(self._until(key) > time.monotonic_ns() for key in keys):
                    continue
                for key in keys:
                    self._forget(key)
                ending.end(each)

    def _until(self, key: bytes) -> int:
        """Until when one is, as the program knows it by now."""
        found = self._map.lookup(self._array((key,))[0])
        return 0 if found is None else int(found)

    def _forget(self, key: bytes) -> None:
        self._map.delete(self._array((key,))[0], missing_ok=True)

    def served(self) -> Served:
        """Where services are that take what comes in by devices, and what pods send."""
        return {
            (vip.packed, _port(port), protocol.number)
            for vip, port, protocol, scope in (each.key for each in self._contents.installed)
            if scope in self._scopes
            and isinstance(vip, IPv4Address | IPv6Address)
            and isinstance(port, int)
        }

    def _enter(self, keys: Mapping[bytes, int]) -> None:
        if not keys:
            return
        try:
            until = np.fromiter(keys.values(), self._map.value_dtype, len(keys))
            self._map.update_batch(self._array(keys), until)
            self._full = False
        except KernelError as error:
            if not self._full:
                log.warning("flows of before that can't be noted end: %s", error)
            self._full = True

    def _array(self, keys: Iterable[bytes]) -> Array:
        return np.frombuffer(b"".join(keys), self._map.key_dtype)

    @property
    def _state(self) -> int:
        return int(self._settings["tracking"][0])

    @_state.setter
    def _state(self, value: int) -> None:
        self._settings["tracking"][0] = value

    # ---- Flows to hand back ----------------------------------------------------------------------

    def give(self, translated: NatFlows, local: LocalPath | None) -> None:
        """Enter all flows that are translated into the kernel's connection tracking.

        What begins from now on passes. Flows to backends elsewhere stay with the program until it
        goes, since the kernel sees none of their packets. They are entered first: what begins by
        the kernel has none of their ports then. Those to backends here it does see, so each is the
        kernel's when it has been entered.
        """
        begun, given = time.monotonic(), _Given()
        try:
            self._hand_over(_kept(self.listed()), given)
            self._hand_over(elsewhere(translated), given)
            if local is not None:
                self._forget_here(PacketFlows(local.program))
        except KernelError as error:
            log.warning("translated flows end: %s", error)
        self._state = self._names["GIVE"]
        wait_for_readers()
        try:
            # What has begun since then, among what was seen since then.
            seconds = time.monotonic() - begun + translated.resolution_seconds
            self._hand_over(elsewhere(translated, Wanted(Filter(max_idle_seconds=seconds))), given)
            if local is not None:
                flows = partial(here, PacketFlows(local.program), conntrack_flows.sources())
                self._hand_over((each for each in flows() if not each.of_tcp), given)
                self._hand_over((each for each in flows() if each.of_tcp), given, _HELD_AT_ONCE)
        except KernelError as error:
            log.warning("translated flows end: %s", error)
        given.tell("translated flows")

    def give_pods(self, program: PacketProgram) -> None:
        """The same with flows of pods' packets, all of which the kernel sees."""
        given = _Given()
        program.give()
        wait_for_readers()
        try:
            flows = partial(here, PacketFlows(program), conntrack_flows.sources())
            self._hand_over((each for each in flows() if not each.of_tcp), given)
            self._hand_over((each for each in flows() if each.of_tcp), given, _HELD_AT_ONCE)
        except KernelError as error:
            log.warning("pods' translated flows end: %s", error)
        given.tell("pods' translated flows")

    def _forget_here(self, flows: PacketFlows) -> None:
        """A flow that has begun here isn't the kernel's, whatever had its client's port before."""
        for each in self.known().keys() & {_key(flow.original) for flow in here(flows, {})}:
            self._forget(each)

    def _hand_over(self, flows: Iterable[Handed], given: _Given, at_once: int = 32) -> None:
        """``at_once``: so few that hardly a packet comes between two steps with one of them."""
        new = (each for each in flows if hash(each[:_NAMED]) not in given.taken)
        for some in in_parts(new, at_once):
            held = [_key(each.original) for each in some if each.passed and each.of_tcp]
            if held:
                # A packet that came between would begin another connection in their place. Segments
                # are sent again.
                self._enter(dict.fromkeys(held, self._held))
                wait_for_readers()
            taken = _handed_over(some)
            self._enter({_key(each.original): 0 for each in taken if each.passed})
            given.taken |= {hash(each[:_NAMED]) for each in taken}
            given.refused |= {hash(each[:_NAMED]) for each in some}
            given.refused -= given.taken
            for key in {*held} - {_key(each.original) for each in taken}:
                self._forget(key)


@dataclass
class _Given:
    """Flows by a hash of what names them: there may be many."""

    taken: set[int] = field(default_factory=set)
    refused: set[int] = field(default_factory=set)

    def tell(self, what: str) -> None:
        """Log how many there are."""
        log.info("%d %s are the kernel's from now on", len(self.taken), what)
        if self.refused:
            log.warning("the kernel takes %d %s not: they end", len(self.refused), what)


def _handed_over(flows: Sequence[Handed]) -> list[Handed]:
    """Have the kernel translate these; those that it does from now on."""
    taken: list[Handed] = []
    for _ in range(_ATTEMPTS):
        results = conntrack_flows.hand_over(flows)
        taken += [each for each, error in zip(flows, results, strict=True) if not error]
        flows = [each for each, error in zip(flows, results, strict=True) if error]
        if not flows:
            break
    return taken


def _kept(flows: Iterable[Rewritten]) -> Iterator[Handed]:
    """Those that the kernel would know for a day, for as long as it would otherwise."""
    seconds = conntrack_flows.udp_seconds()
    for each in flows:
        if each.kept and each.original.protocol == _UDP:
            back = each.reply
            seen = back.destination, back.port
            yield Handed(
                each.original, back.source, back.source_port, seen, passed=False, seconds=seconds
            )


def _is_attached(links: Path) -> bool:
    """Whether the program of an earlier process is on some device."""
    return links.is_dir() and any(each.name.startswith("xdp-") for each in links.iterdir())


def _is_to(flow: Rewritten, served: Served) -> bool:
    return _there(flow.original) in served


def _there(ends: Ends) -> tuple[bytes, bytes, int]:
    return ends.destination, ends.port, ends.protocol


def _port(number: Any) -> bytes:
    return int(number).to_bytes(2, "big")


def _asked(key: bytes) -> tuple[bytes, bytes, int]:
    """Address, port and protocol that a key's packets are to."""
    address = key[28:32] if key[_PROTOCOL + 1] == AF_INET else key[16:32]
    return address, key[34:36], key[_PROTOCOL]


def _number(port: bytes) -> int:
    return int.from_bytes(port, "big")
