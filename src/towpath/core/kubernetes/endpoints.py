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

from towpath.core.kubernetes.problems import Refusal
from towpath.core.kubernetes.slices import READY, Found, Slice

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from towpath.core.kubernetes.slices import Port
    from towpath.model.kinds import Address
    from towpath.model.sources.kubernetes.objects import Service, ServicePort

SERVICE_NAME = "kubernetes.io/service-name"

HOLD_SECONDS = 60.0
"""A held endpoint goes with the first word of its Service's slices that comes later than this.
While nobody writes slices nothing is known to have changed."""


Key: TypeAlias = tuple[int, str, int]
"""A Service's port and protocol, and the family."""
Endpoints: TypeAlias = dict[Key, tuple[Found, ...]]
"""Each address once."""


class Known(NamedTuple):
    """A slice, and when it was told."""

    order: int
    slice: Slice


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
    for known in sorted(slices, key=lambda each: each.order):
        found_in = known.slice
        of_another = found_in.owners and service.metadata.uid not in found_in.owners
        if found_in.family is not None and not of_another:
            by_family[found_in.family].append(known)
    merged: Endpoints = {}
    for port in service.spec.ports or ():
        for family, listed in by_family.items():
            key = (port.port, port.protocol, family)
            made = _at_port(port, listed, is_gone)
            if _disagree(port, listed):
                gone = _Gone(_ranks(listed), is_gone, now)
                made |= {each.address: each for each in _held(made, before.get(key, ()), gone)}
            if made:
                merged[key] = tuple(made.values())
            elif listed:
                refusals += _unmatched(service, port, listed)
    return merged, list(dict.fromkeys(refusals))


def _number(ports: Iterable[Port], wanted: ServicePort) -> int | None:
    """The number of a Service's port in a slice. Ports match by name, and by protocol."""
    for each in ports:
        if each.name == wanted.name and each.protocol == wanted.protocol and each.number:
            return each.number
    return None


def _at_port(
    port: ServicePort, listed: Iterable[Known], is_gone: Callable[[str], bool]
) -> dict[Address, Found]:
    found: dict[Address, Found] = {}
    for known in listed:  # the latest last
        number = _number(known.slice.ports, port)
        if number is None:
            continue
        managed = known.slice.managed
        for endpoint in known.slice.endpoints:
            if not endpoint.rank:
                continue
            if managed and endpoint.node is not None and is_gone(endpoint.node):
                continue
            each = endpoint if endpoint.port == number else endpoint._replace(port=number)
            other = found.get(each.address)
            if other is None or _better(each, other, port.target_port):
                found[each.address] = each
    return found


def _better(each: Found, other: Found, target: int | str | None) -> bool:
    """Whether what is said later of an address holds."""
    if each.rank != other.rank:
        return each.rank > other.rank
    return each.port == other.port or other.port != target


def _disagree(port: ServicePort, listed: Iterable[Known]) -> bool:
    """Whether slices have not all been written since ports have changed."""
    filled = [each.slice for each in listed if each.slice.filled]
    ports = {frozenset(found.ports) for found in filled}
    unknown = all(_number(found.ports, port) is None for found in filled)
    return len(ports) > 1 or (bool(filled) and unknown)


class _Gone(NamedTuple):
    """What is known of endpoints that aren't at a port any more."""

    ranks: Mapping[Address, int]
    """Of all that are listed, at whatever port."""
    node: Callable[[str], bool]
    now: float


def _ranks(listed: Iterable[Known]) -> dict[Address, int]:
    found: dict[Address, int] = {}
    for known in listed:
        for each in known.slice.endpoints:
            found[each.address] = max(found.get(each.address, 0), each.rank)
    return found


def _held(made: Mapping[Address, Found], before: Iterable[Found], gone: _Gone) -> Iterator[Found]:
    """Those that were ready, and of which nothing is said, or the same at other ports."""
    for each in before:
        address = each.address
        if address in made or not each.ready or (each.node is not None and gone.node(each.node)):
            continue
        since = gone.now if each.held_since is None else each.held_since
        if gone.ranks.get(address, READY) == READY and gone.now - since <= HOLD_SECONDS:
            yield each._replace(held_since=since)


def _unmatched(service: Service, port: ServicePort, listed: Iterable[Known]) -> Iterator[Refusal]:
    """Slices that have endpoints, of which none has the port."""
    for known in listed:
        found = known.slice
        if not found.serves or _number(found.ports, port) is not None:
            continue
        have = ", ".join(repr(each.name) for each in found.ports) or "none"
        yield Refusal(
            "Service",
            service.metadata.namespace,
            service.metadata.name,
            "PortNotInSlice",
            f"port {port.name!r} ({port.protocol}) has no number in EndpointSlice"
            f" {found.name}, whose ports are: {have}; ports match by name",
        )
