# SPDX-License-Identifier: Apache-2.0
"""How it is found out whether a backend can be sent flows to."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from towpath.model.kinds import (
    PORT,
    CommandLine,
    DomainName,
    Flag,
    GrpcName,
    HostName,
    Integer,
    OrNone,
    Payload,
    Seconds,
    StatusCodes,
    UrlPath,
    Word,
)

if TYPE_CHECKING:
    from towpath.model.decode import Findings, Tree
    from towpath.model.kinds import Address, Prefix
    from towpath.model.problems import FieldPath

# Read by pydantic when it makes a schema of a dataclass.
_PYDANTIC = {"extra": "forbid", "use_attribute_docstrings": True}

MAX_SECONDS = 3600.0
MIN_SECONDS = 0.05
MAX_RESULTS = 100


class CheckType(enum.StrEnum):
    """What a check does."""

    TCP = "tcp"
    """Connects."""
    HTTP = "http"
    """Sends a request and looks at the status of the answer."""
    HTTPS = "https"
    """The same through TLS."""
    UDP = "udp"
    """Sends a datagram and looks at what comes back."""
    DNS = "dns"
    """Asks a question of DNS, and looks at the answer's code."""
    GRPC = "grpc"
    """Asks for the health of a service by gRPC's own protocol."""
    GRPCS = "grpcs"
    """The same through TLS."""
    COMMAND = "command"
    """Runs a program and looks at its exit status."""


class AllFailed(enum.StrEnum):
    """What is done when no backend of a service is up."""

    OPEN = "open"
    """All get flows as if they were up: a check that is wrong itself does no harm."""
    CLOSED = "closed"
    """None gets new flows: their packets are dropped and counted."""


class OnDown(enum.StrEnum):
    """What becomes of the flows that a backend has when it is found down."""

    KEEP = "keep"
    """They stay: a backend that isn't well may still finish them."""
    MOVE = "move"
    """They go to others at once, which don't know them."""


@dataclass(frozen=True, slots=True)
class Health:
    """A service's health check, carried out for each of its backends.

    All but command go in the way of clients' packets: in the tunnel to the backend, for the
    service's VIP; with forwarding snat to the backend's own address.
    """

    __pydantic_config__: ClassVar[Any] = _PYDANTIC

    type: Annotated[CheckType, Word(of=CheckType)]
    """tcp: connect. http, https: a request. udp: a datagram. dns: a question, over UDP. grpc and
    grpcs: gRPC's health protocol. command: a program on this node."""
    interval: Annotated[float, Seconds(0.1, MAX_SECONDS)] = 5.0
    """From the beginning of one check to that of the next, in seconds or as 500ms, 5s, 1m."""
    timeout: Annotated[float, Seconds(MIN_SECONDS, MAX_SECONDS)] = 2.0
    """When a check without an answer has failed. The next one begins after it at the soonest."""
    rise: Annotated[int, Integer(1, MAX_RESULTS)] = 2
    """So many checks in a row that pass make a backend that is down one that is up."""
    fall: Annotated[int, Integer(1, MAX_RESULTS)] = 3
    """So many checks in a row that fail make a backend that is up one that is down."""
    port: Annotated[int | None, OrNone(PORT)] = None
    """Port of the VIP to connect or send to. null: the first of the service."""
    path: Annotated[str, UrlPath()] = "/"
    """http, https: what is asked for."""
    host: Annotated[str | None, HostName()] = None
    """http, https, grpc, grpcs: the host that is asked for, and that a certificate is for. null:
    the VIP."""
    status: Annotated[str, StatusCodes()] = "200-399"
    """http, https: codes of the answer that are good; a code, a range, a list of both."""
    verify: Annotated[bool, Flag()] = False
    """https, grpcs: whether the certificate must be valid for the host, by this node's
    authorities."""
    command: Annotated[tuple[str, ...], CommandLine()] = ()
    """command: program and arguments; exit status 0 is good. Only in a configuration file."""
    on_all_failed: Annotated[AllFailed, Word(of=AllFailed)] = AllFailed.OPEN
    """When no backend is up: open, all get flows; closed, none does."""
    on_down: Annotated[OnDown | None, OrNone(Word(of=OnDown))] = None
    """Flows of a backend that is found down: keep, they stay; move, they go to others at once.
    null: move for UDP, keep for TCP."""
    send: Annotated[str, Payload()] = ""
    """udp: what is sent, as text, or as hex: and its digits."""
    expect: Annotated[str, Payload()] = ""
    """udp: what an answer must have in it, written likewise. Empty: any answer is good."""
    query: Annotated[str, DomainName()] = "."
    """dns: the name that is asked for, with type A, or NS of the root. Any answer but SERVFAIL,
    REFUSED and others that say that the server can't or won't answer is good: NOERROR, NXDOMAIN."""

    grpc_service: Annotated[str, GrpcName()] = ""
    """grpc, grpcs: the service that must be SERVING. Empty: the server as a whole."""


DATAGRAMS = frozenset({CheckType.UDP, CheckType.DNS})
"""Types of checks that are made over UDP."""
_HTTP = (CheckType.HTTP, CheckType.HTTPS)
_GRPC = (CheckType.GRPC, CheckType.GRPCS)
_ONLY_FOR: dict[str, tuple[CheckType, ...]] = {
    "path": _HTTP,
    "host": (*_HTTP, *_GRPC),
    "status": _HTTP,
    "verify": (CheckType.HTTPS, CheckType.GRPCS),
    "grpc_service": _GRPC,
    "send": (CheckType.UDP,),
    "expect": (CheckType.UDP,),
    "query": (CheckType.DNS,),
    "command": (CheckType.COMMAND,),
    "port": tuple(CheckType),
}


def check_health_tree(service: Tree, path: FieldPath, found: Findings) -> None:
    """Check what spans the fields of a service's health check, ``path`` being the service's."""
    health, at = service.get("health"), (*path, "health")
    if health is None:
        return
    kind = health.get("type")
    if kind is None:
        return
    for name, kinds in _ONLY_FOR.items():
        given = health.get(name) != Health.__dataclass_fields__[name].default
        if name in health and given and kind not in kinds:
            allowed = " and ".join(kinds)
            found.add((*at, name), f"is not for a check of type {kind}; allowed: with {allowed}")
    if kind is CheckType.UDP and health.get("send") == "":
        found.add((*at, "send"), "is missing; allowed: " + Payload.allowed)
    if kind is CheckType.COMMAND and health.get("command") == ():
        found.add((*at, "command"), "is missing; allowed: " + CommandLine.allowed)
    ports = service.get("port")
    if kind is not CheckType.COMMAND and health.get("port", 0) is None and first_port(ports) == 0:
        found.add((*at, "port"), "is missing; allowed: 1 to 65535, as the service is for any port")


def first_port(ports: Any) -> int:
    """Return the lowest of a service's ports, 0 if it is for any."""
    return ports if isinstance(ports, int) else getattr(ports, "first", 1)


def checked_address(vip: Address | Prefix) -> Address:
    """Return the address that checks connect to: of a prefix the second, which is no network's."""
    return vip if isinstance(vip, IPv4Address | IPv6Address) else vip.network_address + 1
