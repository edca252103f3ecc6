# SPDX-License-Identifier: Apache-2.0
"""The decision alone: what the programs at sockets would do, without any socket.

The kernel can't test-run programs of cgroups. The same function is compiled into a program for tc,
over the same maps, which it can. It counts and remembers nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from towpath.datapath.address import family, pack
from towpath.datapath.socket.program import TRIAL

if TYPE_CHECKING:
    from collections.abc import Sequence

    from towpath.datapath.address import Address
    from towpath.datapath.socket.program import SocketProgram
    from towpath.model.service import Protocol

_LINK = bytes(12) + b"\x08\x00"
"""A frame's link header."""


@dataclass(frozen=True, slots=True)
class Question:
    """Who calls, and what with."""

    address: Address
    port: int
    protocol: Protocol
    socket: int = 0
    """The socket's cookie."""
    netns: int = 0
    """The cookie of its network namespace."""
    connects: int = 0
    """How often connect() was balanced for it before."""
    known: int = 0
    """Handle of the backend that its datagrams went to, 0 for none ..."""
    seen: int = 0
    """... and when, in seconds since boot."""
    cgroups: Sequence[int] = ()
    """Ids of the cgroups that its process is in, the root first."""


def ask(program: SocketProgram, question: Question, *, repeat: int = 1) -> tuple[Any, int]:
    """Return the answer, a struct socket_answer, and how many nanoseconds it takes. KernelError."""
    record = np.zeros((), program.dtype("socket_trial"))
    asked = record["question"]
    asked["addr"]["word"] = np.frombuffer(pack(question.address), ">u4")
    asked["family"] = family(question.address)
    asked["protocol"] = question.protocol.number
    for name in ("port", "known", "netns", "socket", "connects", "seen"):
        asked[name] = getattr(question, name)
    record["cgroups"][: len(question.cgroups)] = question.cgroups
    run = program.programs[TRIAL].test_run(_LINK + record.tobytes(), repeat=repeat)
    answered = np.frombuffer(run.data[len(_LINK) :], record.dtype)[0]
    return answered["answer"], run.duration_ns
