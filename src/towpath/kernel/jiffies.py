# SPDX-License-Identifier: Apache-2.0
"""The kernel's jiffies, in which programs that must not be slow tell the time."""

from __future__ import annotations

import time
from functools import cache

from towpath.closeable import Closeable
from towpath.kernel.bpf.object import BpfObject

_CLOCK_MONOTONIC_COARSE = 6  # linux/time.h; Python has no name for it
_FRAME = bytes(64)
_WORD = 1 << 32


@cache
def per_second() -> int:
    """CONFIG_HZ: the coarse clock's resolution is one jiffy, whatever the kernel."""
    return round(1 / time.clock_getres(_CLOCK_MONOTONIC_COARSE))


def units(seconds: int, hz: int, shift: int) -> int:
    """Return seconds in units of 2**shift jiffies, rounded up."""
    return -(-seconds * hz >> shift)


class Jiffies(Closeable):
    """A clock that reads what ``bpf_jiffies64`` gives. A context manager, which closes.

    KernelError: no permission to load a program.
    """

    def __init__(self) -> None:
        self._object = BpfObject.packaged("clock")
        try:
            self._object.load()
        except BaseException:
            self._object.close()
            raise

    def now(self) -> int:
        """The low 32 bits, which go round in 50 days at 1000 a second. KernelError."""
        return self._object.programs["jiffies"].test_run(_FRAME).retval % _WORD

    def close(self) -> None:
        """Unload the program. Twice is once."""
        self._object.close()
