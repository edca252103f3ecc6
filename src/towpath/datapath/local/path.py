# SPDX-License-Identifier: Apache-2.0
"""The programs that translate for backends on this node, on the devices that need them.

Clients' packets come in by the load balancer's devices. By which ones they are answered the routes
to the clients say: the program looks when a flow begins, and refuses it where the device has no
program for answers yet (``drop_device``). It has one with the next look, and the client's next
packet begins the flow.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack
from typing import TYPE_CHECKING

from towpath.closeable import Closeable
from towpath.datapath.attach.places import Places
from towpath.datapath.maps.pins import LINKS
from towpath.datapath.socket.packets.program import PacketProgram
from towpath.kernel.bpf.bpffs import remove_pins
from towpath.kernel.bpf.hooks import Tc
from towpath.kernel.errors import KernelError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from towpath.datapath.maps.shared import SharedMaps
    from towpath.kernel.net.devices import Devices

log = logging.getLogger(__name__)

OBJECT = "local"
HANDLE = 0x7474
"""Of filters, where the kernel has no links: apart from those of other capabilities."""
_PROGRAMS = {"egress": "local_out", "ingress": "local_in"}
_NAMES = {"from_pod": "in", "to_pod": "out"}
"""Of programs, by what those of pods are called whose table this is."""


class LocalPath(Closeable):
    """The programs over ``tables``, with room for so many ``flows``.

    ``pins``: the directory that keeps them, None for none. What is in the kernel goes on when this
    is closed; `detach` ends it. Not thread-safe. KernelError: they can't be loaded.
    """

    def __init__(
        self, tables: SharedMaps, flows: int, devices: Devices, pins: Path | None = None
    ) -> None:
        self._devices = devices
        self._pins = pins
        self.troubles: tuple[str, ...] = ()
        """What isn't as it should be."""
        with ExitStack() as undo:
            # It knows no handle of the tables, so that it goes on whatever tables there are.
            made = PacketProgram(tables, flows, 0, pins, object_name=OBJECT)
            self.program = undo.enter_context(made)
            self._places = Places(pins and pins / LINKS)
            undo.callback(self._leave)
            self._also = {_index(each) for each in self._places.pinned() if _is_egress(each)}
            self._undo = undo.pop_all()

    # ---- In step ---------------------------------------------------------------------------------

    def follow(self, balanced: Mapping[int, str]) -> None:
        """Be on these devices, by their indexes, and those that answers leave by. KernelError."""
        troubles: list[str] = []
        self._also |= set(map(int, self.program.maps["local_wanted"].keys()))
        self._also = {each for each in self._also - balanced.keys() if self._devices.get(each)}
        answering = [*balanced, *filter(lambda each: self._may_answer(each, troubles), self._also)]
        for index in answering:
            self._take(index, "egress", troubles)
        self._note(balanced)
        for index in balanced:
            self._take(index, "ingress", troubles)
        wanted = {f"{each}-egress" for each in answering} | {f"{each}-ingress" for each in balanced}
        for name in {place.name for place in self._places} | set(self._places.pinned()):
            if name not in wanted:
                self._places.drop(name)
        self.program.own.settle()
        for trouble in troubles:
            if trouble not in self.troubles:
                log.warning("backends on this node: %s", trouble)
        self.troubles = tuple(troubles)

    def _may_answer(self, index: int, troubles: list[str]) -> bool:
        device = self._devices.get(index)
        if device is not None and not device.ethernet:
            troubles.append(
                f"{device.name} is no Ethernet device: what is answered by it can't be given a"
                " VIP; flows of such clients to backends on this node are dropped (drop_device)"
            )
        return device is not None and device.ethernet

    def _take(self, index: int, side: str, troubles: list[str]) -> None:
        wanted = self.program.programs[_PROGRAMS[side]]
        name = f"{index}-{side}"
        place = self._places.get(name)
        if place is not None and not place.lost and place.program is wanted:
            return
        hook = Tc(index, "egress" if side == "egress" else "ingress", HANDLE)
        try:
            self._places.take(name, wanted, hook)
        except KernelError as error:
            if self._devices.get(index) is not None:
                troubles.append(str(error))

    def _note(self, balanced: Mapping[int, str]) -> None:
        """Say which devices answers may leave by: these, and those on top of balanced ones."""
        having = {_index(place.name) for place in self._places if _is_egress(place.name)}
        above = {each for index in balanced for each in self._devices.entrances(index)}
        wanted = having | above
        table, asked = self.program.maps["local_devices"], self.program.maps["local_wanted"]
        known = set(map(int, table.keys()))
        for index in wanted - known:
            table.update(index, 1)
        for index in known - wanted:
            table.delete(index, missing_ok=True)
        for index in list(map(int, asked.keys())):
            if index in wanted or self._devices.get(index) is None:
                asked.delete(index, missing_ok=True)

    def put_right(self) -> None:
        """Pin again what somebody has unpinned. KernelError."""
        if self._pins is None:
            return
        self.program.own.pin_again()
        self._places.pin_again()

    # ---- What it has seen ------------------------------------------------------------------------

    def counts(self) -> dict[str, dict[str, int]]:
        """Packets by program and verdict; and "bytes" and "begun"."""
        return {_NAMES[name]: found for name, found in self.program.counts().items()}

    @property
    def devices(self) -> dict[str, list[int]]:
        """Where the programs are: indexes of devices by side."""
        found: dict[str, list[int]] = {"ingress": [], "egress": []}
        for place in self._places:
            index, _, side = place.name.partition("-")
            found[side].append(int(index))
        return found

    @property
    def capacity(self) -> int:
        """How many flows there is room for."""
        ways = self.program.constant("packet_limits", "PACKET_WAYS")
        return self.program.maps["packet_flows"].max_entries * ways

    # ---- Life ------------------------------------------------------------------------------------

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


def detach(pins: Path) -> None:
    """Take out of the kernel what is pinned there."""
    Places(pins / LINKS).detach_pinned()
    remove_pins(pins)


def _index(place: str) -> int:
    return int(place.partition("-")[0])


def _is_egress(place: str) -> bool:
    return place.endswith("-egress")
