# SPDX-License-Identifier: Apache-2.0
"""Policy routing: what the packets of some sockets do instead of what routes say."""

from __future__ import annotations

import errno as errnos
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from towpath.kernel.errors import CAP_NET_ADMIN, KernelError, permission_hint
from towpath.kernel.net.interfaces import connected, netlink_error

if TYPE_CHECKING:
    from collections.abc import Callable

_LOOPBACK = 1  # the index of lo in every network namespace
_EXACT = 0xFFFFFFFF
# Address family, the prefix of all addresses, and what "local" is as a scope of routes.
_FAMILIES = ((socket.AF_INET, "0.0.0.0/0", 254), (socket.AF_INET6, "::/0", 0))
# A kernel that was started without IPv6.
_NO_FAMILY = (errnos.EAFNOSUPPORT, errnos.EOPNOTSUPP, errnos.EACCES)


def to_loopback(mark: int, table: int, priority: int) -> None:
    """Send packets of sockets with this mark out of the loopback device, whatever they are for.

    By a rule of that ``priority`` and a ``table`` of routes, both of no one else. Where it is so
    already, nothing changes. KernelError: not allowed.
    """
    with connected() as netlink:
        for family, everything, scope in _FAMILIES:
            route = {"dst": everything, "oif": _LOOPBACK, "type": "local", "scope": scope}
            for command, thing, fields in (
                ("replace", netlink.route, {"family": family, "table": table, **route}),
                ("add", netlink.rule, _rule(family, mark, table, priority)),
            ):
                with suppress(FileExistsError):
                    _do(thing, command, fields)


def no_longer(mark: int, table: int, priority: int) -> None:
    """Undo `to_loopback`, as far as it is there."""
    with connected() as netlink:
        for family, everything, scope in _FAMILIES:
            route = {"dst": everything, "oif": _LOOPBACK, "type": "local", "scope": scope}
            for thing, fields in (
                (netlink.rule, _rule(family, mark, table, priority)),
                (netlink.route, {"family": family, "table": table, **route}),
            ):
                with suppress(FileNotFoundError):
                    _do(thing, "del", fields)


def _rule(family: int, mark: int, table: int, priority: int) -> dict[str, int]:
    fields = {"fwmark": mark, "fwmask": _EXACT, "table": table, "priority": priority}
    return {"family": family, **fields}


def _do(thing: Callable[..., Any], command: str, fields: dict[str, Any]) -> None:
    """Carry out one command. FileExistsError, FileNotFoundError: there is nothing to do."""
    try:
        thing(command, **fields)
    except netlink_error() as error:
        if error.code == errnos.EEXIST:
            raise FileExistsError from error
        if error.code in (errnos.ENOENT, errnos.ESRCH):
            raise FileNotFoundError from error
        if fields["family"] == socket.AF_INET6 and error.code in _NO_FAMILY:
            return
        hint = permission_hint(CAP_NET_ADMIN) if error.code == errnos.EPERM else ""
        what = f"{command} the {thing.__name__} for mark {fields.get('fwmark', '')}"
        raise KernelError(what, error.code, hint) from error
