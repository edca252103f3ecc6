# SPDX-License-Identifier: Apache-2.0
"""The way of other programs' checks: by marks of their sockets that stand for backends.

Their packets are brought to the loopback device as those of the agent's own checks are, by one rule
for the range that the marks are in. ``bpf/health/foreign.h`` finds the backend by the mark and the
service by the destination. A socket that isn't bound has the address that its route says.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from towpath.datapath.address import family, pack
from towpath.kernel.net import rules
from towpath.kernel.net.own_routes import stays_here
from towpath.model.settings import MARK_BITS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from towpath.datapath.address import Address
    from towpath.datapath.program.program import LoadedProgram
    from towpath.model.settings import ForeignCheck

log = logging.getLogger(__name__)

TABLE = 0x7471
PRIORITY = 748


def common_bits(checks: Sequence[ForeignCheck]) -> int:
    """Return what all marks have in common; 0: there are none."""
    return checks[0].mark >> MARK_BITS << MARK_BITS if checks else 0


class Foreign:
    """Routes packets with these marks, and says which backends they are for."""

    def __init__(self, program: LoadedProgram, checks: Sequence[ForeignCheck]) -> None:
        self._marks = common_bits(checks)
        self._backends = {each.mark: each.backend for each in checks}
        self._map = program.maps["health_foreign"]
        self._ifindex = 0
        self._sources: dict[int, Address] | None = None

    def __bool__(self) -> bool:
        """Whether there are such checks."""
        return bool(self._backends)

    def open(self) -> None:
        """Note which marks stand for which backends, and no others."""
        for mark in list(map(int, self._map.keys())):
            if mark not in self._backends:
                self._map.delete(mark, missing_ok=True)
        self._ifindex = 0

    def follow(
        self, ifindex: int, sources: Mapping[int, Address | None], towards: Iterable[Address]
    ) -> bool:
        """Have it so as devices and addresses are now; whether a rule was put back. KernelError.

        ``ifindex``: of the device that packets are routed as if they had come in by. ``sources``:
        by family, of sockets that aren't bound. ``towards``: VIPs.
        """
        if not self:
            return False
        if ifindex != self._ifindex:
            for mark, backend in self._backends.items():
                self._note(mark, backend, ifindex)
            self._ifindex = ifindex
        wanted = {version: each for version, each in sources.items() if each is not None}
        missing = not all(
            stays_here(vip, self._marks)
            for vip in {each.version: each for each in towards}.values()
        )
        put_back = missing and self._sources == wanted
        if missing or self._sources != wanted:
            rules.to_loopback(self._marks, TABLE, PRIORITY, bits=MARK_BITS, sources=wanted)
            self._sources = wanted
        return put_back

    def close(self) -> None:
        """Route nothing by these marks any more. Twice is once. KernelError."""
        if self._sources is not None:
            self._sources = None
            rules.no_longer(self._marks, TABLE, PRIORITY, bits=MARK_BITS)

    def _note(self, mark: int, backend: Address, ifindex: int) -> None:
        value: Any = np.zeros((), self._map.value_dtype)
        value["to"]["addr"]["word"] = np.frombuffer(pack(backend), ">u4")
        value["to"]["family"] = family(backend)
        value["ifindex"] = ifindex
        self._map.update(mark, value)
