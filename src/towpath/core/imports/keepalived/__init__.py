# SPDX-License-Identifier: Apache-2.0
"""keepalived.conf as services."""

from __future__ import annotations

from typing import TYPE_CHECKING

from towpath.core.imports.imported import Collected, NoteKind
from towpath.core.imports.keepalived.blocks import read_blocks
from towpath.core.imports.keepalived.elsewhere import TOP
from towpath.core.imports.keepalived.groups import Entry, entries
from towpath.core.imports.keepalived.lines import read_lines
from towpath.core.imports.keepalived.servers import read_virtual_server
from towpath.core.imports.keepalived.settings import unknown
from towpath.core.imports.keepalived.values import MAX_NUMBER, WrongValueError, number
from towpath.core.imports.lvs import UDP_TIMEOUT, carry

if TYPE_CHECKING:
    from collections.abc import Sequence

    from towpath.core.imports.imported import Imported, Include
    from towpath.core.imports.keepalived.blocks import Directive

_CHECKS = (
    "one that failed is repeated after the interval, not after delay_before_retry, so it may take "
    "longer until a backend is down; with forwarding dsr and l2 they go to the VIP, the way of "
    "clients' packets, and not to the backend's own address"
)
_SERVER, _GROUP = "virtual_server", "virtual_server_group"


def import_keepalived(text: str, file: str, *, config_id: str, include: Include) -> Imported:
    """Return what becomes of a keepalived.conf. ConfigError, with all that is wrong.

    Args:
        text: The file.
        file: Its name.
        config_id: Which of the lines that begin with ``@`` are meant.
        include: Reads what is included.
    """
    into = Collected()
    directives = read_blocks(read_lines(text, file, config_id, include, into))
    groups: dict[str, list[Entry]] = {}
    timeouts = [UDP_TIMEOUT]
    for each in directives:
        if each.name == _GROUP:
            _read_group(each, groups, into)
        elif each.name in TOP:
            into.note(NoteKind.ELSEWHERE, str(each), TOP[each.name], each.place)
            timeouts += _udp_timeouts(each, into)
        elif each.name != _SERVER:
            into.refuse(each.place, unknown(each.name, "", (_SERVER, _GROUP, *TOP)))
    # Groups may stand behind the servers that are for them.
    for each in directives:
        if each.name == _SERVER:
            for virtual in read_virtual_server(each, groups, into):
                if carry(virtual, into, timeouts[-1]) and virtual.health is not None:
                    into.once(NoteKind.DIFFERS, "checks", _CHECKS, virtual.place)
    return into.result()


def _read_group(directive: Directive, groups: dict[str, list[Entry]], into: Collected) -> None:
    if not directive.values:
        into.refuse(directive.place, "virtual_server_group has no name; allowed: one")
        return
    found = groups.setdefault(directive.values[0], [])
    for each in directive.block or ():
        try:
            found += entries(each)
        except WrongValueError as error:
            into.refuse(each.place, str(error))


def _udp_timeouts(directive: Directive, into: Collected) -> Sequence[int]:
    """Of ``lvs_timeouts tcp SECONDS udp SECONDS``."""
    found = []
    for each in directive.block or ():
        if each.name != "lvs_timeouts":
            continue
        for name, value in zip(each.values, each.values[1:], strict=False):
            if name == "udp":
                try:
                    found.append(number("lvs_timeouts udp", value, 1, MAX_NUMBER))
                except WrongValueError as error:
                    into.refuse(each.place, str(error))
    return found
