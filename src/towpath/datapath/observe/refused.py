# SPDX-License-Identifier: Apache-2.0
"""What the kernel refuses of what the program has sent, where it tells: by tracing.

XDP hands a frame over and is told nothing. The kernel's tracepoints are, and programs there count
(``bpf/lb/refused.bpf.c``): in the load balancer's tables, while this object is open.
"""

from __future__ import annotations

import errno as errnos
import logging
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from towpath.closeable import Closeable
from towpath.documents import Refused
from towpath.kernel.bpf.links import attach_tracepoint
from towpath.kernel.errors import KernelError, errno_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from towpath.datapath.maps.shared import SharedMaps
    from towpath.kernel.net.devices import Devices

log = logging.getLogger(__name__)

_OBJECT = "lb_refused"
_TRACEPOINTS = {
    "refused_redirect": "xdp_redirect_err",
    "refused_redirect5": "xdp_redirect_err",
    "refused_transmit": "xdp_devmap_xmit",
    "refused_tx": "xdp_exception",
}
# The arguments of a tracepoint differ between kernels; the newer ones' program comes first.
_EITHER = ("refused_redirect", "refused_redirect5")
_NETNS = Path("/proc/thread-self/ns/net")


class Refusals(Closeable):
    """Counts for devices of the calling thread's network namespace. A context manager.

    ``missing`` says why nothing is counted, None if it is.
    """

    def __init__(self, tables: SharedMaps) -> None:
        self._tables = tables
        self._undo = ExitStack()
        self.missing: str | None = None
        for other in reversed(_EITHER):
            programs = [name for name in _TRACEPOINTS if name != other]
            try:
                with ExitStack() as undo:
                    self._attach(undo, programs)
                    self._undo = undo.pop_all()
            except KernelError as error:
                self.missing = str(error)
                if error.errno != errnos.EINVAL:
                    break
            else:
                self.missing = None
                break
        if self.missing:
            log.info("what the kernel refuses to send is not counted: %s", self.missing)

    def _attach(self, undo: ExitStack, programs: Sequence[str]) -> None:
        constants = {"refused_netns": _NETNS.stat().st_ino}
        loaded = undo.enter_context(self._tables.load(_OBJECT, constants, programs))
        for name in programs:
            undo.enter_context(attach_tracepoint(loaded.programs[name], _TRACEPOINTS[name]))

    def counts(self) -> dict[tuple[int, int], int]:
        """Frames by the index of the device that they were for, and error number."""
        return {
            (int(key["ifindex"]), int(key["error"])): int(frames)
            for key, frames in self._tables.maps["refusals"].items()
        }

    def uncount(self, index: int, before: Mapping[tuple[int, int], int]) -> None:
        """Have the frames for a device counted no more than ``before``: they were no packets."""
        table = self._tables.maps["refusals"]
        for (device, error), frames in self.counts().items():
            if device == index and frames != before.get((device, error), 0):
                key = np.zeros((), table.key_dtype)
                key["ifindex"], key["error"] = device, error
                if (device, error) in before:
                    table.update(key, before[device, error])
                else:
                    table.delete(key, missing_ok=True)

    def refused(self, devices: Devices) -> tuple[Refused, ...] | None:
        """The same by the names of ``devices``; None: nothing is counted."""
        if self.missing:
            return None
        return tuple(
            Refused(device_label(devices, index), error_name(error), frames)
            for (index, error), frames in sorted(self.counts().items())
        )

    def close(self) -> None:
        """Count no longer. Twice is once."""
        self._undo.close()


def error_name(number: int) -> str:
    """What a refusal's error number is called."""
    return errno_name(number) if number else "queue full"


def device_label(devices: Devices, index: int) -> str:
    """The name of a device, or its number if it is gone."""
    found = devices.get(index)
    return found.name if found else f"#{index}"
