# SPDX-License-Identifier: Apache-2.0
"""Forwarding of devices, which the kernel's FIB wants before it answers for them."""

from __future__ import annotations

import logging
import os

from towpath.kernel.errors import KernelError
from towpath.kernel.net import interfaces

log = logging.getLogger(__name__)

_FAMILIES: tuple[interfaces.Family, ...] = ("ipv4", "ipv6")


class Forwarding:
    """Switches forwarding on where it is off, and remembers where that was."""

    def __init__(self) -> None:
        self._process = os.getpid()
        self._switched: list[tuple[str, interfaces.Family]] = []

    def allow(self, device: str) -> None:
        """Switch it on, for both families. Where that can't be done it stays off."""
        for family in _FAMILIES:
            try:
                if not interfaces.set_forwarding(device, family, on=True):
                    self._switched.append((device, family))
            except KernelError as error:
                log.info("%s: %s forwarding can't be set: %s", device, family, error)

    def restore(self) -> None:
        """Switch it off where it was, unless the device is gone. Twice is once.

        Does nothing in a forked child: the load balancer is its parent's.
        """
        if os.getpid() != self._process:
            return
        for device, family in reversed(self._switched):
            try:
                interfaces.set_forwarding(device, family, on=False)
            except KernelError as error:
                log.info("%s: %s forwarding can't be restored: %s", device, family, error)
        self._switched.clear()
