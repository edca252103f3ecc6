# SPDX-License-Identifier: Apache-2.0
"""Bandwidth on a node: the programs on its devices, fq below them, and all tables in step.

`Node.sync` compares what there is with what is to be, and changes what differs. It is for one
thread at a time; :mod:`towpath.datapath.bandwidth.follower` has that thread.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack
from typing import TYPE_CHECKING

from towpath.closeable import Closeable
from towpath.datapath.attach.places import Places
from towpath.datapath.bandwidth.beside import Lost, Needs, shaped_elsewhere, spared, told
from towpath.datapath.bandwidth.ends import Ends
from towpath.datapath.bandwidth.fq import FqKeeper, limits
from towpath.datapath.bandwidth.inside import Inside
from towpath.datapath.bandwidth.limits import horizon
from towpath.datapath.bandwidth.places import Located, locate
from towpath.datapath.bandwidth.program import BandwidthProgram
from towpath.datapath.bandwidth.tables import Numbers, Owners
from towpath.datapath.bandwidth.wanted import NOTHING, wanted
from towpath.datapath.maps.pins import held
from towpath.kernel.bpf.bpffs import remove_pins
from towpath.kernel.bpf.hooks import Tc
from towpath.kernel.bpf.notes import Notes
from towpath.kernel.errors import KernelError
from towpath.kernel.net import link_state
from towpath.kernel.net.link_state import LOOPBACK
from towpath.kernel.net.offloads import speed
from towpath.kernel.net.watch import Group, Watch
from towpath.model.kinds.patterns import matches
from towpath.model.kinds.rates import written

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path
    from typing import Any

    from towpath.datapath.bandwidth.wanted import Aggregate
    from towpath.kernel.net.link_state import Device
    from towpath.kernel.net.shapers import Shaped
    from towpath.model.bandwidth import Section, Sourced

log = logging.getLogger(__name__)

LINKS, QDISCS = "links", "qdiscs"
HANDLE = 0x7472
AFTER = ("socket_from_pod",)
"""What is to a service goes to its backend first, and then past the stack with ``direct``."""
"""Of filters, where the kernel has no links: apart from other capabilities'."""
_GROUPS = (Group.LINK, Group.TC, Group.IPV4_ROUTE, Group.IPV6_ROUTE)


class Node(Closeable):
    """Bandwidth in the calling thread's network namespace, until it is closed.

    What is in the kernel goes on when this is closed, and the next one takes it over; `detach` ends
    it and puts qdiscs back. ``pins``: the directory that keeps it, None for none. ``changes`` and
    ``sourced``: as `wanted` takes them. Not thread-safe. KernelError, OSError: the programs can't
    be loaded, or the kernel's lists can't be read.
    """

    def __init__(
        self,
        section: Section,
        pins: Path | None,
        changes: Mapping[str, Mapping[str, Any]] | None = None,
        sourced: Sourced = NOTHING,
    ) -> None:
        self.section = section
        self.changes: Mapping[str, Mapping[str, Any]] = changes or {}
        self.sourced = sourced
        self._pins = pins
        self.aggregates: list[Aggregate] = []
        self.located = Located({}, {}, {})
        self.shaped: dict[int, Shaped] = {}
        """Pods' devices that somebody else shapes."""
        self._ends = Ends()
        self._lost = Lost()
        self.devices: dict[int, Device] = {}
        """By which pods' packets leave."""
        self.unpaced: dict[int, str] = {}
        """Those of them that are policed, and why."""
        self.troubles: tuple[str, ...] = ()
        """What isn't as it should be."""
        self.notes: tuple[str, ...] = ()
        """What is limited otherwise than it says, and why: limits hold all the same, or only a
        source can mend it. None of it keeps the agent from its work."""
        with ExitStack() as undo:
            self._hold = None if pins is None else undo.enter_context(held(pins))
            self.program = undo.enter_context(
                BandwidthProgram(section.aggregates, pins, direct=section.direct, by_address=True)
            )
            self.numbers = Numbers(self.program)
            self._owners = Owners(self.program)
            self.fq = FqKeeper(Notes(pins and pins / QDISCS))
            self.inside = Inside(pins)
            self._watch = undo.enter_context(Watch(_GROUPS))
            self._places = Places(pins and pins / LINKS)
            undo.callback(self._places.close)
            self.sync()
            self._forget_places()
            self.program.own.settle()
            self._undo = undo.pop_all()

    # ---- In step ---------------------------------------------------------------------------------

    def replace(
        self,
        section: Section | None = None,
        changes: Mapping[str, Mapping[str, Any]] | None = None,
        sourced: Sourced | None = None,
    ) -> None:
        """Have other limits from now on; None: as before. KernelError: those of before hold."""
        before = self.section, self.changes, self.sourced
        self.section = self.section if section is None else section
        self.changes = self.changes if changes is None else changes
        self.sourced = self.sourced if sourced is None else sourced
        try:
            self.sync(anew=False)
        except (KernelError, OSError):
            self.section, self.changes, self.sourced = before
            self.sync()
            raise

    def read(self) -> bool:
        """Take in what the kernel has told; whether anything has changed. OSError."""
        return self._watch.read() != []

    def filenos(self) -> tuple[int, ...]:
        """Descriptors that are readable when something has changed."""
        return (self._watch.fileno(),)

    def sync(self, *, anew: bool = True) -> None:
        """Make everything as it is to be. KernelError, OSError: the rest is done the next time.

        Not ``anew``: pods' namespaces that were looked at lately aren't.
        """
        devices = link_state.devices()
        found = wanted(self.section, self.changes, self.sourced)
        troubles: list[str] = []
        pods = [each for each in found.aggregates if not each.is_group]
        self.located = locate(pods, devices, self._ends)
        self.shaped = shaped_elsewhere(found.aggregates, self.located)
        self.aggregates = spared(found.aggregates, self.located, self.shaped)
        self.numbers.sync(self.aggregates)
        self.devices = {i: each for i, each in devices.items() if self._leaves_by(each)}
        degraded = [*self._sync_devices(troubles)]
        self._sync_pods(devices, troubles)
        self._sync_inside(devices, troubles, anew=anew)
        self._leave_others()
        self._check(troubles, degraded)
        notes = degraded + self._notes(found.left_out, devices)
        known = {*self.troubles, *self.notes}
        for each in (*troubles, *notes):
            if each not in known:
                log.warning("bandwidth: %s", each)
        self.troubles, self.notes = tuple(troubles), tuple(notes)

    def _leaves_by(self, device: Device) -> bool:
        if device.flags & LOOPBACK or device.index in self.located.indexes:
            return False
        return any(matches(pattern, device.name) for pattern in self.section.devices)

    def _sync_devices(self, troubles: list[str]) -> Iterator[str]:
        """Have departure times given, and kept, at the devices that packets leave by.

        Says which of them police instead.
        """
        rates = [
            (each.limit.egress, horizon(each.limit))
            for each in self.aggregates
            if each.limit.egress
        ]
        options = limits(rates)
        self.unpaced = {}
        for index, device in self.devices.items():
            try:
                if trouble := self.fq.keep(index, options):
                    self.unpaced[index] = trouble
                    yield f"{device.name} polices, and doesn't pace: {trouble}"
                self._take(f"{index}-leave", "police" if trouble else "pace", "egress", index)
            except KernelError as error:
                if index in link_state.devices():
                    troubles.append(str(error))
        self._owners.sync_devices(set(self.devices) - set(self.unpaced))

    def _sync_pods(self, devices: Mapping[int, Device], troubles: list[str]) -> None:
        """Tell whose packets are."""
        number = self.numbers.by_name
        located = self.located
        owners = {index: number[name] for index, name in located.owners.items()}
        addresses = {
            address: number[name]
            for each in located.by_address.values()
            for address, name in each.items()
        }
        self._owners.sync_addresses(addresses)
        self._owners.sync_pods(owners, located.by_address)
        needs = Needs(self.aggregates, located, self.shaped)
        for index in sorted(located.indexes):
            try:
                if needs.receive(index):
                    self._take(f"{index}-receive", "receive", "egress", index)
                if needs.tag(index):
                    self._take(f"{index}-tag", "tag", "ingress", index)
            except KernelError as error:
                if index in link_state.devices():
                    troubles.append(f"{devices[index].name}: {error}")

    def _sync_inside(
        self, devices: Mapping[int, Device], troubles: list[str], *, anew: bool
    ) -> None:
        by_name = {each.name: each for each in self.aggregates}
        rates = {}
        for index, name in self.located.owners.items():
            pod = by_name[name]
            group = by_name.get(pod.group)
            both = (pod.limit.egress, group.limit.egress if group else None)
            rates[index] = min((each for each in both if each), default=0)
        troubles += self.inside.sync(devices, rates, self.section.bbr, anew=anew)

    def _take(self, name: str, program: str, side: Any, index: int) -> None:
        made = self.program.program(program)
        place = self._places.get(name)
        if place is None or place.lost or place.program is not made:
            self._places.take(name, made, Tc(index, side, HANDLE, AFTER))

    def _leave_others(self) -> None:
        """Give up devices that have gone, or are nobody's any more."""
        for place in list(self._places):
            if not self._is_wanted(place.name):
                self._places.drop(place.name)
        for index in self.fq.noted - set(self.devices):
            self.fq.restore(index)

    def _is_wanted(self, name: str) -> bool:
        index, _, role = name.partition("-")
        return int(index) in (self.devices if role == "leave" else self.located.indexes)

    def _forget_places(self) -> None:
        """Give up what an earlier process has left on devices that are nothing any more."""
        for name in self._places.pinned():
            if not self._is_wanted(name):
                self._places.drop(name)

    def _notes(self, left_out: Mapping[str, str], devices: Mapping[int, Device]) -> list[str]:
        sourced = {each.name for each in self.aggregates if each.sourced}
        missing = {name: why for name, why in self.located.missing.items() if name in sourced}
        names = {index: each.name for index, each in devices.items()}
        lasting = {**left_out, **self._lost.lasting(missing)}
        said = [f"{name}: {why}" for name, why in sorted(lasting.items())]
        return said + told(self.located, self.shaped, names)

    def _check(self, troubles: list[str], degraded: list[str]) -> None:
        if not self.devices:
            troubles.append(f"there is no device {' or '.join(self.section.devices)}")
        sourced = {each.name for each in self.aggregates if each.sourced}
        missing = sorted(self.located.missing.items())
        troubles += [f"{name}: {why}" for name, why in missing if name not in sourced]
        speeds = {each.name: told for each in self.devices.values() if (told := speed(each.name))}
        for each in self.aggregates:
            for device, most in speeds.items():
                if each.limit.egress and each.limit.egress > most:
                    rates = f"{written(each.limit.egress)} is more than {device} has"
                    those = degraded if each.sourced else troubles
                    those.append(f"{each.name}: {rates} ({written(most)})")

    # ---- What others undo ------------------------------------------------------------------------

    def put_right(self) -> None:
        """Attach and pin again what somebody has detached or removed. KernelError, OSError."""
        if self._places.lost():
            log.warning("bandwidth: a program was detached, or its device is gone")
            self.sync()
        if self._hold is None:
            return
        missing = [str(self._pins)] if self._hold.again() else []
        missing += ["maps"] if self.program.own.pin_again() else []
        missing += self._places.pin_again()
        if missing:
            log.warning("bandwidth: pins were removed: %s; made again", ", ".join(missing))

    # ---- Life ------------------------------------------------------------------------------------

    def detach(self) -> None:
        """Take everything out of the kernel, and put back the qdiscs."""
        self._places.detach()
        self.fq.restore_all()
        self.inside.restore_all()
        if self._pins is not None:
            remove_pins(self._pins)

    def close(self) -> None:
        """Let go of it. What is in the kernel goes on."""
        self._undo.close()


def detach(pins: Path) -> None:
    """Take out of the kernel what is pinned there, and put back the qdiscs."""
    Places(pins / LINKS).detach_pinned()
    FqKeeper(Notes(pins / QDISCS)).restore_all()
    Inside(pins).restore_all()
    remove_pins(pins)
