# SPDX-License-Identifier: Apache-2.0
"""Where programs of cgroups are attached so that they take effect, and the proof that they do.

::

    with CgroupRoot() as root:
        link = attach_cgroup(program, root.path, AttachType.CGROUP_INET4_CONNECT)
        print(root.name, root.why, root.prove().why)

A program is given ``root.within`` if that isn't None: it must leave alone what isn't below that
cgroup (``bpf_get_current_ancestor_cgroup_id(level) == id``).
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from towpath.closeable import Closeable
from towpath.datapath.cgroup.fault import has_fault
from towpath.datapath.cgroup.level import Level
from towpath.datapath.cgroup.probe import connect_below
from towpath.datapath.cgroup.witness import OwnWitness
from towpath.kernel.errors import KernelError

if TYPE_CHECKING:
    from pathlib import Path

    from towpath.datapath.cgroup.witness import Witness

_MANAGED = (
    "attached to the machine's root, and only for what is in {name}: this kernel's sockets forget"
    " their cgroup once net_cls or net_prio has tagged one"
)
_UNMANAGED = (
    "this kernel's sockets forget their cgroup once net_cls or net_prio has tagged one, and"
    " programs can't be attached to the machine's root from here: {error}"
)
_BYPASSED = (
    "a process in {name} connected, and no program ran for it: net_cls or net_prio has tagged a"
    " socket, and this kernel's then forget their cgroup until it is restarted. Start the kernel"
    " with cgroup_no_v1=net_cls,net_prio, or take a newer one (5.15)"
)
_NOT_RUN = "a process in {name} connected, and the program did not run for it"


class Ancestor(NamedTuple):
    """A cgroup by what ``bpf_get_current_ancestor_cgroup_id`` says of it."""

    level: int
    """How far below the machine's root."""
    id: int
    """Its number."""


@dataclass(frozen=True, slots=True)
class Proof:
    """What came of an attempt to see programs run."""

    proven: bool
    why: str
    """In words: what was seen, or why not and what to do."""
    at: float
    """When, in seconds of the epoch."""


class CgroupRoot(Closeable):
    """The cgroup that programs are attached to, for the processes of one node or one cgroup.

    ``configured``: that one, whatever is found. KernelError: it is no cgroup, or there is none.
    Not thread-safe.
    """

    path: Path
    """Where programs are attached. It may lead there in this process only."""
    within: Ancestor | None
    """What they are for, if that is less than all that they run for."""
    why: str
    """Why it is that one."""

    def __init__(self, configured: Path | None = None) -> None:
        with ExitStack() as undo:
            self._level = undo.enter_context(Level(configured))
            self._configured = configured
            self.path, self.within, self.why = self._level.path, None, self._level.why
            self.fault = has_fault()
            """Whether tags of version 1 can take programs below the machine's root out of effect;
            None: that can't be told."""
            if self.fault and not self._level.is_root:
                self._attach_above(undo)
            self._undo = undo.pop_all()

    def _attach_above(self, undo: ExitStack) -> None:
        """Move to the machine's root, where programs run whatever sockets know of their cgroup."""
        witness = OwnWitness()
        try:
            root = undo.enter_context(self._level.machines_root())
            with witness.at(root.path) as told:
                connect_below(self._level.path, witness.destination)
                level = told.level_of(self._level.id)
        except KernelError as error:
            self.why = f"{self.why}; {_UNMANAGED.format(error=error)}"
            return
        if level is not None:
            self.path = root.path
            self.within = Ancestor(level, self._level.id)
            self.why = f"{self.why}; {_MANAGED.format(name=self.name)}"

    @property
    def name(self) -> str:
        """What people call the cgroup whose processes programs are for: its path, if it has one."""
        return self._level.name

    @property
    def node(self) -> Path:
        """The way there for this process. It is ``path`` unless ``within`` says otherwise."""
        return self._level.path

    @property
    def id(self) -> int:
        """Its number; 1 is the machine's root."""
        return self._level.id

    @property
    def there(self) -> bool:
        """Whether it is still the same cgroup, and wasn't removed."""
        return self._level.there

    def is_current(self) -> bool:
        """Whether one that is looked for now would be the same. KernelError: there is none."""
        with Level(self._configured) as found:
            return self.there and found.id == self.id

    def prove(self, witness: Witness | None = None) -> Proof:
        """Have a process below connect, and see whether a program ran for it. Raises nothing.

        ``witness``: whose program; None: one of Towpath's own, attached meanwhile.
        """
        asked = witness or OwnWitness()
        try:
            with asked.at(self.path) as told:
                connect_below(self.node, asked.destination)
                proven = told.calls() > 0
        except (KernelError, OSError) as error:
            return Proof(proven=False, why=str(error), at=time.time())
        if proven:
            why = f"a process in {self.name} connected, and the program ran for it"
        else:
            bypassed = self.fault and self.within is None and not self._level.is_root
            why = (_BYPASSED if bypassed else _NOT_RUN).format(name=self.name)
        return Proof(proven, why, time.time())

    def close(self) -> None:
        """Let go of it: what is attached stays so. Twice is once."""
        self._undo.close()
