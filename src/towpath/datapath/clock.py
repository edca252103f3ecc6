# SPDX-License-Identifier: Apache-2.0
"""The kernel's jiffies, by which entries of the flow table are dated."""

from __future__ import annotations

import time
from functools import cached_property

from towpath.kernel.object import BpfObject

_WORD = (1 << 32) - 1
_FRAME = bytes(64)

# CONFIG_HZ is one of these (kernel/Kconfig.hz; 1024 and 1200 are for other machines).
_RATES = (100, 250, 300, 1000)
_LOOK_SECONDS = 0.1  # in which two of the rates differ by 5 jiffies at least


class Clock:
    """Reads jiffies. KernelError if the program can't be loaded or run."""

    def __init__(self) -> None:
        self._object = BpfObject.packaged("clock")
        self._object.load()

    def jiffies(self) -> int:
        """Return the low 32 bits."""
        return self._object.programs["jiffies"].test_run(_FRAME).retval & _WORD

    @cached_property
    def rate(self) -> int:
        """Jiffies to a second. Looks for a tenth of a second."""
        start, before = time.monotonic(), self.jiffies()
        time.sleep(_LOOK_SECONDS)
        seconds, passed = time.monotonic() - start, self.jiffies() - before & _WORD
        return min(_RATES, key=lambda each: abs(each - passed / seconds))

    def close(self) -> None:
        """Close the program. Twice is once."""
        self._object.close()
