# SPDX-License-Identifier: Apache-2.0
"""The directory of pins that keeps a load balancer alive: who may use it, what is in it.

`maps` are the tables, `links` the program's places on the devices; `devices` notes what these are
called, and `host` what was set on them and how that was before; `local` has programs and tables
for backends on this node. While tables of
another shape take the place of those that are there, `maps-next` are complete beside
`maps`, then one after the other:

* the links are given the program that uses `maps-next`;
* the flows that came meanwhile are copied;
* `maps` is called `maps-old`, `maps-next` is called `maps`, and `maps-old` is removed.

A process that dies in between leaves one of these states, and :func:`found` says what
each amounts to. No table is changed before it is over, so both have the same services.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

from towpath.kernel import lock
from towpath.kernel.bpf.bpffs import ROOT, ensure_bpffs, remove_pins
from towpath.kernel.errors import KernelError
from towpath.kernel.private import make_private

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

log = logging.getLogger(__name__)

MAPS, NEXT, OLD, LINKS = "maps", "maps-next", "maps-old", "links"
NAMES, HOST = "devices", "host"
LOCAL = "local"


class Hold:
    """A directory of pins that nobody else may use."""

    def __init__(self, pins: Path, undo: ExitStack) -> None:
        self._pins = pins
        self._undo = undo
        self._inode = 0
        self.again()

    def again(self) -> bool:
        """Make the directory and hold it, if somebody has removed it; whether it was gone.

        KernelError: another process has it by now, or there is no BPF file system and none can be
        mounted.
        """
        if self._inode and self._inode == _inode(self._pins):
            return False
        if self._pins.is_relative_to(ROOT):
            ensure_bpffs()
        was_held = bool(self._inode)
        try:
            make_private(self._pins)
        except OSError as error:
            raise KernelError(f"make {self._pins}", error.errno or 0) from error
        self._undo.enter_context(lock.exclusive(self._pins))
        self._inode = _inode(self._pins)
        return was_held


def _inode(path: Path) -> int:
    try:
        return path.stat().st_ino
    except OSError:
        return 0


@contextmanager
def held(pins: Path) -> Iterator[Hold]:
    """Keep others out of a directory of pins in the block, making it if need be.

    Two that write the same tables would take each other's room. It is left behind
    only if something is pinned in it. What a process that was killed has left half
    built is removed. KernelError: another process has it.
    """
    try:
        with ExitStack() as undo:
            hold = Hold(pins, undo)
            if pins.is_relative_to(ROOT):
                _tidy(pins)
            yield hold
    finally:
        with suppress(OSError):  # it isn't empty, or gone already
            pins.rmdir()


def _tidy(pins: Path) -> None:
    for name in (MAPS, NEXT):
        for half_built in pins.glob(f"{name}-new-*"):
            log.info("removing %s, which was never finished", half_built)
            remove_pins(half_built)
    if (pins / NEXT).is_dir() and not (pins / MAPS).exists():
        # All that was left to do was to rename.
        (pins / NEXT).rename(pins / MAPS)
    if (pins / MAPS).is_dir():
        remove_pins(pins / OLD)


def found(pins: Path) -> list[Path]:
    """Return the directories of tables that there are, the one that came last first."""
    return [pins / name for name in (NEXT, MAPS) if (pins / name).is_dir()]


def succeed(pins: Path, current: Path) -> None:
    """Make the tables in ``current`` the only ones."""
    if current == pins / NEXT:
        (pins / MAPS).rename(pins / OLD)
        (pins / NEXT).rename(pins / MAPS)
        remove_pins(pins / OLD)
    else:
        remove_pins(pins / NEXT)
