# SPDX-License-Identifier: Apache-2.0
"""Policy routing: what the packets of some sockets do instead of what routes say."""

from __future__ import annotations

import errno as errnos
import socket
from contextlib import suppress
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from towpath.kernel.errors import CAP_NET_ADMIN, KernelError, permission_hint
from towpath.kernel.net.interfaces import connected, netlink_error

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from towpath.kernel.net.own_routes import Address

_LOOPBACK = 1  # the index of lo in every network namespace
_EXACT = 0xFFFFFFFF
# Address family, the prefix of all addresses, and what "local" is as a scope of routes.
_FAMILIES = ((socket.AF_INET, "0.0.0.0/0", 254), (socket.AF_INET6, "::/0", 0))
_VERSIONS = {socket.AF_INET: 4, socket.AF_INET6: 6}
_NOBODY: Mapping[int, Address] = MappingProxyType({})
_MTU = 1280
"""Of routes of other programs' sockets: it leaves room for a tunnel, and all IPv6 links have it."""
# A kernel that was started without IPv6.
_NO_FAMILY = (errnos.EAFNOSUPPORT, errnos.EOPNOTSUPP, errnos.EACCES)


def to_loopback(
    mark: int, table: int, priority: int, *, bits: int = 0, sources: Mapping[int, Address] = _NOBODY
) -> None:
    """Send packets of sockets with this mark out of the loopback device, whatever they are for.

    By a rule of that ``priority`` and a ``table`` of routes, both of no one else. Where it is so
    already, nothing changes. ``bits``: so many low ones of marks may be any. ``sources``: what
    sockets have for an address that aren't bound, by the version of IP; they have one of their own
    otherwise. KernelError: not allowed.
    """
    with connected() as netlink:
        for family, everything, scope in _FAMILIES:
            route: dict[str, Any] = _route(everything, scope)
            own = sources.get(_VERSIONS[family])
            if own is not None:
                route |= {"prefsrc": str(own)}
            if sources:
                route |= {"metrics": {"mtu": _MTU}}
            for command, thing, fields in (
                ("replace", netlink.route, {"family": family, "table": table, **route}),
                ("add", netlink.rule, _rule(family, mark, table, priority, bits)),
            ):
                with suppress(FileExistsError):
                    _do(thing, command, fields)


def no_longer(mark: int, table: int, priority: int, *, bits: int = 0) -> None:
    """Undo `to_loopback`, as far as it is there."""
    with connected() as netlink:
        for family, everything, scope in _FAMILIES:
            for thing, fields in (
                (netlink.rule, _rule(family, mark, table, priority, bits)),
                (
                    netlink.route,
                    {"family": family, "table": table, **_route(everything, scope)},
                ),
            ):
                with suppress(FileNotFoundError):
                    _do(thing, "del", fields)


def _route(everything: str, scope: int) -> dict[str, Any]:
    return {"dst": everything, "oif": _LOOPBACK, "type": "local", "scope": scope}


def _rule(family: int, mark: int, table: int, priority: int, bits: int) -> dict[str, int]:
    mask = _EXACT >> bits << bits
    fields = {"fwmark": mark, "fwmask": mask, "table": table, "priority": priority}
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
