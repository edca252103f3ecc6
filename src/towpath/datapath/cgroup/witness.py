# SPDX-License-Identifier: Apache-2.0
"""Who says whether a program ran for a process that connected."""

from __future__ import annotations

from contextlib import contextmanager
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Protocol

from towpath.datapath.cgroup.probe import Destination
from towpath.kernel.bpf.attach_types import AttachType
from towpath.kernel.bpf.cgroups import attach_cgroup
from towpath.kernel.bpf.object import BpfObject

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Testimony(Protocol):
    """What is known once the process has connected."""

    def calls(self) -> int:
        """How often a program has run for it."""


class Witness(Protocol):
    """A program of a cgroup that counts, and a destination for which it does.

    A capability that has programs there itself says so by these: its own are then proven, and no
    other is attached.
    """

    destination: Destination
    """Where the process is to connect to, by UDP."""

    @contextmanager
    def at(self, path: Path) -> Iterator[Testimony]:
        """Count what connects there in the block, by a program that is attached to ``path``.

        KernelError: none can be.
        """


class Ancestry:
    """What Towpath's own program has told."""

    def __init__(self, loaded: BpfObject) -> None:
        self._maps = loaded.maps

    def calls(self) -> int:
        """How often it has run for the process."""
        return int(self._maps["calls"].lookup(0))

    def level_of(self, number: int) -> int | None:
        """How far below the machine's root the cgroup of that number is; None: it wasn't in it."""
        found = {int(ancestor): int(level) for level, ancestor in self._maps["ancestors"].items()}
        return found.get(number)


class OwnWitness:
    """Towpath's own program at connect4, attached for as long as it takes. KernelError."""

    def __init__(self) -> None:
        self.destination = Destination.drawn()

    @contextmanager
    def at(self, path: Path) -> Iterator[Ancestry]:
        """As `Witness` says."""
        with BpfObject.packaged("cgroup_witness") as loaded:
            address, port = self.destination
            loaded.rodata["awaited_address"] = int(IPv4Address(address))
            loaded.rodata["awaited_port"] = port
            loaded.load()
            hook = AttachType.CGROUP_INET4_CONNECT
            with attach_cgroup(loaded.programs["towpath_witness"], path, hook):
                yield Ancestry(loaded)
