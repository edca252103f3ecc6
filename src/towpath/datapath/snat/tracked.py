# SPDX-License-Identifier: Apache-2.0
"""Flows of translated services that the kernel translates: those of before, those to hand back.

Whoever has served these services before, by rules of netfilter, has flows in the kernel's
connection tracking. Their packets pass, for as long as the kernel lists them:

1. `take`, before the first packet: what no flow here is known of and doesn't begin by a SYN passes,
   and is noted by the program. So nothing can fall between the list and what comes after it.
2. `settle`, once all services are there: the kernel's list is taken. Only those in it pass now.
3. And again, from time to time: those that it lists no longer are forgotten, and those of UDP that
   nothing has been sent of for a while end here and there.

A load balancer that goes does the reverse (`give`): it enters its flows into connection tracking.
What isn't known any more passes meanwhile. See ``tracked`` in ``bpf/abi/lb.h``.
"""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address
from itertools import chain
from socket import AF_INET, AF_INET6
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from towpath.datapath.flows.nat_table import CLOSING
from towpath.datapath.maps.pins import LINKS
from towpath.datapath.socket.packets.flows import FlowTable as PacketFlows
from towpath.kernel.bpf.rcu import wait_for_readers
from towpath.kernel.errors import KernelError
from towpath.kernel.net import conntrack_flows
from towpath.kernel.net.conntrack_flows import Ends, Handed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from towpath.datapath.flows.nat_table import NatFlows
    from towpath.datapath.lb.contents import Contents
    from towpath.datapath.local.path import LocalPath
    from towpath.datapath.maps.shared import SharedMaps
    from towpath.kernel.net.conntrack_flows import Rewritten

    Array = np.ndarray[Any, Any]
    Served = set[tuple[bytes, bytes, int]]
    """Address, port, protocol."""

log = logging.getLogger(__name__)

_FAMILIES: dict[int, int] = {AF_INET: 4, AF_INET6: 16}
"""Bytes of an address; the numbers of families are those of ``enum family``."""
_TCP, _UDP = 6, 17
_KEPT_SECONDS = 86_400
"""So long the kernel knows a flow of UDP, if nobody ends it."""
_MOST_ENDED = 1000
"""Of these at one look: each takes two system calls."""
_OPEN_SECONDS, _ENDING_SECONDS, _UDP_SECONDS = 86_400, 60, 120
"""After which the kernel forgets a flow that was handed to it, of which no packet has come: it has
times of its own from the first packet on."""


class Tracked:
    """``tracked`` of ``tables``, and the word that says what is done with it.

    ``contents``: the services. For the thread that changes these, but for what says otherwise.
    """

    def __init__(self, tables: SharedMaps, contents: Contents) -> None:
        self._map = tables.maps["tracked"]
        self._settings = tables.rows("settings")
        self._names = {
            name: tables.constant("tracking", f"TRACKING_{name}")
            for name in ("NONE", "KNOWN", "TAKE", "GIVE")
        }
        self._contents = contents
        self._full = False

    @classmethod
    def begun(cls, tables: SharedMaps, contents: Contents, pins: Path | None) -> Self:
        """Have flows of before pass from the first packet on that a device's program sees.

        Where there is a program already no flow has begun elsewhere since: the kernel's list says
        all.
        """
        made = cls(tables, contents)
        if pins is None or not _is_attached(pins / LINKS):
            made.take()
            return made
        try:
            made.fill()
        except KernelError as error:
            log.warning("%s", error)
        return made

    # ---- Flows of before -------------------------------------------------------------------------

    @property
    def count(self) -> int:
        """Keys of flows that pass."""
        return len(self._map.snapshot()[0])

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
            self._enter({_key(each.original): each.until for each in self.listed()})
        finally:
            if not self.takes:
                self._state = self._names["KNOWN" if self.count else "NONE"]

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
        """
        flows = {each: keys for each in found if (keys := _keys(each, served))}
        until = {each: _until(each, keys, before) for each, keys in flows.items()}
        now = time.monotonic_ns()
        udp = [each for each in flows if each.original.protocol == _UDP]
        over = [each for each in udp if until[each] <= now][:_MOST_ENDED]
        going = flows.keys() - over
        wanted = {key: until[each] for each in going for key in flows[each]}
        self._enter({key: last for key, last in wanted.items() if before.get(key, -1) < last})
        self._keep([each for each in udp if each in going and not each.kept])
        ending = {each: flows[each] for each in over}
        self._end(ending)
        for key in before.keys() - wanted.keys() - {*chain.from_iterable(ending.values())}:
            self._forget(key)

    def conclude(self) -> int:
        """Have nothing be noted any more; how many keys there are."""
        self._state = self._names["KNOWN"]
        left = self.count
        if not left:
            self._state = self._names["NONE"]
        return left

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
        """Where services are that take what comes in by devices."""
        return {
            (vip.packed, _port(port), protocol.number)
            for vip, port, protocol, scope in (each.key for each in self._contents.installed)
            if scope == "all"
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
        goes, since the kernel sees none of their packets. Those to backends here it does see, so
        each is the kernel's when it has been entered.
        """
        self._state = self._names["GIVE"]
        wait_for_readers()
        try:
            handed = self._hand_over(_elsewhere(translated))
            if local is not None:
                handed += self._hand_over(_here(PacketFlows(local.program)))
        except KernelError as error:
            log.warning("translated flows end: %s", error)
        else:
            log.info("%d translated flows are the kernel's from now on", handed)

    def _hand_over(self, flows: Iterable[Handed]) -> int:
        handed = 0
        for some in _in_parts(flows):
            results = conntrack_flows.hand_over(some)
            taken = [each for each, error in zip(some, results, strict=True) if not error]
            self._enter({_key(each.original): 0 for each in taken if each.passed})
            handed += len(taken)
        return handed


def _is_attached(links: Path) -> bool:
    """Whether the program of an earlier process is on some device."""
    return links.is_dir() and any(each.name.startswith("xdp-") for each in links.iterdir())


def _keys(flow: Rewritten, served: Served) -> tuple[bytes, ...]:
    """Of what is sent to a service; none, if it isn't to one."""
    if _there(flow.original) not in served:
        return ()
    # And of answers, if they are to an address and port that a service has as well.
    return tuple(_key(ends) for ends in (flow.original, flow.reply) if _there(ends) in served)


def _until(flow: Rewritten, keys: Iterable[bytes], before: Mapping[bytes, int]) -> int:
    """How long one lasts if no packet comes: as the program knows it, or else the kernel."""
    known = max(before.get(key, 0) for key in keys)
    return known if flow.kept and known else max(flow.until, known)


def _in_parts(flows: Iterable[Handed], most: int = 32) -> Iterator[list[Handed]]:
    """So few that hardly a packet comes between two steps with one of them."""
    some: list[Handed] = []
    for each in flows:
        some.append(each)
        if len(some) == most:
            yield some
            some = []
    if some:
        yield some


def _there(ends: Ends) -> tuple[bytes, bytes, int]:
    return ends.destination, ends.port, ends.protocol


def _key(ends: Ends) -> bytes:
    """``struct flow_key``."""
    return (
        ends.source.rjust(16, b"\0")
        + ends.destination.rjust(16, b"\0")
        + ends.source_port
        + ends.port
        + bytes((ends.protocol, ends.family, 0, 0))
    )


def _elsewhere(translated: NatFlows) -> Iterator[Handed]:
    """Flows whose backends see an address of ours."""
    for chunk in translated.chunks():
        for at in range(len(chunk)):
            source = translated.sources[int(chunk.sources[at])]
            family = AF_INET if isinstance(source, IPv4Address) else AF_INET6
            udp = bool(chunk.udp[at])
            ending = int(chunk.states[at]) == CLOSING
            backend = translated.backend_of(int(chunk.handles[at]))
            yield Handed(
                Ends(
                    family,
                    _UDP if udp else _TCP,
                    _short(chunk.clients[at].tobytes(), family),
                    _short(chunk.vips[at].tobytes(), family),
                    _port(chunk.client_ports[at]),
                    _port(chunk.vip_ports[at]),
                ),
                _short(backend, family),
                _port(chunk.backend_ports[at]),
                (source.packed, _port(chunk.ports[at])),
                passed=False,
                seconds=_seconds(udp=udp, ending=ending),
                ending=ending,
            )


def _here(table: PacketFlows) -> Iterator[Handed]:
    """Flows whose backends, on this node, see the client."""
    for entries, states, _ in table.live():
        for entry, state in zip(entries, states, strict=True):
            family, protocol = int(entry["family"]), int(entry["protocol"])
            ending = str(state) == "closing"
            yield Handed(
                Ends(
                    family,
                    protocol,
                    _short(entry["client"].tobytes(), family),
                    _short(entry["vip"].tobytes(), family),
                    _port(entry["client_port"]),
                    _port(entry["vip_port"]),
                ),
                _short(entry["backend"].tobytes(), family),
                _port(entry["backend_port"]),
                (_short(entry["client"].tobytes(), family), _port(entry["port"])),
                passed=True,
                seconds=_seconds(udp=protocol == _UDP, ending=ending),
                ending=ending,
            )


def _seconds(*, udp: bool, ending: bool) -> int:
    if udp:
        return _UDP_SECONDS
    return _ENDING_SECONDS if ending else _OPEN_SECONDS


def _short(packed: bytes, family: int) -> bytes:
    return packed[-_FAMILIES[family] :]


def _port(number: Any) -> bytes:
    return int(number).to_bytes(2, "big")
