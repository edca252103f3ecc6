# SPDX-License-Identifier: Apache-2.0
"""One list of endpoints from all slices of a Service, also while these are wrong for a while.

Slices are notes about endpoints, written one after another. While the ports of a Service change
they are dealt anew: ready endpoints are in no slice for a while, or in two. So

- an address counts once, as the best that is said of it: ready before terminating;
- where slices disagree on ports, the Service's own number holds, then the later slice;
- a ready endpoint that vanishes while slices disagree, without ever having been terminating, is
  held with the port that it had until they agree;
- what was made for another Service of that name doesn't count.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from towpath.core.kubernetes.addresses import read_unicast
from towpath.core.kubernetes.problems import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from towpath.model.kinds import Address
    from towpath.model.sources.kubernetes.objects import (
        Conditions,
        Endpoint,
        EndpointPort,
        EndpointSlice,
        Service,
        ServicePort,
    )

SERVICE_NAME = "kubernetes.io/service-name"
MANAGED_BY = "endpointslice.kubernetes.io/managed-by"
CONTROLLER = "endpointslice-controller.k8s.io"
MIRROR = "endpointslicemirroring-controller.k8s.io"

HOLD_SECONDS = 60.0
"""A held endpoint goes with the first word of its Service's slices that comes later than this.
While nobody writes slices nothing is known to have changed."""

_FAMILIES = {"IPv4": 4, "IPv6": 6}
_READY, _SERVING = 2, 1


class Found(NamedTuple):
    """An endpoint at one port."""

    address: Address
    port: int
    rank: int
    """2: ready. 1: terminating, and serves. What does neither isn't there."""
    node: str | None
    zones: frozenset[str] | None
    """That it is meant for; None: nothing is said."""
    nodes: frozenset[str] | None
    held_since: float | None = None
    """When it vanished from all slices; None: it is in one."""

    @property
    def ready(self) -> bool:
        """Whether it gets new connections before all that only serve."""
        return self.rank == _READY


Key: TypeAlias = tuple[int, str, int]
"""A Service's port and protocol, and the family."""
Endpoints: TypeAlias = dict[Key, dict["Address", Found]]


class Known(NamedTuple):
    """A slice, and when it was told."""

    order: int
    slice: EndpointSlice


def merge(
    service: Service,
    slices: Iterable[Known],
    before: Endpoints,
    is_gone: Callable[[str], bool],
    now: float,
) -> tuple[Endpoints, list[Refusal]]:
    """Return the endpoints of each port and family, and what of them can't be used.

    ``before``: what this returned the last time. ``is_gone`` says of a node's name that there is
    no such node; only what the cluster's own controller has written is asked about.
    """
    refusals: list[Refusal] = []
    by_family: dict[int, list[Known]] = {4: [], 6: []}
    for known in sorted(slices):
        family = _FAMILIES.get(known.slice.address_type)
        if family is not None and _is_of(known.slice, service):
            by_family[family].append(known)
    found: Endpoints = {}
    for port in service.spec.ports or ():
        for family, listed in by_family.items():
            key = (port.port, port.protocol, family)
            made = _at_port(port, listed, is_gone)
            if _disagree(port, listed):
                gone = _Gone(_ranks(listed), is_gone, now)
                made |= dict(_held(made, before.get(key, {}), gone))
            if made:
                found[key] = made
            elif listed:
                refusals += _unmatched(service, port, listed)
    return found, list(dict.fromkeys(refusals))


def _is_of(found: EndpointSlice, service: Service) -> bool:
    owners = found.metadata.owner_references or ()
    uids = [each.uid for each in owners if each.kind == "Service"]
    return not uids or service.metadata.uid in uids


def _number(ports: Iterable[EndpointPort], wanted: ServicePort) -> int | None:
    """The number of a Service's port in a slice. Ports match by name, and by protocol."""
    for each in ports:
        name, protocol = each.name or "", each.protocol or "TCP"
        if (name, protocol) == (wanted.name, wanted.protocol) and each.port:
            return each.port
    return None


def _at_port(
    port: ServicePort, listed: Iterable[Known], is_gone: Callable[[str], bool]
) -> dict[Address, Found]:
    found: dict[Address, Found] = {}
    for known in listed:  # the latest last
        number = _number(known.slice.ports or (), port)
        if number is None:
            continue
        managed = known.slice.metadata.label(MANAGED_BY) == CONTROLLER
        for endpoint in known.slice.endpoints or ():
            each = _read(endpoint, number)
            if each is None or (managed and each.node is not None and is_gone(each.node)):
                continue
            other = found.get(each.address)
            if other is None or _better(each, other, port.target_port):
                found[each.address] = each
    return found


def _better(each: Found, other: Found, target: int | str | None) -> bool:
    """Whether what is said later of an address holds."""
    if each.rank != other.rank:
        return each.rank > other.rank
    return each.port == other.port or other.port != target


def _read(endpoint: Endpoint, port: int) -> Found | None:
    """An endpoint; None: it gets no connections, or has no address that can be used."""
    rank = _rank(endpoint.conditions)
    if not rank or not endpoint.addresses:
        return None
    try:
        address = read_unicast(endpoint.addresses[0])
    except ValueError:
        return None
    zones = nodes = None
    if endpoint.hints is not None:
        zones = _names(endpoint.hints.for_zones)
        nodes = _names(endpoint.hints.for_nodes)
    return Found(address, port, rank, endpoint.node_name, zones, nodes)


def _names(zones: Iterable[object] | None) -> frozenset[str] | None:
    return frozenset(getattr(each, "name", "") for each in zones) if zones else None


def _rank(conditions: Conditions | None) -> int:
    if conditions is None or conditions.ready or conditions.ready is None:
        return _READY
    serving = conditions.serving if conditions.serving is not None else False
    return _SERVING if serving and conditions.terminating else 0


def _disagree(port: ServicePort, listed: Iterable[Known]) -> bool:
    """Whether slices have not all been written since ports have changed."""
    filled = [each.slice for each in listed if each.slice.endpoints]
    ports = {
        frozenset((each.name or "", each.port, each.protocol) for each in found.ports or ())
        for found in filled
    }
    unknown = all(_number(found.ports or (), port) is None for found in filled)
    return len(ports) > 1 or (bool(filled) and unknown)


class _Gone(NamedTuple):
    """What is known of endpoints that aren't at a port any more."""

    ranks: Mapping[str, int]
    """Of all that are listed, at whatever port."""
    node: Callable[[str], bool]
    now: float


def _ranks(listed: Iterable[Known]) -> dict[str, int]:
    found: dict[str, int] = {}
    for known in listed:
        for each in known.slice.endpoints or ():
            for address in (each.addresses or ())[:1]:
                found[address] = max(found.get(address, 0), _rank(each.conditions))
    return found


def _held(
    made: Mapping[Address, Found], before: Mapping[Address, Found], gone: _Gone
) -> Iterator[tuple[Address, Found]]:
    """Those that were ready, and of which nothing is said, or the same at other ports."""
    for address, each in before.items():
        if address in made or not each.ready or (each.node is not None and gone.node(each.node)):
            continue
        since = gone.now if each.held_since is None else each.held_since
        if gone.ranks.get(str(address), _READY) == _READY and gone.now - since <= HOLD_SECONDS:
            yield address, each._replace(held_since=since)


def _unmatched(service: Service, port: ServicePort, listed: Iterable[Known]) -> Iterator[Refusal]:
    """Slices that have endpoints, of which none has the port."""
    for known in listed:
        found = known.slice
        if not any(_rank(each.conditions) for each in found.endpoints or ()):
            continue
        if _number(found.ports or (), port) is not None:
            continue
        have = ", ".join(repr(each.name or "") for each in found.ports or ()) or "none"
        yield Refusal(
            "Service",
            service.metadata.namespace,
            service.metadata.name,
            "PortNotInSlice",
            f"port {port.name!r} ({port.protocol}) has no number in EndpointSlice"
            f" {found.metadata.name}, whose ports are: {have}; ports match by name",
        )
