# SPDX-License-Identifier: Apache-2.0
"""Backends on this node, kept in step with the services and with the node."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from typing import TYPE_CHECKING

from towpath.closeable import Closeable
from towpath.datapath.local.locality import Locality
from towpath.datapath.local.path import LocalPath, detach
from towpath.kernel.errors import KernelError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from towpath.core.lb.plan import Transition
    from towpath.datapath.lb.contents import Contents
    from towpath.datapath.maps.shared import SharedMaps
    from towpath.datapath.program.attachment import Attachment
    from towpath.kernel.net.devices import Devices
    from towpath.model.service import Backend
    from towpath.model.settings import Local

log = logging.getLogger(__name__)


class LocalNode(Closeable):
    """Who is on this node, from the beginning on; and, once `begin` was called, what they need.

    Programs are loaded when the first service that translates has a backend here, and stay.
    ``pins``: the directory that keeps them, None for none. Not thread-safe. OSError.
    """

    def __init__(self, wish: Local, devices: Devices, pins: Path | None) -> None:
        self._wish = wish
        self._devices = devices
        self._pins = pins
        self._refused = ""
        self._changes = 0
        self.path: LocalPath | None = None
        """The programs, None: no service needs them."""
        with ExitStack() as undo:
            self.locality = undo.enter_context(Locality(wish, devices))
            undo.callback(self._close_path)
            self._undo = undo.pop_all()
        # Those of the process before are at work.
        self.locality.translates = pins is not None and pins.exists()

    def begin(self, tables: SharedMaps, contents: Contents, attachment: Attachment) -> None:
        """Follow these from now on, as of this moment."""
        self._tables, self._contents, self._attachment = tables, contents, attachment
        if self.locality.translates:
            self._open()
        self._open_for(self._translated())
        self._contents.tables.local.sync(contents.installed)

    # ---- In step ---------------------------------------------------------------------------------

    @property
    def seen(self) -> object:
        """Something else whenever other backends may be here than before, but for new ones."""
        return self._changes, self.locality.translates

    def may_open(self, transition: Transition) -> bool:
        """Whether `prepare` has anything to look at: not for services that aren't translated."""
        return not self.locality.translates and any(
            change.after is not None and change.after.forwarding == "snat"
            for change in transition.changes
        )

    def prepare(self, transition: Transition) -> None:
        """Be ready for what services will be, before packets get to know of them."""
        changed = (change.after for change in transition.changes if change.after is not None)
        self._open_for(
            backend
            for service in changed
            if service.forwarding == "snat"
            for backend in service.backends
        )

    def _open_for(self, translated: Iterable[Backend]) -> None:
        """Have the programs if one of these backends is here."""
        if not self.locality.translates and any(map(self.locality.is_meant, translated)):
            self._open()

    def _translated(self) -> Iterator[Backend]:
        for service in self._contents.installed:
            if service.options.forwarding == "snat":
                yield from service.noted.backends

    def _open(self) -> None:
        """Load and attach the programs. What can't be is told, and tried again."""
        try:
            if self.path is None:
                self.path = LocalPath(self._tables, self._wish.flows, self._devices, self._pins)
            self.path.follow(self._attachment.devices)
        except (KernelError, OSError) as error:
            if str(error) != self._refused:
                log.warning("backends on this node can't be translated for: %s", error)
            self._refused = str(error)
            return
        self._refused = ""
        self.locality.translates = True

    def follow(self) -> None:
        """Look what has changed on this node: addresses, routes, devices. KernelError, OSError."""
        translated = self.locality.translates
        changed = self.locality.look(each.address for each in self._translated())
        self._changes += changed
        if self.path is not None or translated or self._refused:
            self._open()
            if self.path is not None:
                self.path.put_right()
        elif changed:
            self._open_for(self._translated())
        if changed or self.locality.translates != translated:
            self._contents.tables.local.sync(self._contents.installed)

    def counts(self) -> dict[str, dict[str, int]]:
        """Packets by program and verdict; and "bytes" and "begun". Empty: no service needs them."""
        return {} if self.path is None else self.path.counts()

    @property
    def troubles(self) -> tuple[str, ...]:
        """What isn't as it should be. For any thread."""
        told = (f"backends on this node can't be translated for: {self._refused}",)
        path = self.path
        return (*(told if self._refused else ()), *(() if path is None else path.troubles))

    # ---- The end ---------------------------------------------------------------------------------

    def detach(self) -> None:
        """Take everything out of the kernel."""
        if self.path is not None:
            self.path.detach()
        elif self._pins is not None and self._pins.exists():
            detach(self._pins)

    def _close_path(self) -> None:
        if self.path is not None:
            self.path.close()

    def close(self) -> None:
        """Let go of it: with pins it works on."""
        self._undo.close()
