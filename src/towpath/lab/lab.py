# SPDX-License-Identifier: Apache-2.0
"""Brings the lab up and takes it down again, whole or from whatever is left of it."""

from __future__ import annotations

import logging
import subprocess
from typing import TYPE_CHECKING, Self

from towpath.children import python
from towpath.kernel.bpf.bpffs import ensure_bpffs
from towpath.lab import namespaces, network, state, web
from towpath.lab.errors import LabError
from towpath.lab.interrupt import undisturbed
from towpath.lab.topology import ROUTER, Topology

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from types import TracebackType

log = logging.getLogger(__name__)


class Lab:
    """A running lab; as a context manager, one that is taken down at the end.

    ``Lab.up()`` makes one, ``Lab.current()`` finds the one that is up.
    """

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        self._children: list[subprocess.Popen[str]] = []

    @property
    def directory(self) -> Path:
        """Where the lab keeps its servers' files and logs."""
        return state.DIRECTORY

    @property
    def bpffs(self) -> Path:
        """A BPF file system of the lab's own: what is pinned there goes with the lab."""
        return state.DIRECTORY / "bpf"

    @classmethod
    def up(cls, backends: int = 4) -> Self:
        """Build a lab; raises LabError, leaving nothing behind, when that fails."""
        topology = Topology(backends)
        foreign = namespaces.existing() & set(topology.namespaces)
        if foreign and state.read() is None:
            names = ", ".join(sorted(foreign))
            raise LabError(
                f"network namespaces named like the lab's exist already: {names};"
                " remove them with `ip netns delete`"
            )
        state.claim(topology)
        lab = cls(topology)
        try:
            # It takes a second, and the libraries in between are not made for an
            # exception out of nowhere: whoever interrupts waits for the whole lab.
            with undisturbed():
                lab._build()
        except BaseException:
            lab.down()
            raise
        return lab

    @classmethod
    def current(cls) -> Self:
        """The lab that is up; LabError if there is none."""
        topology = state.read()
        if topology is None:
            raise LabError("no lab is up; `towpath lab up` makes one")
        return cls(topology)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.down()

    def spawn(self, name: str, command: Sequence[str], *, log_to: str) -> subprocess.Popen[str]:
        """Start a command in a namespace (``lb`` or ``tp-lb``), its output in a log file."""
        with (self.directory / log_to).open("w") as output:
            child = namespaces.spawn(
                self.topology.namespace(name),
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        self._children.append(child)
        return child

    def down(self) -> None:
        """Take everything down, last made first; carries on past what fails.

        Can be called again. Raises LabError at the end if something would not go.
        """
        with undisturbed():
            tried = [_attempt(step) for step in self._undo_steps()]
            failures = [failure for failure in tried if failure is not None]
            if failures:
                raise LabError("the lab is not wholly down: " + "; ".join(failures))
            state.release()

    def _build(self) -> None:
        network.build(self.topology)
        self.bpffs.mkdir()
        ensure_bpffs(self.bpffs)
        for link in self.topology.backend_links:
            web.start(link.port, link.node, self.directory / link.port)
        self._start_keeper()

    def _start_keeper(self) -> None:
        """Start the process that holds the lab's BPF programs; returns when they run."""
        with (self.directory / "keeper.log").open("w") as errors:
            keeper = namespaces.spawn(
                ROUTER,
                python("towpath.lab.keeper", str(self.topology.backends)),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
            )
        assert keeper.stdout is not None  # noqa: S101  for the type checker: it is a PIPE
        with keeper.stdout as said:
            if said.readline() != "ready\n":
                keeper.wait()
                reason = (self.directory / "keeper.log").read_text().strip()
                raise LabError(f"the lab's BPF programs were not attached: {reason}")
        # It outlives this object, and this process when `lab up` ends.
        keeper.returncode = 0

    def _undo_steps(self) -> list[Callable[[], None]]:
        names = list(reversed(self.topology.namespaces))
        return [
            *(lambda name=name: namespaces.stop_processes(name) for name in names),
            self._reap,
            *(lambda name=name: namespaces.remove(name) for name in names),
            self._unmount,
        ]

    def _reap(self) -> None:
        """Take note of the end of what spawn() has started."""
        for child in self._children:
            child.wait(timeout=namespaces.STOP_TIMEOUT)

    def _unmount(self) -> None:
        if self.bpffs.is_mount():
            subprocess.run(["umount", str(self.bpffs)], check=True)


def _attempt(step: Callable[[], None]) -> str | None:
    """Run one step of the way down; what went wrong, or None."""
    try:
        step()
    except (OSError, subprocess.SubprocessError) as error:
        log.exception("while taking the lab down")
        return str(error)
    return None
