# SPDX-License-Identifier: Apache-2.0
"""fq on the devices that pods' packets leave by: put in place, kept there, and what was restored.

Its own limits are set so high that it never drops what was charged. Where a device has several
queues (its root is mq), each has an fq of its own.

What was there is noted beside the pins, for the process that puts it back: nothing for a qdisc that
the kernel had put there by itself, else its kind and options. A qdisc with classes, or one that
limits or changes packets, is somebody's purpose: it is left alone, and the device is policed.
"""

from __future__ import annotations

import errno as errnos
import json
import logging
from typing import TYPE_CHECKING

from towpath.kernel.errors import KernelError
from towpath.kernel.net import qdiscs
from towpath.kernel.net.qdiscs import FQ, MARK, MQ, ROOT, FqOptions, Qdisc

if TYPE_CHECKING:
    from towpath.kernel.bpf.notes import Notes

log = logging.getLogger(__name__)

_QUEUES = frozenset(
    {"noqueue", "pfifo", "bfifo", "pfifo_fast", "fq_codel", "codel", "sfq", "pie", "fq_pie", FQ}
)
"""Qdiscs that only queue: nothing is lost by fq in their place."""
_HANDLE = MARK << 16
_SECOND = 1_000_000_000  # ns
_NO_FQ = "this kernel has no fq"
_MOST = 1 << 24
"""Packets that an fq may hold."""


class FqKeeper:
    """Keeps fq on devices. ``notes``: where it is kept what they had. Not thread-safe."""

    def __init__(self, notes: Notes) -> None:
        self._notes = notes

    def keep(self, ifindex: int, options: FqOptions) -> str:
        """Have fq on a device, with these options; why it isn't there, "" if it is.

        KernelError: the device is gone.
        """
        if not qdiscs.has_fq():
            return _NO_FQ
        name = str(ifindex)
        noted = name in self._notes.texts
        try:
            return self._keep(ifindex, options, name)
        except KernelError as error:
            if error.errno != errnos.ENOENT:
                raise
            there = qdiscs.root(ifindex)
            if not noted and not (there is not None and there.ours):
                self._notes.drop(name)
            return _NO_FQ

    def _keep(self, ifindex: int, options: FqOptions, name: str) -> str:
        """The same, if the kernel has fq: ENOENT if it hasn't."""
        found = qdiscs.root(ifindex)
        noted = name in self._notes.texts
        if found is not None and found.kind == MQ:
            return self._keep_each(found, options, name)
        if found is not None and found.ours and found.kind == FQ:
            return self._tune(found, options)
        if found is not None and found.handle:  # else it is the kernel's, or the device is down
            if noted:
                return f"somebody has put {found.kind} in place of fq"
            if found.kind not in _QUEUES:
                return f"its qdisc is {found.kind}, which is left alone"
        if noted:
            log.warning("device %d: somebody has removed fq; it is put back", ifindex)
        else:
            self._notes.put(name, _noted([found] if found else []))
        qdiscs.replace(ifindex, ROOT, _HANDLE, FQ, options.packed())
        return ""

    def _tune(self, found: Qdisc, options: FqOptions) -> str:
        """Give an fq of ours other limits, if it has others."""
        if FqOptions.of(found) != options:
            qdiscs.replace(found.ifindex, found.parent, found.handle, FQ, options.packed())
        return ""

    def _keep_each(self, found: Qdisc, options: FqOptions, name: str) -> str:
        """The same below mq, where each queue has a qdisc of its own."""
        if name not in self._notes.texts:
            leaves = _leaves(found)
            odd = next((each for each in leaves if each.handle and each.kind not in _QUEUES), None)
            if odd is not None:
                return f"a queue has the qdisc {odd.kind}, which is left alone"
            self._notes.put(name, _noted([found, *leaves]))
        if not found.handle:  # its queues can't be named
            qdiscs.replace(found.ifindex, ROOT, _HANDLE, MQ)
            found = found._replace(handle=_HANDLE)
        for leaf in _leaves(found):
            if not _is_ours(leaf) or FqOptions.of(leaf) != options:
                handle = MARK + leaf.parent % (1 << 16) << 16
                qdiscs.replace(found.ifindex, leaf.parent, handle, FQ, options.packed())
        return ""

    def restore(self, ifindex: int) -> None:
        """Put back what a device had, as far as it has ours now. KernelError."""
        noted = self._notes.texts.get(str(ifindex))
        if noted is None:
            return
        found = qdiscs.root(ifindex)
        # A queue of mq whose qdisc is removed drops all that comes: mq is made anew, as a whole.
        if found is not None and (found.ours or any(map(_is_ours, _leaves(found)))):
            qdiscs.delete(ifindex, ROOT, found.handle)
            for each in _read(ifindex, noted):
                _put_back(each)
        self._notes.drop(str(ifindex))

    def restore_all(self) -> None:
        """The same of all that are noted. KernelError."""
        for name in self._notes.texts:
            try:
                self.restore(int(name))
            except KernelError as error:
                log.info("%s", error)
                self._notes.drop(name)

    @property
    def noted(self) -> frozenset[int]:
        """Devices that have, or had, fq in place of something else."""
        return frozenset(map(int, self._notes.texts))

    def drops(self, ifindex: int) -> int:
        """Packets that fq has dropped by itself on a device. KernelError."""
        return sum(each.drops for each in qdiscs.qdiscs(ifindex) if each.kind == FQ)


def _leaves(mq: Qdisc) -> list[Qdisc]:
    found = qdiscs.qdiscs(mq.ifindex)
    return [each for each in found if each.parent >> 16 == mq.handle >> 16 and each.parent != ROOT]


def _is_ours(leaf: Qdisc) -> bool:
    return leaf.kind == FQ and leaf.handle >> 16 == MARK + leaf.parent % (1 << 16)


def _put_back(before: Qdisc) -> None:
    try:
        qdiscs.replace(before.ifindex, before.parent, before.handle, before.kind, before.options)
    except KernelError as error:
        log.warning("%s; it has the kernel's default now", error)


def _noted(found: list[Qdisc]) -> str:
    """As a note. What the kernel puts there by itself needs none."""
    kept = [
        [each.parent, each.handle, each.kind, each.options.hex()] for each in found if each.handle
    ]
    return json.dumps(kept)


def _read(ifindex: int, note: str) -> list[Qdisc]:
    return [
        Qdisc(ifindex, handle, parent, kind, bytes.fromhex(options))
        for parent, handle, kind, options in json.loads(note)
    ]


def limits(rates: list[tuple[int, int]], *, smallest: int = 60) -> FqOptions:
    """Return options by which fq drops nothing that was charged.

    ``rates``: of all aggregates, bits a second and ns of horizon. Of each as much may wait as twice
    its horizon takes, in packets of ``smallest`` bytes.
    """
    waiting = [2 * rate * ns // (8 * smallest * _SECOND) + 1 for rate, ns in rates]
    most = max(waiting, default=0)
    return FqOptions(min(10_000 + sum(waiting), _MOST), min(100 + most, _MOST))
