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
from towpath.core.kubernetes.slices import READY, Found, Listed, said_once

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

    from towpath.core.kubernetes.slices import Port, Said, Slice
    from towpath.model.kinds import Address
    from towpath.model.sources.kubernetes.objects import Service, ServicePort

SERVICE_NAME = "kubernetes.io/service-name"

HOLD_SECONDS = 60.0
"""A held endpoint goes with the first word of its Service's slices that comes later than this.
While nobody writes slices nothing is known to have changed."""


Key: TypeAlias = tuple[int, str, int]
"""A Service's port and protocol, and the family."""
Endpoints: TypeAlias = dict[Key, Listed]
"""Each address once."""


def merge(
    service: Service,
    slices: Iterable[Slice],
    before: Endpoints,
    is_gone: Callable[[str], bool],
    now: float,
) -> tuple[Endpoints, list[Refusal]]:
    """Return the endpoints of each port and family, and what of them can't be used.

    ``slices``: as they were told, the latest last. ``before``: what this returned the last time.
    ``is_gone`` says of a node's name that there is no such node; only what the cluster's own
    controller has written is asked about.
    """
    refusals: list[Refusal] = []
    by_family: dict[int, list[Slice]] = {4: [], 6: []}
    for each in slices:
        if each.owners and service.metadata.uid not in each.owners:
            continue  # of another
        if each.family is None:
            refusals.append(_of_no_family(service, each))
            continue
        by_family[each.family].append(each)
        if each.unusable:
            refusals.append(_unusable(service, each))
    merged: Endpoints = {}
    for port in service.spec.ports or ():
        for family, listed in by_family.items():
            key = (port.port, port.protocol, family)
            made = _at_port(port, listed, is_gone)
            if _disagree(port, listed):
                gone = _Gone(_ranks(listed), is_gone, now)
                made += _held(made, before.get(key, ()), gone)
            if made:
                merged[key] = _listed(made, listed)
            lacking = [each for each in listed if not made or _is_astray(service, each)]
            refusals += _unmatched(service, port, lacking)
    return merged, list(dict.fromkeys(refusals))


def _listed(found: Collection[Found], slices: Iterable[Slice]) -> Listed:
    """Return endpoints as one; of one slice, as nearly always, with what that has of them."""
    made = Listed(found)
    return next((each.endpoints for each in slices if each.endpoints == made), made)


def _number(ports: Iterable[Port], wanted: ServicePort) -> int | None:
    """The number of a Service's port in a slice. Ports match by name, and by protocol."""
    for each in ports:
        if each.name == wanted.name and each.protocol == wanted.protocol and each.number:
            return each.number
    return None


def _at_port(
    port: ServicePort, listed: Iterable[Slice], is_gone: Callable[[str], bool]
) -> list[Found]:
    """Each address once."""
    found: dict[int, Found] = {}
    for told in listed:  # the latest last
        number = _number(told.ports, port)
        if number is None:
            continue
        for which, endpoint in zip(told.endpoints.numbers, told.endpoints, strict=True):
            address, said = endpoint
            if not said.rank:
                continue
            if told.managed and said.node is not None and is_gone(said.node):
                continue
            at_port = said.port == number
            each = endpoint if at_port else Found(address, said_once(number, *said[1:]))
            other = found.get(which)
            if other is None or _better(each.said, other.said, port.target_port):
                found[which] = each
    return list(found.values())


def _better(each: Said, other: Said, target: int | str | None) -> bool:
    """Whether what is said later of an address holds."""
    if each.rank != other.rank:
        return each.rank > other.rank
    return each.port == other.port or other.port != target


def _disagree(port: ServicePort, listed: Iterable[Slice]) -> bool:
    """Whether slices have not all been written since ports have changed."""
    filled = [each for each in listed if each.filled]
    ports = {frozenset(found.ports) for found in filled}
    unknown = all(_number(found.ports, port) is None for found in filled)
    return len(ports) > 1 or (bool(filled) and unknown)


class _Gone(NamedTuple):
    """What is known of endpoints that aren't at a port any more."""

    ranks: Mapping[Address, int]
    """Of all that are listed, at whatever port."""
    node: Callable[[str], bool]
    now: float


def _ranks(listed: Iterable[Slice]) -> dict[Address, int]:
    found: dict[Address, int] = {}
    for told in listed:
        for each in told.endpoints:
            found[each.address] = max(found.get(each.address, 0), each.said.rank)
    return found


def _held(made: Iterable[Found], before: Iterable[Found], gone: _Gone) -> list[Found]:
    """Those that were ready, and of which nothing is said, or the same at other ports."""
    there, found = {each.address for each in made}, []
    for address, was in before:
        if address in there or not was.ready or (was.node is not None and gone.node(was.node)):
            continue
        since = gone.now if was.held_since is None else was.held_since
        if gone.ranks.get(address, READY) == READY and gone.now - since <= HOLD_SECONDS:
            found.append(Found(address, was._replace(held_since=since)))
    return found


def _is_astray(service: Service, found: Slice) -> bool:
    """Whether a slice serves no port, though others do: a person's, and for good.

    The controller's own are like that for a while.
    """
    wanted = service.spec.ports or ()
    return not found.managed and all(_number(found.ports, each) is None for each in wanted)


def _unusable(service: Service, found: Slice) -> Refusal:
    """Endpoints that nothing can be sent to."""
    what = f"EndpointSlice {found.name} has addresses that can't be served: "
    where = service.metadata
    return Refusal(
        *("Service", where.namespace, where.name, "InvalidAddress"),
        what + "; ".join(found.unusable),
    )


def _of_no_family(service: Service, found: Slice) -> Refusal:
    """Endpoints of a kind that later versions may know."""
    where = service.metadata
    what = f"EndpointSlice {found.name} isn't served: its addressType is neither IPv4 nor IPv6"
    return Refusal("Service", where.namespace, where.name, "AddressTypeNotSupported", what)


def _unmatched(service: Service, port: ServicePort, listed: Iterable[Slice]) -> Iterator[Refusal]:
    """Slices that have endpoints, of which none has the port."""
    for found in listed:
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
