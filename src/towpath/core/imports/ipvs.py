# SPDX-License-Identifier: Apache-2.0
"""A table of IPVS as services: as the kernel tells it, as ipvsadm saves it, as /proc shows it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from towpath.core.imports.imported import Collected, NoteKind, Place
from towpath.core.imports.ipvs_proc import HEADER, read_table
from towpath.core.imports.ipvsadm import read_commands, without_program
from towpath.core.imports.lvs import UDP_TIMEOUT, carry

if TYPE_CHECKING:
    from collections.abc import Iterable

    from towpath.core.imports.imported import Imported
    from towpath.core.imports.lvs import VirtualServer


def import_table(servers: Iterable[VirtualServer], udp_timeout: int = UDP_TIMEOUT) -> Imported:
    """Return what becomes of a running table."""
    into = Collected()
    for each in servers:
        carry(each, into, udp_timeout)
    return into.result()


def import_ipvsadm(text: str, file: str) -> Imported:
    """Return what becomes of commands of ipvsadm, such as ``ipvsadm -Sn`` prints. ConfigError."""
    into = Collected()
    servers, udp_timeout = read_commands(text, file, into)
    for each in servers:
        carry(each, into, udp_timeout)
    return into.result()


def import_proc(text: str, file: str, hz: int) -> Imported:
    """Return what becomes of the text of /proc/net/ip_vs. ConfigError.

    ``hz``: jiffies a second of the kernel that it is of.
    """
    into = Collected()
    for each in read_table(text, file, hz, into):
        carry(each, into)
    why = (
        "/proc/net/ip_vs doesn't tell them: thresholds, types of tunnels, schedulers' flags, "
        "persistence engines and timeouts are taken to be as they are by default; `ipvsadm -Sn` "
        "tells all but thresholds and timeouts, `towpath import ipvs` without a file all"
    )
    into.once(NoteKind.DIFFERS, "options", why, Place(file))
    return into.result()


def kind_of(text: str) -> str:
    """Return whether a text is of ipvsadm, proc or keepalived: what its first lines look like."""
    for line in text.splitlines():
        words = line.split()
        if not words or words[0].startswith(("#", "!")):
            continue
        if line.startswith(HEADER):
            return "proc"
        program = without_program(words) != words
        return "ipvsadm" if program or words[0].startswith("-") else "keepalived"
    return "ipvsadm"
