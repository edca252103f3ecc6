# SPDX-License-Identifier: Apache-2.0
"""The programs on pods' devices, and the table of flows in step with the services.

`Node.sync` compares which devices there are with which have the programs, and changes what differs.
It is for one thread; :mod:`towpath.datapath.socket.packets.follower` is that thread.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

from towpath.closeable import Closeable
from towpath.datapath.attach.places import Places
from towpath.datapath.maps.pins import LINKS
from towpath.datapath.socket.packets.flows import renew_handles
from towpath.datapath.socket.packets.program import PacketProgram
from towpath.kernel.bpf.bpffs import remove_pins
from towpath.kernel.bpf.hooks import Tc
from towpath.kernel.errors import KernelError
from towpath.kernel.net import link_state
from towpath.kernel.net.devices import Devices
from towpath.kernel.net.link_state import LOOPBACK
from towpath.model.kinds.patterns import matches

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from towpath.datapath.lb.contents import Contents
    from towpath.datapath.maps.shared import SharedMaps
    from towpath.kernel.net.link_state import Device
    from towpath.model.socket import Packets

log = logging.getLogger(__name__)

HANDLE = 0x7473
"""Of filters, where the kernel has no links: apart from those of other capabilities."""
_PROGRAMS = {"egress": "socket_to_pod", "ingress": "socket_from_pod"}
"""What answers pass comes first: then something may be sent that is answered."""


class Node(Closeable):
    """Services in packets, in the calling thread's network namespace, until it is closed.

    The services are those of ``contents``, in ``tables``, whose handles are of ``epoch``. What is
    in the kernel goes on when this is closed, and the next one takes it over; `detach` ends it.
    ``pins``: the directory that keeps it, which is the caller's alone; None for none. ``tracks``:
    flows may be the kernel's. Not thread-safe. KernelError, OSError: the programs can't be loaded,
    or the kernel's lists can't be read.
    """

    def __init__(
        self,
        tables: SharedMaps,
        contents: Contents,
        section: Packets,
        epoch: int,
        pins: Path | None = None,
        *,
        tracks: bool = False,
    ) -> None:
        self.section = section
        self._pins = pins
        self._contents = contents
        self.devices: dict[int, str] = {}
        """Those that have the programs: names by index."""
        self.troubles: tuple[str, ...] = ()
        """What isn't as it should be."""
        with ExitStack() as undo:
            made = PacketProgram(tables, section.flows, epoch, pins, tracks=tracks)
            self.program = undo.enter_context(made)
            self._watch = undo.enter_context(Devices())
            self._places = Places(pins and pins / LINKS)
            undo.callback(self._leave)
            self.sync()
            self._forget_places()
            self.program.own.settle()
            renew_handles(self.program, contents)
            self._undo = undo.pop_all()

    # ---- In step ---------------------------------------------------------------------------------

    def read(self) -> bool:
        """Take in what the kernel has told; whether anything has changed. OSError."""
        return self._watch.read()

    def filenos(self) -> tuple[int, ...]:
        """Descriptors that are readable when something has changed."""
        return (self._watch.fileno(),)

    def replace_devices(self, devices: Sequence[str]) -> None:
        """Be on these devices from now on. KernelError, OSError: those of before."""
        before, self.section = self.section, replace(self.section, devices=tuple(devices))
        try:
            self.sync()
        except (KernelError, OSError):
            self.section = before
            raise

    def sync(self) -> None:
        """Have the programs on all devices that are named, and no others. KernelError, OSError."""
        troubles: list[str] = []
        found = link_state.devices()
        wanted = {each.index: each.name for each in self._named(found, troubles)}
        for index in wanted:
            self._attach(index, found[index].name, troubles)
        for place in list(self._places):
            if _index(place.name) not in wanted:
                self._places.drop(place.name)
        for trouble in troubles:
            if trouble not in self.troubles:
                log.warning("services in packets: %s", trouble)
        self.devices, self.troubles = wanted, tuple(troubles)

    def _named(self, found: dict[int, Device], troubles: list[str]) -> Iterator[Device]:
        names = {each.name for each in found.values()}
        # Pods come and go: only what is one device is missed.
        single = (each for each in self.section.devices if not each.endswith("*"))
        troubles += [f"there is no device {each}" for each in single if each not in names]
        for device in found.values():
            if not any(matches(pattern, device.name) for pattern in self.section.devices):
                continue
            if device.flags & LOOPBACK or not device.ethernet:
                troubles.append(f"{device.name} is no Ethernet device")
                continue
            yield device

    def _attach(self, index: int, name: str, troubles: list[str]) -> None:
        try:
            for side, program in _PROGRAMS.items():
                wanted = self.program.programs[program]
                place = self._places.get(f"{index}-{side}")
                if place is None or place.lost or place.program is not wanted:
                    hook = Tc(index, "egress" if side == "egress" else "ingress", HANDLE)
                    self._places.take(f"{index}-{side}", wanted, hook)
        except KernelError as error:
            if index in link_state.devices():
                troubles.append(f"{name}: {error}")

    def _forget_places(self) -> None:
        """Give up what an earlier process has left on devices that aren't named any more."""
        for name in self._places.pinned():
            if _index(name) not in self.devices:
                self._places.drop(name)

    def put_right(self) -> None:
        """Attach and pin again what somebody has detached or removed. KernelError, OSError."""
        if self._places.lost():
            log.warning("services in packets: a program was detached, or its device is gone")
            self.sync()
        if self.program.own.pin_again():
            log.warning("services in packets: pins were removed: they are made again")
        if self._pins is not None:
            self._places.pin_again()

    # ---- Life ------------------------------------------------------------------------------------

    @property
    def contents(self) -> Contents:
        """The services."""
        return self._contents

    @property
    def capacity(self) -> int:
        """How many flows there is room for."""
        ways = self.program.constant("packet_limits", "PACKET_WAYS")
        return self.program.maps["packet_flows"].max_entries * ways

    def detach(self) -> None:
        """Take everything out of the kernel."""
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


def _index(place: str) -> int:
    return int(place.partition("-")[0])


def is_attached(pins: Path | None) -> bool:
    """Whether programs of an earlier process are on devices."""
    return pins is not None and (pins / LINKS).is_dir() and any((pins / LINKS).iterdir())


def detach(pins: Path) -> None:
    """Take out of the kernel what is pinned there."""
    Places(pins / LINKS).detach_pinned()
    remove_pins(pins)
