# SPDX-License-Identifier: Apache-2.0
"""What can leave by which device, for the program to know before it sends.

XDP hands a frame over and is told nothing: what the kernel then refuses is lost and counted as
sent. So the program asks a table when it asks for a next hop. What isn't known to take frames from
XDP gets them from the kernel.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from towpath.datapath.observe.refused import device_label, error_name
from towpath.datapath.program.trial import Trial
from towpath.kernel.errors import KernelError
from towpath.kernel.net.xdp_features import XdpFeatures, all_xdp_features

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from towpath.datapath.observe.refused import Refusals
    from towpath.datapath.program.program import LoadedProgram
    from towpath.kernel.net.devices import Devices, Interface

log = logging.getLogger(__name__)

# XDP_TX on veth needs an XDP program on the peer, which may be in any namespace: without one,
# frames stay in its ring (`veth_xdp_flush`). A redirect to the same device needs no more than NAPI.
_NO_XDP_TX = frozenset({"veth"})
_AGAIN_SECONDS = 60.0
"""So long a trial's result holds even if the device refuses frames."""


class _Tried(NamedTuple):
    """What a trial of a device has found."""

    serial: int
    takes: bool
    again: float
    """When to try again a device that refuses frames, by the monotonic clock."""


class Egress:
    """The tables of devices: VLAN devices, and what can leave by each of ``devices``."""

    def __init__(self, program: LoadedProgram, refusals: Refusals, devices: Devices) -> None:
        self._program = program
        self._devices = devices
        self._refusals = refusals
        self._refused = refusals.counts()
        self._trial = Trial(program, refusals)
        self._tried: dict[int, _Tried] = {}
        self._written: tuple[object, object] | None = None
        self._flag = {
            name.removeprefix("EGRESS_"): int(value)
            for name, value in program.btf.enum("egress_flags").__members__.items()
        }

    def follow(self, modes: Mapping[int, str], *, thoroughly: bool = False) -> None:
        """Have the program know which devices there are now, and what they can.

        ``modes``: "native" or "generic" for those that the program is on, by their indexes.
        ``thoroughly``: what was found or written before isn't taken for granted. KernelError.
        """
        if thoroughly:
            self._tried.clear()
            self._written = None
        self._note_refusals()
        vlans = {upper: (lower, vid) for upper, lower, vid in self._devices.vlans()}
        flags = self.flags(self._devices.interfaces, modes)
        ways = {
            each.index: (lower, vid, flags.get(lower, 0))
            for each in self._devices.interfaces
            for lower, vid in [vlans.get(each.index, (each.index, 0))]
        }
        if (vlans, ways) != self._written:
            # A tag that has another device than before is never without one.
            self._write_ways(ways)
            self._write_vlans(vlans)
            self._written = vlans, ways

    def flags(self, found: Iterable[Interface], modes: Mapping[int, str]) -> dict[int, int]:
        """``enum egress_flags`` of each device, by its index."""
        features = all_xdp_features()
        if features is None:
            # Who takes frames from others has a program, as a rule.
            native = [each for each in found if modes.get(each.index) == "native"]
            features = {each.index: self._by_trial(each) for each in native}
        return {
            each.index: self._flags_of(
                each,
                features.get(each.index, XdpFeatures(0)),
                modes.get(each.index),
                # Packets of a bond come in on what it is made of.
                ours=each.index in modes or (each.bonded and each.master in modes),
            )
            for each in found
        }

    def _by_trial(self, device: Interface) -> XdpFeatures:
        """What a device can where the kernel doesn't tell; no frame in fragments leaves there."""
        index = device.index
        tried = self._tried.get(index)
        if tried is None or tried.serial != device.serial:
            # When a device refuses frames it is tried again, but not all the time.
            again = time.monotonic() + _AGAIN_SECONDS
            tried = _Tried(device.serial, self._trial.takes_frames(index), again)
            self._tried[index] = tried
        return XdpFeatures.TARGET if tried.takes else XdpFeatures(0)

    def _note_refusals(self) -> None:
        """Tell of refusals that are new, and try again what was refused."""
        counts = self._refusals.counts()
        for (index, error), frames in counts.items():
            before = self._refused.get((index, error), 0)
            tried = self._tried.get(index)
            if frames != before and tried and time.monotonic() >= tried.again:
                del self._tried[index]
            if not before:
                log.warning(
                    "%s refuses packets that XDP sends: %s; counted as refused",
                    device_label(self._devices, index),
                    error_name(error),
                )
        self._refused = counts

    def _flags_of(
        self, device: Interface, features: XdpFeatures, mode: str | None, *, ours: bool
    ) -> int:
        holds = {
            "ETHERNET": device.ethernet,
            "TX": mode == "native" and device.kind not in _NO_XDP_TX,
            "REDIRECT": XdpFeatures.TARGET in features,
            "FRAGMENTS": XdpFeatures.TARGET_FRAGMENTS in features,
            "GENERIC": mode == "generic",
            "OURS": ours,
        }
        return sum(self._flag[name] for name, it_does in holds.items() if it_does)

    def _write_vlans(self, vlans: Mapping[int, tuple[int, int]]) -> None:
        table = self._program.maps["vlan_devices"]
        written = set()
        for upper, (lower, vid) in vlans.items():
            tag = np.zeros((), table.key_dtype)
            tag["ifindex"], tag["vid"] = lower, vid
            table.update(tag, upper)
            written.add(tag.tobytes())
        for key in [key for key, _ in table.items() if key.tobytes() not in written]:
            table.delete(key, missing_ok=True)

    def _write_ways(self, ways: Mapping[int, tuple[int, int, int]]) -> None:
        table = self._program.maps["egress_devices"]
        for key in [key for key, _ in table.items() if int(key) not in ways]:
            table.delete(key, missing_ok=True)
        # What little there is room for goes to those by which something can leave.
        for index, (lower, vid, flags) in sorted(ways.items(), key=lambda each: -each[1][2]):
            way = np.zeros((), table.value_dtype)
            way["ifindex"], way["vlan"], way["flags"] = lower, vid, flags
            try:
                table.update(index, way)
            except KernelError as error:
                log.warning("packets to some devices are left to the kernel: %s", error)
                break


class AnyFrameEgress(Egress):
    """Takes every device for one whose driver takes any frame, asking nobody.

    For benchmarks and tests that look at the program's decisions on devices of whatever kind, and
    send nothing.
    """

    def flags(self, found: Iterable[Interface], modes: Mapping[int, str]) -> dict[int, int]:
        """As of a driver in native mode."""
        del modes
        every = sum(flag for name, flag in self._flag.items() if name != "GENERIC")
        return {each.index: every for each in found}
