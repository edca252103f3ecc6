# SPDX-License-Identifier: Apache-2.0
"""Next hops, and what becomes of a packet for an address."""

from dataclasses import dataclass
from typing import Literal

from towpath.documents.services import ServiceName
from towpath.model.kinds import Address


@dataclass(frozen=True, slots=True)
class NextHop:
    """A host on a link that packets are sent to, and what the kernel knows of it."""

    address: Address
    device: str
    state: str
    """As ``ip neigh`` calls it, such as reachable, stale, incomplete, failed; none: no entry."""
    mac: str | None
    """Where packets go; None: it isn't resolved."""
    owner: Literal["towpath", "kernel", "other", "none"]
    """Whose entry it is: other means the user's or another program's, which is left alone."""
    held: bool
    """It is kept though its device loses its carrier."""
    age: float | None
    """Seconds since something said that it is there; None: nothing has."""
    probes: int
    """Solicitations sent since then."""
    destinations: tuple[Address, ...]
    """Which backends, and others that packets are sent to, are reached by it."""
    refused: str | None = None
    """Why the kernel doesn't take an entry for it."""


@dataclass(frozen=True, slots=True)
class Unreached:
    """Somewhere that packets can't be sent to."""

    address: Address
    trouble: str
    """Why, for people."""
    reason: str
    """The same as one word, such as no_route, blackhole, own_gateway, no_answer."""


@dataclass(frozen=True, slots=True)
class UnreachedBackend:
    """A backend of a service that packets don't get to."""

    service: ServiceName
    backend: Address
    trouble: str
    """Why, for people."""
    reason: str
    """The same as one word, such as no_route, blackhole, own_gateway, no_answer."""


@dataclass(frozen=True, slots=True)
class Doubtful:
    """Somewhere that packets are sent to, but perhaps by another way than is meant."""

    address: Address
    trouble: str
    """Why, for people."""
    reason: str
    """The same as one word: two_routes."""


@dataclass(frozen=True, slots=True)
class NextHops:
    """All next hops of the datapath."""

    next_hops: tuple[NextHop, ...]
    unreached: tuple[Unreached, ...]
    managed: bool
    """The kernel keeps entries resolved by itself (5.16); otherwise it is reminded."""
    doubtful: tuple[Doubtful, ...] = ()
    """Destinations that two routes are equally good for."""


@dataclass(frozen=True, slots=True)
class Route:
    """What the datapath would do with a packet for an address."""

    destination: Address
    came_in: str
    """The device that the packet comes in on."""
    verdict: str
    """sent, handoff, or the counter of packets that are dropped."""
    why: str
    device: str | None = None
    """Where it goes out of."""
    next_hop: Address | None = None
    """The destination itself if it is on the link."""
    mac: str | None = None
    """None: not resolved."""
    source: Address | None = None
    """The address that it is sent from."""
    mtu: int | None = None
    """Of the path, in bytes."""
