# SPDX-License-Identifier: Apache-2.0
"""What is kept of an EndpointSlice: its endpoints, read once, in a fraction of the memory.

There are as many endpoints as pods times the Services that they are in, and nothing else in a
cluster is as many. So of each only the address is kept, beside what is said of it: one object for
all of which the same is said.
"""

from __future__ import annotations

import sys
from collections.abc import Collection
from functools import lru_cache
from itertools import repeat
from typing import TYPE_CHECKING, NamedTuple

from towpath.core.kubernetes.addresses import read_unicast
from towpath.model.kinds import numbers

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from towpath.model.kinds import Address
    from towpath.model.sources.kubernetes.objects import Conditions, Endpoint, EndpointSlice

MANAGED_BY = "endpointslice.kubernetes.io/managed-by"
CONTROLLER = "endpointslice-controller.k8s.io"

READY, SERVING = 2, 1
MOST_UNUSABLE = 3
_FAMILIES = {"IPv4": 4, "IPv6": 6}


class Said(NamedTuple):
    """What is said of an endpoint at one port."""

    port: int
    rank: int
    """2: ready. 1: terminating, and serves. 0: neither; it gets no connections."""
    node: str | None
    zones: frozenset[str] | None
    """That it is meant for; None: nothing is said."""
    nodes: frozenset[str] | None
    held_since: float | None = None
    """When it vanished from all slices; None: it is in one."""

    @property
    def ready(self) -> bool:
        """Whether it gets new connections before all that only serve."""
        return self.rank == READY


@lru_cache(maxsize=4096)
def said_once(
    port: int,
    rank: int,
    node: str | None,
    zones: frozenset[str] | None,
    nodes: frozenset[str] | None,
    held_since: float | None = None,
) -> Said:
    """Return one object for the same: there are some for each node."""
    return Said(port, rank, node, zones, nodes, held_since)


class Found(NamedTuple):
    """An endpoint at one port."""

    address: Address
    said: Said


class Listed(Collection[Found]):
    """Endpoints in an order, each of which is made when it is asked for."""

    __slots__ = ("_addresses", "_said")

    def __init__(self, found: Collection[Found] = ()) -> None:
        self._addresses = tuple([each.address for each in found])
        said = tuple([each.said for each in found])
        # Where no nodes are named the same is said of all.
        self._said = said[:1] if said.count(said[0] if said else None) == len(said) else said

    def __iter__(self) -> Iterator[Found]:
        """Yield each."""
        return map(Found, self._addresses, self._each())

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._addresses)

    def __contains__(self, found: object) -> bool:
        """Whether one of them is this."""
        return any(each == found for each in self)

    def __eq__(self, other: object) -> bool:
        """Whether the other's are the same in the same order."""
        if not isinstance(other, Listed):
            return NotImplemented
        return (self._addresses, self._said) == (other._addresses, other._said)

    __hash__ = None  # type: ignore[assignment]

    @property
    def numbers(self) -> list[int]:
        """A number for each one's address."""
        return numbers(self._addresses)

    def _each(self) -> Iterable[Said]:
        return repeat(*self._said) if len(self._said) == 1 else self._said

    @property
    def held(self) -> int:
        """How many are in no slice any more."""
        if len(self._said) == 1 and self._said[0].held_since is None:
            return 0
        return sum(each.said.held_since is not None for each in self)

    def names(self, node: str) -> bool:
        """Whether one is on a node of this name."""
        return any(each.node == node for each in self._said)


class Port(NamedTuple):
    """A port of all endpoints of a slice."""

    name: str
    protocol: str
    number: int | None


class Slice(NamedTuple):
    """A slice of a Service."""

    name: str
    family: int | None
    managed: bool
    """The cluster's own controller has written it."""
    owners: tuple[str, ...]
    """UIDs of the Services that it was made for."""
    ports: tuple[Port, ...]
    filled: bool
    """It lists something, of whatever use."""
    serves: bool
    """Some of that would get connections."""
    endpoints: Listed
    """Those with addresses that can be used, as they are at the first port."""
    pods: str = ""
    """What they are called, line by line, if they are pods: one text takes a third of ten."""
    unusable: tuple[str, ...] = ()
    """Addresses that can't be used, and why: a few."""

    def pod(self, address: Address) -> str | None:
        """Return what the pod is called that has an address; None: none is said to."""
        for each, name in zip(self.endpoints, self.pods.split("\n"), strict=False):
            if each.address == address:
                return name or None
        return None


def read(found: EndpointSlice) -> Slice:
    """Return what of a slice is kept."""
    meta = found.metadata
    ports = _ports_once(
        tuple(
            Port(sys.intern(each.name or ""), sys.intern(each.protocol or "TCP"), each.port)
            for each in found.ports or ()
        )
    )
    first = next((each.number for each in ports), None) or 0
    listed = found.endpoints or ()
    owners = meta.owner_references or ()
    family = _FAMILIES.get(found.address_type)
    unusable: list[str] = []
    usable = list(_endpoints(listed, first, family, unusable))
    return Slice(
        meta.name,
        family,
        meta.label(MANAGED_BY) == CONTROLLER,
        tuple(each.uid for each in owners if each.kind == "Service"),
        ports,
        bool(listed),
        any(_rank(each.conditions) for each in listed),
        Listed([each for each, _ in usable]),
        "\n".join(pod for _, pod in usable).rstrip("\n"),
        tuple(unusable[:MOST_UNUSABLE]),
    )


def _endpoints(
    listed: Iterable[Endpoint], port: int, family: int | None, unusable: list[str]
) -> Iterator[tuple[Found, str]]:
    """Endpoints, and what those are called that are pods; notes addresses that can't be used."""
    for each in listed:
        if not each.addresses:
            continue
        try:
            address = read_unicast(each.addresses[0])
        except ValueError as error:
            unusable.append(f"{each.addresses[0]!r}: {error}")
            continue
        if family is not None and address.version != family:
            unusable.append(f"{each.addresses[0]!r}: it is none of IPv{family}")
            continue
        zones = nodes = None
        if each.hints is not None:
            zones = _names(each.hints.for_zones)
            nodes = _names(each.hints.for_nodes)
        node = None if each.node_name is None else sys.intern(each.node_name)
        target = each.target_ref
        pod = target.name if target is not None and target.kind == "Pod" else None
        yield Found(address, said_once(port, _rank(each.conditions), node, zones, nodes)), pod or ""


def _names(zones: Iterable[object] | None) -> frozenset[str] | None:
    return _once(frozenset(getattr(each, "name", "") for each in zones)) if zones else None


@lru_cache(maxsize=256)
def _ports_once(ports: tuple[Port, ...]) -> tuple[Port, ...]:
    """Return one object for those that are equal: most Services have the same few ports."""
    return ports


@lru_cache(maxsize=4096)
def _once(names: frozenset[str]) -> frozenset[str]:
    """Return one object for those that are equal: there are few zones."""
    return names


def _rank(conditions: Conditions | None) -> int:
    if conditions is None or conditions.ready or conditions.ready is None:
        return READY
    serving = conditions.serving if conditions.serving is not None else False
    return SERVING if serving and conditions.terminating else 0
