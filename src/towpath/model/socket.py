# SPDX-License-Identifier: Apache-2.0
"""For whose sockets services are balanced, and how."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path  # noqa: TC003 -- read by pydantic and by `build`
from typing import Annotated, Any, ClassVar, Literal

from towpath.model.kinds import AbsolutePath, Integer, OrNone, Word
from towpath.model.kinds.names import AbsolutePaths
from towpath.model.kinds.patterns import DevicePatterns
from towpath.model.service import PYDANTIC

NoBackend = Literal["ECONNREFUSED", "EPERM"]
Stale = Literal["none", "udp", "all"]


@dataclass(frozen=True, slots=True)
class Packets:
    """Pods whose packets carry services' addresses, since their connect() never runs here."""

    __pydantic_config__: ClassVar[Any] = PYDANTIC

    devices: Annotated[tuple[str, ...], DevicePatterns()]
    """The pods' devices on the node; ``tap*`` stands for all that begin so."""
    flows: Annotated[int, Integer(1024, 1 << 24)] = 65536
    """Flows at one time, 100 bytes each."""


@dataclass(frozen=True, slots=True)
class Section:
    """Services at the socket. ``socket`` in the configuration."""

    __pydantic_config__: ClassVar[Any] = PYDANTIC

    cgroup: Annotated[Path | None, OrNone(AbsolutePath())] = None
    """For processes in this cgroup of version 2. None: in the one that the section ``cgroup`` says,
    or that is found for this node."""
    exclude: Annotated[tuple[Path, ...], AbsolutePaths()] = ()
    """Cgroups whose processes are left alone."""
    no_backend: Annotated[NoBackend, Word("ECONNREFUSED", "EPERM")] = "ECONNREFUSED"
    """How calls to a service without a backend fail. Before Linux 5.18 always with EPERM."""
    stale: Annotated[Stale, Word("none", "udp", "all")] = "udp"
    """Which connected sockets are ended when their backend goes or is down: of UDP, which would
    never know; all: of TCP too, which are not left to find out themselves."""
    packets: Packets | None = None
    """For pods whose connect() never runs on this node (gVisor, Kata, VMs), and those of
    ``exclude``: their packets are translated, at their devices. None: no packets are."""
