# SPDX-License-Identifier: Apache-2.0
"""Sockets by what they have noted: those of all network namespaces."""

from __future__ import annotations

from contextlib import ExitStack, nullcontext, suppress
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from towpath.closeable import Closeable
from towpath.kernel.bpf.iterators import read_elements, read_sockets
from towpath.kernel.bpf.object import BpfObject
from towpath.kernel.errors import KernelError
from towpath.kernel.net.namespaces import with_cookies
from towpath.kernel.net.netns import entered

if TYPE_CHECKING:
    from towpath.datapath.socket.program import SocketProgram

    Array = np.ndarray[Any, Any]

OBJECT = "socket_list"
_SLOTS = "socket_slots"
Which = Literal["notes", "udp", "peers"]


def refusal() -> str | None:
    """Why this kernel lists no sockets, None if it does: a hardened one allows no such programs."""
    with BpfObject.packaged(OBJECT) as made:
        try:
            made.load()
        except KernelError as error:
            return str(error)
    return None


class Listing(Closeable):
    """Lists sockets. KernelError: this kernel has no such iterators (5.9), or no types (BTF)."""

    def __init__(self, program: SocketProgram) -> None:
        self._program = program
        with ExitStack() as undo:
            self._object = undo.enter_context(BpfObject.packaged(OBJECT))
            self._record = self._object.btf.dtype("socket_seen")
            self._object.reuse(_SLOTS, program.maps[_SLOTS])
            self._object.load()
            self._undo = undo.pop_all()

    def read(self, which: Which) -> Array:
        """Sockets as an array of struct socket_seen. KernelError.

        notes: connected to a service; udp: of these, those of UDP that are connected now; peers:
        those that send without having connected, once for each service. Of connections of TCP in
        namespaces that can't be seen from here no more is known than their notes have, whose
        `state`, `netns` and `local` are 0.
        """
        over = self._program.maps["socket_peers" if which == "peers" else "socket_notes"]
        found = read_elements(self._object.programs[f"socket_list_{which}"], over)
        if which == "notes":
            found += self._in_slots()
        return np.frombuffer(found, self._record)

    def _in_slots(self) -> bytes:
        """Those whose notes are in the table, of all namespaces that have some."""
        _, slots = self._program.maps[_SLOTS].snapshot()
        slots = slots[slots["cookie"] != 0]
        found, seen = bytearray(), set[int | None]()
        for cookie, namespace in with_cookies(np.unique(slots["netns"]).tolist()):
            with suppress(KernelError) if cookie is None else nullcontext(), entered(namespace):
                found += read_sockets(self._object.programs["socket_list_slots"])
            seen.add(cookie)
        if None in seen:
            elsewhere = ~np.isin(slots["cookie"], np.frombuffer(found, self._record)["cookie"])
        else:
            elsewhere = ~np.isin(slots["netns"], [each for each in seen if each is not None])
        return bytes(found) + self._by_notes(slots[elsewhere]).tobytes()

    def _by_notes(self, slots: Array) -> Array:
        """What their notes tell of those in namespaces that can't be seen from here."""
        slots = slots[slots["note"]["family"] != 0]
        made = np.zeros(len(slots), self._record)
        made["note"], made["cookie"] = slots["note"], slots["cookie"]
        made["family"], made["remote_port"] = made["note"]["family"], made["note"]["backend_port"]
        return made

    def close(self) -> None:
        """Let go of the programs. Twice is once."""
        self._undo.close()
