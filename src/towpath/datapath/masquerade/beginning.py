# SPDX-License-Identifier: Apache-2.0
"""The moments in which masquerade begins on a node, and ends.

There are flows by then, of which no program has seen how they began: what pods answer to what came
in, and what they have begun, which netfilter may translate, the destination as well. Masqueraded,
it would be another flow to who gets it. So

1. what isn't known is left to the stack, but for SYNs, while programs come to devices (`hold`);
2. those that the kernel knows are noted as if they had come in, once the programs that note what
   comes in are there: they are the stack's for as long as something is answered (`learn`).

When it ends the first holds again: programs go one by one, and what comes in isn't noted any more.
"""

from __future__ import annotations

import logging
import time
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from towpath.datapath.flows.keys import flow_key
from towpath.datapath.maps.pins import MAPS
from towpath.kernel.bpf.maps import Map
from towpath.kernel.bpf.object import BpfObject
from towpath.kernel.errors import KernelError
from towpath.kernel.jiffies import Jiffies
from towpath.kernel.net import conntrack_flows

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator
    from pathlib import Path

    from towpath.datapath.masquerade.program import MasqueradeProgram
    from towpath.kernel.net.conntrack_flows import Ends
    from towpath.model.kinds import Prefix

log = logging.getLogger(__name__)

HOLD_SECONDS = 30.0
"""At most, if nobody gets to the end of it."""


def hold(program: MasqueradeProgram, seconds: float = HOLD_SECONDS) -> None:
    """Leave what isn't known to the stack for so long."""
    _hold(program.maps["masq_learning"], seconds)


def hold_pinned(pins: Path) -> None:
    """The same with what an earlier process has left."""
    path = pins / MAPS / "masq_learning"
    if path.exists():
        with BpfObject.packaged("masquerade") as obj, Map.from_pin(path, obj.btf) as learning:
            _hold(learning, HOLD_SECONDS)


def _hold(table: Map, seconds: float) -> None:
    with table.mmap() as learning:
        learning.array["until"] = time.monotonic_ns() + int(seconds * 10**9)


def learn(program: MasqueradeProgram, pods: Collection[Prefix], spared: Collection[Prefix]) -> None:
    """Leave flows of pods to the stack that the kernel knows, but those to ``spared``: all are."""
    try:
        found = conntrack_flows.both_ways()
    except KernelError as error:
        log.debug("no flows of before are known: %s", error)
        found = []
    ways = chain.from_iterable(_ways(*each) for each in found)
    _note(program, {flow_key(each) for each in _of_pods(ways, pods, spared)})
    hold(program, 0)


def _note(program: MasqueradeProgram, keys: Collection[bytes]) -> None:
    if not keys:
        return
    table = program.maps["masq_inbound"]
    entries = np.zeros(len(keys), table.value_dtype)
    with Jiffies() as jiffies:
        entries["seen"] = jiffies.now() >> program.constant("nat_limits", "NAT_SEEN_SHIFT")
    table.update_batch(np.frombuffer(b"".join(keys), table.key_dtype), entries)
    log.info("%d flows of pods that are there are left to the stack", len(keys))


def _ways(sent: Ends, answered: Ends) -> Iterator[Ends]:
    """What may be seen of a flow: as it was sent, and with the destination translated already.

    Netfilter translates that first, and bridges may hand it packets before they are seen.
    """
    yield from (sent, answered)
    yield sent._replace(destination=answered.source, port=answered.source_port)
    yield answered._replace(destination=sent.source, port=sent.source_port)


def _of_pods(
    found: Iterable[Ends], pods: Collection[Prefix], spared: Collection[Prefix]
) -> Iterator[Ends]:
    """Directions in which pods send."""
    mine, others = _Within(pods), _Within(spared)
    return (e for e in found if mine.has(e.source) and not others.has(e.destination))


class _Within:
    """Whether addresses are in prefixes."""

    def __init__(self, prefixes: Iterable[Prefix]) -> None:
        self._ranges = {
            (
                each.max_prefixlen // 8,
                int(each.network_address),
                int(each.broadcast_address),
            )
            for each in prefixes
        }

    def has(self, address: bytes) -> bool:
        """Of either family."""
        number, size = int.from_bytes(address, "big"), len(address)
        return any(size == of and low <= number <= high for of, low, high in self._ranges)
