# SPDX-License-Identifier: Apache-2.0
"""The program's place on its devices, which come and go.

Each device gets the XDP program and, behind it, the tc program that takes the
packets whose next hop XDP could not resolve. Both are links: where there is a
pin directory they are pinned and outlive the process, and the next process puts
its program in their place without a packet between the two.

The configuration names devices. One that goes is missing until there is one of its name, or of that
alternative name, again. One that is renamed keeps its program until another device has the name
that it had. One that is moved to another network namespace loses its program, as others' traffic
goes by there. What others have detached or replaced is put back.
"""

from __future__ import annotations

import logging
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from towpath.datapath.attach.places import Places
from towpath.datapath.maps.pins import LINKS, NAMES
from towpath.documents import DeviceStatus
from towpath.kernel.bpf.dispatched import DEFAULT_PRIORITY, Dispatched, why_not
from towpath.kernel.bpf.fragments import Kind
from towpath.kernel.bpf.hooks import Dispatcher, Tc, Xdp
from towpath.kernel.bpf.links import NOT_THE_DRIVER, xdp_mode, xdp_program_id
from towpath.kernel.bpf.notes import Notes
from towpath.kernel.errors import KernelError
from towpath.kernel.net import interfaces

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from towpath.datapath.attach.places import Place
    from towpath.datapath.program.program import LoadedProgram
    from towpath.datapath.program.tags import Tags
    from towpath.kernel.bpf.dispatcher import Mode
    from towpath.kernel.bpf.hooks import Hook
    from towpath.kernel.bpf.programs import Program
    from towpath.kernel.net.devices import Devices, Interface
    from towpath.model.settings import Device

log = logging.getLogger(__name__)

_XDP, _TC = "xdp-", "tc-"
"""What the names of places begin with: where packets are balanced, and where they are handed on."""
AGAIN_SECONDS = 5.0
"""After so long it is tried again to attach where that was refused."""


@dataclass
class _Balanced:
    """A device that the configuration names."""

    wish: Device
    index: int = 0
    """Of the device that the program is on, 0 while it is on none."""
    serial: int = 0
    """What tells that device from others that get its index."""
    trouble: str = ""
    last: int = 0
    """The index of the device that it was on last."""
    refused: int = 0
    """The serial number of the device that couldn't be attached to."""
    again: float = 0.0
    """When to try that again, by the monotonic clock."""
    why_generic: str = ""
    """Where mode auto had to settle for generic, what the driver said."""


class Attachment:
    """The program on ``wishes``, of those that are among ``devices``.

    KernelError: one can't be attached to, or there is none of that name and was none before. What
    was attached to the others is not any more, except what was pinned before.
    """

    def __init__(
        self,
        program: LoadedProgram,
        wishes: Iterable[Device],
        devices: Devices,
        tags: Tags,
        pins: Path | None = None,
    ) -> None:
        self._program = program
        self._devices = devices
        self._tags = tags
        self._pinned = pins is not None
        self._places = Places(pins / LINKS if pins else None)
        self._names = Notes(pins / NAMES if pins else None)
        words = (text.partition(" ") for text in self._names.texts.values())
        self._before = {name: int(index) for index, _, name in words}
        # None: those that balance.
        self._standing: Mapping[Kind, Program] = {}
        # Captures begin in other threads.
        self._lock = threading.RLock()
        self._balanced = [_Balanced(wish) for wish in wishes]
        self.repairs = 0
        """How often something was put back that others had taken away."""
        try:
            for each in self._balanced:
                self._begin(each)
        except BaseException:
            self._places.give_up()
            raise
        self._drop_others()
        self._note()

    # ---- the beginning ---------------------------------------------------------------------------

    def _begin(self, each: _Balanced) -> None:
        """Attach to a device that is to be there, unless an earlier process has seen it go."""
        name = each.wish.name
        found = self._devices.named(name)
        if found is not None:
            self._attach(each, found)
            return
        if name not in self._before:
            interfaces.device_index(name)  # says which ones there are
            raise KernelError(f"no such device: {name}")
        each.last = self._before[name]
        renamed = self._devices.get(each.last)
        if renamed is not None and f"{_XDP}{renamed.index}" in self._places.pinned():
            self._attach(each, renamed)

    def _drop_others(self) -> None:
        """Detach from devices that an earlier configuration named."""
        held = {each.index for each in self._balanced}
        for name in self._places.pinned():
            if int(name.rpartition("-")[2]) not in held:
                self._places.drop(name)

    def _attach(self, each: _Balanced, device: Interface) -> None:
        """Put the programs on a device. KernelError: it is as before then."""
        index, programs = device.index, self._program.object.programs
        if any(other.index == index for other in self._balanced if other is not each):
            raise KernelError(
                f"attach to {each.wish.name}", hint=f"{device.name} is named by another name too"
            )
        was_held = each.index == index
        self._tags.keep(device)
        # tc first: from its first packet on, XDP may hand packets over.
        self._places.take(f"{_TC}{index}", programs["towpath_handoff"], Tc(index, "ingress"))
        try:
            xdp = self._take_xdp(each, index)
        except KernelError:
            if not was_held:
                self._places.drop(f"{_TC}{index}")
            raise
        before, each.index, each.serial, each.last = each.index, index, device.serial, index
        log.info("%s: attached in %s mode, index %d", each.wish.name, xdp.link.mode, index)
        if each.why_generic:
            log.warning(
                "%s: generic mode, packets take several times as long: %s",
                each.wish.name,
                each.why_generic,
            )
        if before not in (0, index):
            self._let_go(before)

    def _take_xdp(self, each: _Balanced, index: int) -> Place:
        name = f"{_XDP}{index}"
        if each.wish.attach == "dispatcher" and (reason := why_not()):
            # Before a link is given up for it.
            raise KernelError(f"attach to {each.wish.name} by a dispatcher", hint=reason)
        # What is there goes on in its mode, others' dispatcher too.
        has = self._places.get(name) is not None or name in self._places.pinned()
        has |= (each.wish.attach, each.wish.mode) == ("dispatcher", "auto")
        place = self._take_in_a_mode(each, index, xdp_mode(index) if has else "")
        if place.adopted and not self._is_here(place, index):
            # It was pinned, and is on a device that was moved to another network namespace.
            self._places.drop(name)
            place = self._take_in_a_mode(each, index, "")
        if isinstance(place.link, Dispatched):
            try:
                takes = self._kind_of(place).fragments
                place.link.arrange(_priority(each.wish), fragments=takes)
            except KernelError as error:
                log.warning("%s: it is called in another order: %s", each.wish.name, error)
        return place

    def _take_in_a_mode(self, each: _Balanced, index: int, there: str) -> Place:
        """Put the program of the right kind there, in the driver if that is wished and can be."""
        mode = there or each.wish.mode
        each.why_generic = ""
        if mode != "generic":
            try:
                return self._take_in(each, index, "native")
            except KernelError as error:
                if mode == "native" or error.errno in NOT_THE_DRIVER:
                    raise
                each.why_generic = str(error)
        return self._take_in(each, index, "generic")

    def _take_in(self, each: _Balanced, index: int, mode: Mode) -> Place:
        """Put the program that is right for a mode there, by a link or by a dispatcher."""
        hook: Hook = Xdp(index, mode)
        kind = self._program.kind(mode, each.wish.attach)
        if each.wish.attach == "dispatcher":
            hook = Dispatcher(index, mode, _priority(each.wish), fragments=kind.fragments)
        return self._places.take(f"{_XDP}{index}", self._wanted(kind), hook)

    def _kind_of(self, place: Place) -> Kind:
        return self._program.kind(place.link.mode, _attach(place))

    def _takes_fragments(self, place: Place) -> bool:
        """Whether frames may be in fragments there: not if another in the dispatcher takes none."""
        if isinstance(place.link, Dispatched):
            return place.link.fragments
        return self._kind_of(place).fragments

    def _wanted(self, kind: Kind) -> Program:
        """What is to be in places of a kind."""
        return self._standing.get(kind) or self._program.balancing(kind)

    def _note(self) -> None:
        """Let the next process know which device had which name."""
        wanted = {str(n): f"{each.last} {each.wish.name}" for n, each in enumerate(self._balanced)}
        try:
            for number in self._names.texts.keys() - wanted.keys():
                self._names.drop(number)
            for number, text in wanted.items():
                self._names.put(number, text)
        except KernelError as error:
            log.warning("%s; the next process will want every device to be there", error)

    def _let_go(self, index: int) -> None:
        """Detach from a device, wherever that is by now."""
        for name in (f"{_XDP}{index}", f"{_TC}{index}"):
            self._places.drop(name)

    # ---- what follows ----------------------------------------------------------------------------

    def follow(self) -> None:
        """Have the program where it is to be, as devices are now."""
        with self._lock:
            self._exchange()
            for each in self._balanced:
                before, each.trouble = each.trouble, self._follow(each)
                if each.trouble and each.trouble != before:
                    log.warning("%s", each.trouble)
                elif before and not each.trouble:
                    log.info("device %s: well again", each.wish.name)
            self._note()

    def _exchange(self) -> None:
        """Let devices that have got each other's names be held by the names that they have now."""
        for each in self._balanced:
            found = self._devices.named(each.wish.name)
            for other in self._balanced:
                if found and other is not each and self._held(other) is found:
                    each.index, other.index = other.index, each.index
                    each.serial, other.serial = other.serial, each.serial
                    each.last, other.last = each.index, other.index or other.last

    def _follow(self, each: _Balanced) -> str:
        """What is wrong with a device now that all that can be done is done; empty: nothing."""
        found = self._devices.named(each.wish.name)
        if each.index and self._held(each) is None:
            # Its links end wherever the device is, if it still is.
            self._let_go(each.index)
            each.index = 0
        if self._is_to_wait(each, found):
            return each.trouble
        try:
            if found is not None and found.index != each.index:
                self._attach(each, found)
            elif each.index:
                self._look_after(each)
        except KernelError as error:
            each.refused = found.serial if found else 0
            each.again = time.monotonic() + AGAIN_SECONDS
            return f"device {each.wish.name}: {error}"
        return self._judge(each)

    def _is_to_wait(self, each: _Balanced, found: Interface | None) -> bool:
        """Whether this very device has refused just now."""
        refused = found is not None and found.serial == each.refused
        return refused and not self._is_attached(each) and time.monotonic() < each.again

    def _held(self, each: _Balanced) -> Interface | None:
        """The device that the program is on, unless it is gone."""
        found = self._devices.get(each.index)
        return found if found and found.serial == each.serial else None

    def _is_attached(self, each: _Balanced) -> bool:
        return self._places.get(f"{_XDP}{each.index}") is not None

    def _look_after(self, each: _Balanced) -> None:
        """Put back what others have taken from a device that is there. KernelError."""
        xdp, tc = (self._places.get(f"{kind}{each.index}") for kind in (_XDP, _TC))
        if xdp is None:
            self._attach_again(each)
        elif not self._is_here(xdp, each.index):
            self._tell(each, "its program was detached by somebody else")
            self._let_go(each.index)
            self._attach_again(each)
        elif tc is None or not tc.link.attached:
            self._tell(each, "its program at tc was detached by somebody else")
            self._places.drop(f"{_TC}{each.index}")
            self._attach_again(each)
        elif xdp.link.program_id != xdp.program.id:
            self._tell(each, f"program {xdp.link.program_id} was put in its program's place")
            xdp.link.update(xdp.program)

    def _attach_again(self, each: _Balanced) -> None:
        device = self._held(each)
        if device is not None:
            self._attach(each, device)

    def _tell(self, each: _Balanced, what: str) -> None:
        self.repairs += 1
        log.warning("%s: %s; it is put back", each.wish.name, what)

    @staticmethod
    def _is_here(place: Place, index: int) -> bool:
        """Whether a link is what is on this device; indexes are the same in other namespaces."""
        if isinstance(place.link, Dispatched):
            return place.link.attached
        return place.link.attached and xdp_program_id(index) == place.link.program_id

    def _judge(self, each: _Balanced) -> str:
        """Whether a device is missing, and why."""
        name = each.wish.name
        if self._devices.named(name) is not None:
            return ""
        device = self._held(each)
        if device is None:
            return f"device {name} is missing: {self._devices.became(each.last)}"
        return (
            f"device {name} is missing: it is called {device.name} now, and balanced until another"
            f" device is called {name}; name it so in the configuration, or give it the name that"
            f" it had as another one (ip link property add dev {device.name} altname {name})"
        )

    # ---- what there is ---------------------------------------------------------------------------

    @property
    def devices(self) -> dict[int, str]:
        """The devices that the program is on: their indexes, and what the configuration calls them.

        In the order of the configuration.
        """
        return {each.index: each.wish.name for each in self._balanced if self._is_attached(each)}

    @property
    def modes(self) -> dict[int, str]:
        """How the program runs on each device, "native" or "generic", by the device's index."""
        return {place.link.ifindex: place.link.mode for place in self._balancing}

    @property
    def status(self) -> tuple[DeviceStatus, ...]:
        """All devices that the configuration names. For any thread."""
        return tuple(map(self._status, self._balanced))

    def _status(self, each: _Balanced) -> DeviceStatus:
        device, place = self._held(each), self._places.get(f"{_XDP}{each.index}")
        name = each.wish.name
        return DeviceStatus(
            name,
            each.index if place else None,
            called=device.name if device and device.name != name else None,
            mode=place.link.mode if place else None,
            trouble=each.trouble or None,
            fragments=self._takes_fragments(place) if place else None,
            why_generic=each.why_generic or None if place else None,
            attach=_attach(place) if place else None,
        )

    # ---- captures --------------------------------------------------------------------------------

    def replace(self, programs: Mapping[Kind, Program]) -> None:
        """Put other programs in the places of those that balance; none: these again.

        One for each of the `kinds`. A device that is
        gone has no place any more, and is left out. KernelError: a device can't have it; then all
        have what they had.
        """
        with self._lock:
            before, self._standing = self._standing, programs
            try:
                self._replace()
            except BaseException:
                self._standing = before
                with suppress(KernelError):
                    self._replace()
                raise

    def _replace(self) -> None:
        for kind in Kind:
            places = [place for place in self._balancing if self._kind_of(place) is kind]
            if places:
                self._places.replace(places, self._wanted(kind))

    @property
    def _balancing(self) -> list[Place]:
        return [place for place in self._places if place.name.startswith(_XDP)]

    @property
    def kinds(self) -> frozenset[Kind]:
        """Those of the programs on the devices.

        Also of devices that aren't there now, as far as that is known.
        """
        with self._lock:
            missing = [each.wish for each in self._balanced if not self._is_attached(each)]
            wished = {self._program.kind(wish.mode, wish.attach) for wish in missing}
            return frozenset(wished.union(map(self._kind_of, self._balancing)))

    # ---- the end ---------------------------------------------------------------------------------

    def pin_again(self) -> list[str]:
        """Pin again what somebody has unpinned; the names of it. KernelError."""
        missing = [*self._places.pin_again(), *self._names.missing()]
        self._names.write_again()
        return missing

    def detach(self) -> None:
        """Take the program off every device, pinned or not."""
        with self._lock:
            self._places.detach()

    def close(self) -> None:
        """Let go. What isn't pinned is detached."""
        if self._pinned:
            self._places.close()
        else:
            self.detach()
            self._places.close()


def _priority(wish: Device) -> int:
    return DEFAULT_PRIORITY if wish.priority is None else wish.priority


def _attach(place: Place) -> str:
    """How the program got there."""
    return "dispatcher" if isinstance(place.hook, Dispatcher) else "link"
