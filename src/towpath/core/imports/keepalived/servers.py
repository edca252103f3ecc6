# SPDX-License-Identifier: Apache-2.0
"""virtual_server and real_server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from towpath.core.imports.imported import Remark
from towpath.core.imports.keepalived.checks import CHECKERS, Defaults, agreed, read_checks
from towpath.core.imports.keepalived.elsewhere import REAL, VIRTUAL
from towpath.core.imports.keepalived.groups import Entry, entries
from towpath.core.imports.keepalived.settings import Settings
from towpath.core.imports.keepalived.values import MAX_PORT, WrongValueError, end, whole, word
from towpath.core.imports.lvs import (
    DEFAULT_SCHEDULER,
    FLAGS,
    IPIP,
    SCHEDULERS,
    TUNNELS,
    Method,
    RealServer,
    ServerTunnel,
    VirtualServer,
)
from towpath.model.kinds import shown

if TYPE_CHECKING:
    from collections.abc import Mapping

    from towpath.core.imports.imported import Collected
    from towpath.core.imports.keepalived.blocks import Directive
    from towpath.core.imports.keepalived.checks import Check

PERSISTENCE = 360
"""Seconds, where persistence_timeout has none."""
_MAX_WEIGHT = (1 << 31) - 1
_PROTOCOLS = ("TCP", "UDP", "SCTP")
_METHODS = {"NAT": Method.NAT, "DR": Method.ROUTE, "TUN": Method.TUNNEL}
_TUNNEL_OPTIONS = ("nocsum", "csum", "remcsum")

# What both have, a real server's before that of its virtual server.
_SHARED = (
    "connect_timeout",
    "delay_before_retry",
    "delay_loop",
    "inhibit_on_failure",
    "lvs_method",
    "retry",
    "virtualhost",
    "weight",
)
_KNOWN_VIRTUAL = (
    *_SHARED,
    *VIRTUAL,
    *FLAGS,
    "lb_algo",
    "lb_kind",
    "lvs_sched",
    "ops",
    "persistence_engine",
    "persistence_granularity",
    "persistence_timeout",
    "protocol",
)
_KNOWN_REAL = (*_SHARED, *REAL, "lthreshold", "uthreshold")

Way = tuple[Method, ServerTunnel]
"""How packets get to a server: the method, and the type of tunnel."""


@dataclass(frozen=True, slots=True)
class _Real:
    server: RealServer
    checks: tuple[Check, ...]
    inhibit: bool


def read_virtual_server(
    directive: Directive, groups: Mapping[str, list[Entry]], into: Collected
) -> list[VirtualServer]:
    """Return what a virtual_server stands for: with a group, one for each that the group has."""
    for_whom = _entries(directive, groups, into)
    settings = Settings(directive, _KNOWN_VIRTUAL, into, ("real_server",))
    remarks = _remarks(settings, VIRTUAL)
    reals = [
        made
        for each in settings.all("real_server")
        if (made := _real(each, settings, remarks)) is not None
    ]
    return [_virtual(entry, settings, reals, remarks) for entry in for_whom]


def _entries(
    directive: Directive, groups: Mapping[str, list[Entry]], into: Collected
) -> list[Entry]:
    """The addresses that it is for."""
    name, *more = [*directive.values, ""]
    try:
        if name != "group":
            return entries(_alone(directive))
    except WrongValueError as error:
        into.refuse(directive.place, str(error))
        return []
    if more[0] not in groups:
        known = ", ".join(groups) or "none"
        message = f"group {shown(more[0])} is not there; virtual_server_group: {known}"
        into.refuse(directive.place, message)
    return groups.get(more[0], [])


def _alone(directive: Directive) -> Directive:
    """What a virtual_server is for, as a line of a group has it."""
    first, *more = directive.values or [""]
    return type(directive)(first, more, directive.place)


def _virtual(
    entry: Entry, settings: Settings, reals: list[_Real], remarks: list[Remark]
) -> VirtualServer:
    remarks = list(remarks)
    name = settings.get("snmp_name", word, "") or _group_name(settings.directive, entry)
    servers = tuple(_with_port(each.server, entry.port) for each in reals)
    checked = [(server, each.checks) for server, each in zip(servers, reals, strict=True)]
    inhibits = {each.inhibit for each in reals}
    if len(inhibits) > 1:
        what = "inhibit_on_failure of some real servers"
        why = "holds for all of a service: flows of what is down stay"
        remarks.append(Remark(what, why, settings.directive.place))
    health = agreed(checked, entry.port, remarks, settings.directive.place, keep=True in inhibits)
    persistence, granularity = _persistence(settings, entry)
    return VirtualServer(
        place=settings.directive.place,
        protocol=_protocol(settings, entry, remarks),
        vip=entry.vip,
        port=entry.port,
        mark=entry.mark,
        scheduler=settings.get("lvs_sched", _scheduler, DEFAULT_SCHEDULER),
        flags=frozenset(number for name, number in FLAGS.items() if settings.has(name)),
        persistence=persistence,
        granularity=granularity,
        engine=settings.get("persistence_engine", word, ""),
        one_packet=settings.has("ops"),
        reals=servers,
        name=name,
        health=health,
        remarks=tuple(remarks),
    )


def _group_name(directive: Directive, entry: Entry) -> str:
    if directive.values[:1] != ["group"]:
        return ""
    return f"{directive.values[1]}-{entry.vip}-{entry.port or 'any'}"


def _with_port(server: RealServer, port: int) -> RealServer:
    """One that has no port gets the virtual server's."""
    if server.port or not port:
        return server
    return RealServer(
        address=server.address,
        port=port,
        method=server.method,
        weight=server.weight,
        tunnel=server.tunnel,
        upper=server.upper,
        lower=server.lower,
        place=server.place,
    )


def _protocol(settings: Settings, entry: Entry, remarks: list[Remark]) -> str:
    protocol = settings.get("protocol", _known_protocol, "")
    if not protocol and entry.vip is not None:
        why = "is not said: keepalived takes UDP then (before 2.0 TCP)"
        remarks.append(Remark("protocol", why, settings.directive.place))
    return protocol.lower() or "udp"


def _known_protocol(directive: Directive) -> str:
    protocol = word(directive).upper()
    if protocol not in _PROTOCOLS:
        allowed = ", ".join(_PROTOCOLS)
        raise WrongValueError(f"protocol {shown(protocol)} is not known; allowed: {allowed}")
    return protocol


def _scheduler(directive: Directive) -> str:
    name = word(directive)
    if name not in SCHEDULERS:
        known = ", ".join(SCHEDULERS)
        raise WrongValueError(f"{directive.name} {shown(name)} is not known; allowed: {known}")
    return name


def _persistence(settings: Settings, entry: Entry) -> tuple[int | None, str]:
    """How long clients are remembered, and by which part of their addresses."""

    def read(directive: Directive) -> int | None:
        return whole(directive, 1) if directive.values else PERSISTENCE

    seconds = settings.get("persistence_timeout", read, None)
    granularity = settings.get("persistence_granularity", word, "")
    if seconds is None and (granularity or not entry.port):
        seconds = PERSISTENCE
    if granularity in {"255.255.255.255", "128"}:
        granularity = ""
    return seconds, granularity if "." in granularity or not granularity else f"/{granularity}"


# ---- Real servers --------------------------------------------------------------------------------


def _real(directive: Directive, virtual: Settings, remarks: list[Remark]) -> _Real | None:
    settings = Settings(directive, _KNOWN_REAL, virtual.into, CHECKERS)
    try:
        address, port = end("real_server", directive.values)
    except WrongValueError as error:
        virtual.into.refuse(directive.place, str(error))
        return None
    remarks += _remarks(settings, REAL)
    weight = settings.whole("weight", virtual.whole("weight", 1, least=1))
    method, tunnel = settings.get("lvs_method", _way, virtual.get("lvs_method", _way, _NAT))
    server = RealServer(
        address=address,
        port=port,
        method=method,
        weight=min(1 if weight is None else weight, _MAX_WEIGHT),
        tunnel=tunnel,
        upper=settings.whole("uthreshold", 0) or 0,
        lower=settings.whole("lthreshold", 0) or 0,
        place=directive.place,
    )
    inhibit = settings.switch("inhibit_on_failure", default=virtual.has("inhibit_on_failure"))
    checks = read_checks(settings, Defaults.of(settings, virtual))
    return _Real(server, checks, inhibit)


_NAT: Way = (Method.NAT, IPIP)


def _way(directive: Directive) -> Way:
    name = word(directive)
    if name not in _METHODS:
        allowed = ", ".join(_METHODS)
        raise WrongValueError(f"{directive.name} {shown(name)} is not known; allowed: {allowed}")
    tunnel, options = IPIP, iter(directive.values[1:])
    for option in options:
        if option == "type":
            kind = next(options, "")
            if kind not in TUNNELS:
                message = f"type {shown(kind)} is not known; allowed: {', '.join(TUNNELS)}"
                raise WrongValueError(message)
            tunnel = tunnel._replace(type=kind)
        elif option == "port":
            port = next(options, "")
            if not port.isdecimal() or not 0 < int(port) <= MAX_PORT:
                raise WrongValueError(f"port {shown(port)}: allowed: 1 to {MAX_PORT}")
            tunnel = tunnel._replace(port=int(port))
        elif option == "remcsum":
            tunnel = tunnel._replace(remote_checksum=True)
        elif option not in _TUNNEL_OPTIONS:
            allowed = ", ".join(("type", "port", *_TUNNEL_OPTIONS))
            raise WrongValueError(f"{shown(option)} is not known; allowed: {allowed}")
    return _METHODS[name], tunnel


def _remarks(settings: Settings, whys: Mapping[str, str]) -> list[Remark]:
    """Of what isn't carried over, each name once."""
    return [
        Remark(str(directive), why, directive.place)
        for name, why in whys.items()
        if why and (directive := settings.one(name))
    ]
