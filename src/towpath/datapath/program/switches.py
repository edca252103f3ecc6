# SPDX-License-Identifier: Apache-2.0
"""Settings of devices that are set for as long as something needs them, and then set back.

What a setting was before is remembered by the device's index, which a device keeps when it is
renamed, and noted beside the pins: so that whoever ends what an earlier process has begun sets
back what that one has set. A device that goes takes its settings along.
"""

from __future__ import annotations

import atexit
import logging
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from towpath.kernel.errors import KernelError
from towpath.kernel.net.offloads import RX_VLAN
from towpath.kernel.net.sysctl import WRITTEN

if TYPE_CHECKING:
    from towpath.kernel.bpf.notes import Notes
    from towpath.kernel.net.devices import Devices

log = logging.getLogger(__name__)


class Setting(Protocol):
    """Something that each device has: a sysctl, or an offload."""

    @property
    def family(self) -> str:
        """Whose it is."""

    @property
    def name(self) -> str:
        """What it is called there."""

    def read(self, device: str) -> str:
        """Its value. KernelError: there is no such device, or it has none."""

    def write(self, device: str, value: str) -> None:
        """Set it. KernelError."""

    def __hash__(self) -> int: ...


SETTINGS: tuple[Setting, ...] = (*RX_VLAN, *WRITTEN)
"""All that are ever set, in the order that they are set in."""


class Switches:
    """What was set on ``devices``, and what it was before, which ``notes`` keep."""

    def __init__(self, devices: Devices, notes: Notes) -> None:
        self._devices = devices
        self._notes = notes
        self._process = os.getpid()
        self.repairs = 0
        """How often something was set again that others had set otherwise."""
        self._before = self._noted()
        self._serials = {index: self._serial(index) for index, _ in self._before}
        self._earlier = frozenset(self._before)
        # A script may end without closing what it made; what is pinned goes on needing it.
        if not notes.outlive:
            atexit.register(self.restore)

    def _noted(self) -> dict[tuple[int, Setting], str]:
        """What an earlier process has set, in the order that it was set in."""
        texts = self._notes.texts
        indexes = sorted({int(name.partition("-")[0]) for name in texts})
        return {
            (index, setting): texts[_name(index, setting)]
            for index in indexes
            for setting in SETTINGS
            if _name(index, setting) in texts
        }

    def __contains__(self, key: tuple[int, Setting]) -> bool:
        """Whether that setting of the device with that index was set."""
        return key in self._before

    def where(self, setting: Setting) -> list[int]:
        """The indexes of the devices that a setting was set on."""
        return [index for index, each in self._before if each == setting]

    def set(self, index: int, setting: Setting, value: str) -> None:
        """Set what must be so, unless it is. May be called again, when others have set it.

        KernelError: there is no such device or setting, or it isn't allowed.
        """
        device = self._name_of(index)
        before = setting.read(device)
        if before == value:
            return
        if (index, setting) in self._before:
            self.repairs += 1
            log.warning(
                "%s of %s was set to %s by somebody else; Towpath needs %s there and sets it again",
                setting, device, before, value,
            )  # fmt: skip
            setting.write(device, value)
        else:
            self._set_first(index, setting, value, before)
        log.info("%s of %s: %s, was %s", setting, device, value, before)

    def _set_first(self, index: int, setting: Setting, value: str, before: str) -> None:
        # Noted first: a process that dies in between has set nothing, and sets nothing back.
        self._notes.put(_name(index, setting), before)
        try:
            setting.write(self._name_of(index), value)
        except KernelError:
            self._forget(index, setting)
            raise
        self._serials[index] = self._serial(index)
        self._before[index, setting] = before

    def unset(self, index: int, setting: Setting) -> None:
        """Set one back. Never set is fine, and so is a device that is gone."""
        before = self._before.pop((index, setting), None)
        if before is None:
            return
        try:
            if self._serials[index] == self._serial(index) != 0:
                setting.write(self._name_of(index), before)
                log.info("%s of %s: %s again", setting, self._name_of(index), before)
        except KernelError as error:
            log.warning("%s; it was %s before", error, before)
        self._forget(index, setting)

    def forget_gone(self) -> None:
        """Remember nothing of devices that are gone: others may get their indexes."""
        for index, setting in list(self._before):
            if self._serials[index] != self._serial(index) or not self._serial(index):
                del self._before[index, setting]
                self._forget(index, setting)

    def note_again(self) -> list[str]:
        """Note again what somebody has removed the notes of; the names of these. KernelError."""
        missing = self._notes.missing()
        self._notes.write_again()
        return missing

    def restore(self) -> None:
        """Set everything back, the last first. Twice is once.

        Does nothing in a forked child: what was set is its parent's.
        """
        if os.getpid() == self._process:
            atexit.unregister(self.restore)
            with suppress(OSError):
                self._devices.read()  # names may be others by now
            for index, setting in reversed(list(self._before)):
                self.unset(index, setting)

    def give_up(self) -> None:
        """Set back what this object has set, and leave what an earlier process has."""
        atexit.unregister(self.restore)
        for index, setting in reversed(list(self._before)):
            if (index, setting) not in self._earlier:
                self.unset(index, setting)

    def leave(self) -> None:
        """Let go: what was set stays, noted for the next process."""
        atexit.unregister(self.restore)

    def _serial(self, index: int) -> int:
        """What tells a device from others that had its index, or will; 0: there is none."""
        found = self._devices.get(index)
        return found.serial if found else 0

    def _name_of(self, index: int) -> str:
        found = self._devices.get(index)
        if found is None:
            raise KernelError(f"no device has index {index}")
        return found.name

    def _forget(self, index: int, setting: Setting) -> None:
        try:
            self._notes.drop(_name(index, setting))
        except KernelError as error:
            log.warning("%s", error)


def _name(index: int, setting: Setting) -> str:
    return f"{index}-{setting.family}-{setting.name}"
