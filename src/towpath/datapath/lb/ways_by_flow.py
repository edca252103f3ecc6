# SPDX-License-Identifier: Apache-2.0
"""Has the program ask for each packet where one way can't be kept for all flows of a backend."""

from __future__ import annotations

import threading
from ipaddress import IPv4Network, IPv6Network
from typing import TYPE_CHECKING, Any

from towpath.datapath.neigh.differences import NONE, Differ
from towpath.model.service import UDP_ENCAPS

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np

    from towpath.core.lb.options import Options
    from towpath.datapath.neigh.differences import ByVersion
    from towpath.model.service import Service
    from towpath.model.settings import Source

    Array = np.ndarray[Any, Any]

_ALL = 0xFFFFFFFF


class WaysByFlow:
    """``masks`` is ``ways`` of ``bpf/lb/maps.h``; ``source`` what tunnels come from.

    `tell` and `notice` may be called by different threads.
    """

    def __init__(self, masks: Array, source: Source) -> None:
        self._masks = masks
        self._sources = {4: source.ipv4, 6: source.ipv6}
        self._lock = threading.Lock()
        self._why: ByVersion = NONE
        self._ports = False

    def tell(self, found: ByVersion) -> None:
        """Take over why ways of flows may differ now."""
        with self._lock:
            self._why = found
            self._write()

    def notice(self, services: Iterable[Service | Options]) -> None:
        """Look at services that there are: once a tunnel of UDP was among them, ports count."""
        if self._ports or all(each.encap not in UDP_ENCAPS for each in services):
            return
        with self._lock:
            self._ports = True
            self._write()

    def _write(self) -> None:
        for (version, source), why in zip(self._sources.items(), self._why, strict=True):
            vary = isinstance(source, IPv4Network | IPv6Network)
            differ = Differ.by(why, version, vary=vary, ports=self._ports)
            for whose, so in differ._asdict().items():
                self._masks[f"v{version}"][whose][0] = _ALL if so else 0
