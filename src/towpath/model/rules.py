# SPDX-License-Identifier: Apache-2.0
"""What must hold between fields, between backends and between services.

Rules look at trees of :mod:`towpath.model.decode`: a value that was wrong by
itself is absent, and a rule that would need it says nothing.
"""

from collections.abc import Collection, Iterable, Sequence

from towpath.model.decode import Findings, Tree
from towpath.model.health import check_health_tree
from towpath.model.keys import KeyIndex
from towpath.model.kinds import Address, Prefix
from towpath.model.primes import prime_at_least
from towpath.model.problems import FieldPath, field_path
from towpath.model.quic import check_quic_tree
from towpath.model.service import MAX_TABLE, UDP_ENCAPS, Protocol, Service, ServiceKey
from towpath.model.settings import MARK_BITS, MAX_FOREIGN

_SHOWN = 8
SLOTS_PER_BACKEND = 100
"""A table this many times larger than its backends follows the weights within 1 %."""


def recommended_size(backends: int) -> int:
    """Return the table size recommended for that many backends: a prime."""
    return min(prime_at_least(SLOTS_PER_BACKEND * backends + 1), MAX_TABLE)


def check_service_tree(service: Tree, path: FieldPath, found: Findings) -> None:
    """Check what spans the fields of one service."""
    backends = service.get("backends", [])
    _check_backends(service, backends, (*path, "backends"), found)
    check_health_tree(service, path, found)
    _check_sources(service.get("vip"), service.get("allow_from"), (*path, "allow_from"), found)
    if service.get("forwarding") == "snat":
        _check_families(service.get("vip"), backends, (*path, "backends"), found)
    _check_ports(service, backends, (*path, "backends"), found)
    _check_encap(service, path, found)
    _check_hash(service, (*path, "hash_by"), found)
    _check_flow_timeout(service, (*path, "flow_timeout"), found)
    _check_scope(service, (*path, "scope"), found)
    check_quic_tree(service, path, found)
    _check_routes(service, (*path, "route_from"), found)
    sharing = sum(1 for backend in backends if backend and backend.get("weight") != 0)
    size = service.get("table_size")
    if size is not None and size < sharing:
        found.add(
            (*path, "table_size"),
            f"{size} slots are too few for {sharing} backends; allowed: a prime of at least "
            f"{prime_at_least(sharing)}, recommended: {recommended_size(sharing)}",
        )


def _check_hash(service: Tree, path: FieldPath, found: Findings) -> None:
    """Affinity chooses by the client, too."""
    by = service.get("hash_by")
    if by not in {None, "flow"} and service.get("affinity") is not None:
        found.add(path, f"{by} is no choice beside affinity, which goes by clients; allowed: flow")


def _check_encap(service: Tree, path: FieldPath, found: Findings) -> None:
    """Only tunnels are of a kind, and only UDP has a port."""
    encap, port = service.get("encap"), service.get("encap_port")
    forwarding = service.get("forwarding")
    if encap not in {None, "ipip"} and forwarding not in {None, "dsr"}:
        found.add(
            (*path, "encap"),
            f"{encap} is a kind of tunnel, and forwarding {forwarding} has none; allowed: ipip, or "
            "forwarding: dsr",
        )
    if port is not None and encap is not None and encap not in UDP_ENCAPS:
        found.add(
            (*path, "encap_port"),
            f"{port} is a port of UDP, and encap {encap} has none; allowed: none, or encap: "
            f"{', '.join(sorted(UDP_ENCAPS))}",
        )


def _check_scope(service: Tree, path: FieldPath, found: Findings) -> None:
    """What is for this node only is found in one step, or not at all."""
    vip, port = service.get("vip"), service.get("port")
    if service.get("scope") != "node" or vip is None or port is None:
        return
    if not isinstance(port, int) or isinstance(vip, Prefix):
        found.add(path, "node is for one port of one address; allowed: all")


def _check_flow_timeout(service: Tree, path: FieldPath, found: Findings) -> None:
    """A TCP connection says itself when it ends."""
    if service.get("flow_timeout") is not None and service.get("protocol") == Protocol.TCP:
        found.add(path, "is for protocol udp, and this is tcp; allowed: none")


def _check_sources(
    vip: Address | Prefix | None,
    sources: Sequence[Prefix] | None,
    path: FieldPath,
    found: Findings,
) -> None:
    if vip is None or sources is None:
        return
    if all(prefix.version != vip.version for prefix in sources):
        found.add(
            path,
            f"has no IPv{vip.version} prefix, so that nobody could reach {vip}; allowed: one IPv"
            f"{vip.version} prefix or more, such as those of the clients",
        )


def _check_routes(service: Tree, path: FieldPath, found: Findings) -> None:
    """A source has one route, to backends that the service has."""
    routes = service.get("route_from", [])
    if routes and service.get("scope") == "node":
        found.add(path, "is for what comes in, and scope node is for what doesn't; allowed: none")
    first: dict[Prefix, int] = {}
    for index, route in enumerate(routes):
        at = (*path, index)
        for prefix in (route or {}).get("sources", ()):
            _check_source(service.get("vip"), prefix, (*at, "sources"), found)
            if prefix in first:
                also = field_path((*path, first[prefix]))
                found.add(
                    (*at, "sources"),
                    f"{prefix} is listed twice, first in {also}; allowed: once in a service",
                )
            first.setdefault(prefix, index)
        _check_routed(service, route or {}, (*at, "backends"), found)


def _check_source(
    vip: Address | Prefix | None, prefix: Prefix, path: FieldPath, found: Findings
) -> None:
    if vip is not None and prefix.version != vip.version:
        found.add(
            path,
            f"{prefix} is IPv{prefix.version} but the vip {vip} is IPv{vip.version}; allowed: "
            f"prefixes of IPv{vip.version}",
        )


def _check_routed(service: Tree, route: Tree, path: FieldPath, found: Findings) -> None:
    """Of a route that has its own backends, these are the service's."""
    wanted = route.get("backends")
    if wanted is None or "backends" not in service:
        return
    known = [each["address"] for each in service["backends"] if each and "address" in each]
    some = ", ".join(map(str, known[:_SHOWN])) + (", ..." if len(known) > _SHOWN else "")
    for address in wanted:
        if address not in known and len(known) == len(service["backends"]):
            message = f"{address} is no backend of the service; allowed: {some or 'none is there'}"
            found.add(path, message)
    if not wanted:
        found.add(path, f"is empty; allowed: one backend of the service or more: {some}")


def _check_backends(
    service: Tree, backends: Sequence[Tree | None], path: FieldPath, found: Findings
) -> None:
    vip = service.get("vip")
    first: dict[Address, int] = {}
    for index, backend in enumerate(backends):
        address = backend.get("address") if backend else None
        if address is None:
            continue
        at = (*path, index, "address")
        own = address == vip and not _is_another_port(service, backend)
        if own or (isinstance(vip, Prefix) and address in vip):
            found.add(at, f"{address} is the service's own vip; allowed: another host's address")
        elif vip is not None and (vip.version, address.version) == (6, 4):
            found.add(
                at,
                f"{address} is IPv4 but the vip {vip} is IPv6, which no forwarding carries to an "
                "IPv4 address; allowed: an IPv6 address",
            )
        if address in first:
            also = field_path((*path, first[address]))
            found.add(at, f"{address} is listed twice, first as {also}; allowed: once per service")
        first.setdefault(address, index)


def _is_another_port(service: Tree, backend: Tree | None) -> bool:
    """Whether a backend is a process of this node, at an address of its own that is the VIP."""
    own = backend.get("port") if backend else None
    if backend is None or own is None or own == service.get("port"):
        return False
    translated = service.get("forwarding") == "snat" and backend.get("local") is True
    return translated or service.get("scope") == "node"


def _check_families(
    vip: Address | Prefix | None, backends: Sequence[Tree | None], path: FieldPath, found: Findings
) -> None:
    """Translated packets keep their family. IPv4 backends of IPv6 VIPs are refused for all."""
    for index, backend in enumerate(backends):
        address = backend.get("address") if backend else None
        if vip is not None and address is not None and (vip.version, address.version) == (4, 6):
            found.add(
                (*path, index, "address"),
                f"{address} is IPv6 but the vip {vip} is IPv4, which forwarding snat does not "
                "translate to IPv6; allowed: an IPv4 address",
            )


def _check_ports(
    service: Tree, backends: Sequence[Tree | None], path: FieldPath, found: Findings
) -> None:
    """Only what is translated can go to another port, and many ports can't all go to one."""
    forwarding, port = service.get("forwarding"), service.get("port")
    why = ""
    if forwarding not in {None, "snat"} and service.get("scope") == "all":
        why = f"forwarding {forwarding} does not change ports; allowed: none, or forwarding: snat"
    elif port is not None and not isinstance(port, int):
        why = f"the service is for ports {port}; allowed: none, or a service for one port"
    for index, backend in enumerate(backends if why else ()):
        own = backend.get("port") if backend else None
        if own is not None:
            found.add((*path, index, "port"), f"{own} is the backend's own, but {why}")


def check_foreign(checks: Tree | None, found: Findings) -> None:
    """Check marks of foreign checks: each stands for one backend, all are in one range."""
    path: FieldPath = ("checks", "foreign")
    listed = (checks or {}).get("foreign", [])
    first: dict[int, int] = {}
    ranges = []
    for index, each in enumerate(listed):
        mark = each.get("mark") if each else None
        if mark is None:
            continue
        at = (*path, index, "mark")
        ranges.append(mark >> MARK_BITS)
        low = ranges[0] << MARK_BITS
        high = low + (1 << MARK_BITS) - 1
        if mark in first:
            also = field_path((*path, first[mark]))
            found.add(at, f"{mark} is listed twice, first as {also}; allowed: once")
        elif not low <= mark <= high:
            found.add(at, f"{mark} is in another range than the first; allowed: {low} to {high}")
        first.setdefault(mark, index)
    if len(listed) > MAX_FOREIGN:
        found.add(path, f"has {len(listed)} marks; allowed: up to {MAX_FOREIGN}")
    own = (checks or {}).get("mark")
    if ranges and own is not None and own >> MARK_BITS == ranges[0]:
        found.add(
            ("checks", "mark"),
            f"{own} is in the range of the marks of foreign; allowed: another one",
        )


class Differences:
    """Checks what must differ between services, as they come. ``path``: of their list."""

    def __init__(self, path: FieldPath, found: Findings) -> None:
        self._path = path
        self._found = found
        self._names: dict[str, int] = {}
        self._keys = KeyIndex[int]()

    def check(self, index: int, service: Tree | None) -> None:
        """Compare the service at an index with those before it."""
        if service is None:
            return
        if (name := service.get("name")) is not None:
            first = self._names.setdefault(name, index)
            if first != index:
                self._taken(index, "name", name, first)
        if service.keys() >= {"vip", "port", "protocol", "scope"}:
            key = ServiceKey(*(service[each] for each in ServiceKey._fields))
            if clash := self._keys.clash(key):
                self._taken(index, "vip", clash.key, clash.owner)
            else:
                self._keys.add(key, index)

    def _taken(self, index: int, field: str, what: object, by: int) -> None:
        also = field_path((*self._path, by))
        message = f"{what} is taken by {also}; allowed: one service each"
        self._found.add((*self._path, index, field), message)


def sources_needed(lists: Iterable[tuple[Prefix, ...] | None]) -> int:
    """Return how many prefixes there are in lists of which equal ones are kept once."""
    return sum(len(prefixes) for prefixes in set(lists) if prefixes)


def route_slots(backends: int, table_size: int) -> int:
    """Return how large the table of a route is: one backend needs no more than a slot."""
    return 1 if backends == 1 else table_size


def needed(services: Collection[Service]) -> dict[str, int]:
    """Return what services take of limits, but of ports."""
    routes = [(route, each) for each in services for route in each.route_from]
    return {
        "services": len(services) + len(routes),
        "backends": sum(len(each.backends) for each in services),
        "table_slots": sum(each.table_size for each in services if each.backends)
        + sum(route_slots(len(route.backends), each.table_size) for route, each in routes),
        "sources": sources_needed(each.allow_from for each in services)
        + sum(len(route.sources) for route, _ in routes),
    }


def check_capacity(services: Sequence[Tree | None], limits: Tree, found: Findings) -> None:
    """Check that the services fit into the limits."""
    present = [service for service in services if service]
    routes = [
        (route, service) for service in present for route in service.get("route_from", ()) if route
    ]
    needs = {
        "services": len(present) + len(routes),
        "backends": sum(len(service.get("backends", ())) for service in present),
        "table_slots": sum(
            service.get("table_size", 0) for service in present if service.get("backends")
        )
        + sum(
            route_slots(len(route.get("backends", ())), service.get("table_size", 0))
            for route, service in routes
        ),
        "sources": sources_needed(service.get("allow_from") for service in present)
        + sum(len(route.get("sources", ())) for route, _ in routes),
    }
    for name, need in needs.items():
        if limits.get(name, need) < need:
            found.add(
                ("limits", name),
                f"{limits[name]} is too few for the services listed; allowed: {need} or more",
            )
