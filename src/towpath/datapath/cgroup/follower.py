# SPDX-License-Identifier: Apache-2.0
"""A cgroup's root that is found again, and proven again, whenever cgroups or mounts change."""

from __future__ import annotations

import logging
import math
import os
import select
import threading
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

from towpath.closeable import Closeable
from towpath.datapath.cgroup.probe import PREFIX
from towpath.datapath.cgroup.root import CgroupRoot, Proof
from towpath.datapath.follow import told
from towpath.kernel.cgroup_watch import Watch
from towpath.kernel.errors import SHORT, KernelError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import TypeVar

    from towpath.datapath.cgroup.witness import Witness

    T = TypeVar("T")

log = logging.getLogger(__name__)

SETTLE_SECONDS = 0.5
"""From a change to the next proof: changes often come together."""
RETRY_SECONDS = 5.0
"""What wasn't proven, or wasn't there, is tried again so often."""
FAULT_SECONDS = 30.0
"""Where a tag of version 1 may take programs out of effect they are proven so often: nothing tells
of that."""
_GONE = (
    "{name} was removed, and what is attached there runs for nobody: make it again, or name another"
    " by cgroup.path ({error})"
)
_NOT_YET = Proof(proven=False, why="not tried yet", at=0.0)


class Follower(Closeable):
    """Finds the cgroup that programs are attached to, proves it, and keeps doing so.

    It has a thread of its own, which calls ``moved`` whenever there is another root than before, or
    one at all: what is attached is to be attached there then. If that raises KernelError it is
    told as trouble, and called again. OSError: no file can be opened. For any thread.
    """

    def __init__(
        self,
        configured: Path | None = None,
        *,
        witness: Witness | None = None,
        moved: Callable[[CgroupRoot], None] | None = None,
    ) -> None:
        self._configured, self._witness, self._moved = configured, witness, moved
        self._lock = threading.Lock()
        self._stopped = False
        self._proof = _NOT_YET
        self._gone: str | None = None
        self._to_move = False
        self._due: float | None = None
        self._root: CgroupRoot | None = None
        self._watch: Watch | None = None
        with ExitStack() as undo:
            self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            undo.callback(os.close, self._wake)
            undo.callback(self._let_go)
            self._poll = select.poll()
            self._poll.register(self._wake, select.POLLIN)
            self._follow(first=True)
            self._undo = undo.pop_all()
        self._thread = threading.Thread(target=self._run, name="cgroups", daemon=True)
        self._thread.start()

    # ---- For others ------------------------------------------------------------------------------

    @property
    def proof(self) -> Proof:
        """What came of the last attempt."""
        gone = self._gone
        return self._proof if gone is None else Proof(proven=False, why=gone, at=self._proof.at)

    @property
    def trouble(self) -> str | None:
        """Why programs don't take effect, or may not; None: they were seen to."""
        proof = self.proof
        return None if proof.proven else f"programs of cgroups aren't proven to run: {proof.why}"

    def asked(self, question: Callable[[CgroupRoot], T]) -> T:
        """Answer a question about the root that there is, which stays open meanwhile.

        KernelError: there is none.
        """
        with self._lock:
            if self._root is None:
                raise KernelError("ask for the root of cgroups", hint=self._gone or "")
            return question(self._root)

    def prove_again(self) -> None:
        """Have it proven again, soon."""
        os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """End its thread. What is attached stays so. Twice is once."""
        if not self._stopped:
            self._stopped = True
            os.eventfd_write(self._wake, 1)
            self._thread.join()
            self._undo.close()

    # ---- Its thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        self._due = self._next()
        while not self._stopped:
            pause = None if self._due is None else max(0.0, self._due - time.monotonic())
            woken = dict(self._poll.poll(None if pause is None else math.ceil(pause * 1000)))
            try:
                self._turn(woken)
            except Exception as error:  # noqa: BLE001 - a thread that ends follows nothing
                self._gone = told("programs of cgroups", error, self._gone)
                self._due = time.monotonic() + RETRY_SECONDS

    def _turn(self, woken: dict[int, int]) -> None:
        if self._is_news(woken):
            # Others may follow, but it isn't put off by them.
            soon = time.monotonic() + SETTLE_SECONDS
            self._due = soon if self._due is None else min(soon, self._due)
        elif not woken and not self._stopped:
            self._follow()
            self._due = self._next()

    def _is_news(self, woken: dict[int, int]) -> bool:
        """Whether it was woken by something that may make a difference."""
        asked = False
        with suppress(BlockingIOError):
            asked = os.eventfd_read(self._wake) > 0
        changed = self._watch is not None and self._watch.changed(woken)
        return asked or changed

    def _next(self) -> float | None:
        """When it is proven again if nothing changes; None: that needn't be."""
        if self._root is None or not self.proof.proven:
            return time.monotonic() + RETRY_SECONDS
        return time.monotonic() + FAULT_SECONDS if self._root.fault is not False else None

    def _follow(self, *, first: bool = False) -> None:
        gone = None
        try:
            if self._root is None or not self._root.is_current():
                self._find_again(first=first)
            self._move()
        except (KernelError, OSError) as error:
            gone = str(error)
            found_out = error.errno not in SHORT
            if found_out and self._root is not None and not self._root.there:
                gone = _GONE.format(name=self._root.name, error=error)
        if gone != self._gone:
            log.warning("programs of cgroups: %s", gone or "there is a root again")
        self._gone = gone
        if gone is None and self._root is not None:
            self._prove(self._root)

    def _find_again(self, *, first: bool) -> None:
        with ExitStack() as undo:
            found = undo.enter_context(CgroupRoot(self._configured))
            watch = Watch(found.node, PREFIX)
            undo.pop_all()
        with self._lock:
            self._let_go()
            self._root, self._watch = found, watch
            watch.register(self._poll)
        level = logging.INFO if first else logging.WARNING
        log.log(level, "programs of cgroups are for %s: %s", found.name, found.why)
        self._to_move = True

    def _move(self) -> None:
        if self._to_move and self._root is not None:
            if self._moved is not None:
                self._moved(self._root)
            self._to_move = False

    def _let_go(self) -> None:
        """Close what there is."""
        if self._watch is not None:
            self._watch.unregister(self._poll)
            self._watch.close()
        if self._root is not None:
            self._root.close()
        self._root = self._watch = None

    def _prove(self, root: CgroupRoot) -> None:
        before, self._proof = self._proof, root.prove(self._witness)
        if before is not _NOT_YET and before.proven == self._proof.proven:
            return
        level = logging.INFO if self._proof.proven else logging.WARNING
        log.log(level, "programs of cgroups: %s", self._proof.why)
