# SPDX-License-Identifier: Apache-2.0
"""Congestion control in pods' namespaces, which new sockets there take.

A namespace that isn't the machine's first takes only what everybody is allowed to use
(net.ipv4.tcp_allowed_congestion_control, which is the first one's to set); BBR is not at first.
"""

from __future__ import annotations

import logging
import socket
from contextlib import suppress
from typing import TYPE_CHECKING

from towpath.kernel.errors import KernelError
from towpath.kernel.net.namespaces import namespaces
from towpath.kernel.net.netns import in_netns
from towpath.kernel.net.sysctl import ALLOWED_CONGESTION_CONTROL, CONGESTION_CONTROL

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from towpath.kernel.bpf.notes import Notes

log = logging.getLogger(__name__)

_NOTE = "allowed"
"""What is noted of what everybody may use, besides the inode numbers of namespaces."""
BBR, CUBIC = "bbr", "cubic"
_OURS = (BBR, CUBIC)


class CongestionControl:
    """Sets congestion control in namespaces. ``notes``: what they had. Not thread-safe."""

    def __init__(self, notes: Notes) -> None:
        self._notes = notes

    @property
    def noted(self) -> bool:
        """Whether some namespace has another than it had."""
        return bool(self._notes.texts)

    def keep(self, where: Iterable[Path], wanted: str | None) -> list[str]:
        """Have it in these namespaces; None: as they had it. What went wrong, in words."""
        troubles = []
        if wanted is not None:
            try:
                self._allow(wanted)
            except (KernelError, OSError) as error:
                troubles.append(f"pods may not have {wanted}: {error}")
        for path in where:
            try:
                with in_netns(path):
                    self._keep(str(path.stat().st_ino), wanted)
            except (KernelError, OSError) as error:
                troubles.append(f"congestion control in {path}: {error}")
        if wanted is None:
            self._disallow()
        return troubles

    def _allow(self, wanted: str) -> None:
        """Have everybody be allowed to use it. OSError, KernelError: it can't."""
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as asking:
            # Its module is loaded by that.
            asking.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, wanted.encode())
        allowed = ALLOWED_CONGESTION_CONTROL.read().split()
        if wanted in allowed:
            return
        fresh = _NOTE not in self._notes.texts
        if fresh:
            self._notes.put(_NOTE, " ".join(allowed))
        try:
            ALLOWED_CONGESTION_CONTROL.write(" ".join([*allowed, wanted]))
        except KernelError:
            if fresh:
                self._notes.drop(_NOTE)
            raise

    def _disallow(self) -> None:
        before = self._notes.texts.get(_NOTE)
        if before is not None:
            with suppress(KernelError):
                now = ALLOWED_CONGESTION_CONTROL.read().split()
                # What others have allowed meanwhile stays so.
                kept = [each for each in now if each in before.split() or each not in _OURS]
                ALLOWED_CONGESTION_CONTROL.write(" ".join(kept))
            self._notes.drop(_NOTE)

    def _keep(self, name: str, wanted: str | None) -> None:
        now = CONGESTION_CONTROL.read()
        before = self._notes.texts.get(name)
        if wanted is None:
            if before is not None:
                CONGESTION_CONTROL.write(before)
                self._notes.drop(name)
            return
        if now == wanted:
            return
        if before is None:
            self._notes.put(name, now)
        CONGESTION_CONTROL.write(wanted)

    def restore_all(self) -> None:
        """Put back what all namespaces had that are still there."""
        by_inode = {str(path.stat().st_ino): path for path in namespaces()}
        for name in self._notes.texts.keys() - {_NOTE}:
            if name in by_inode:
                for trouble in self.keep([by_inode[name]], None):
                    log.warning("%s", trouble)
            else:
                self._notes.drop(name)
        self._disallow()
