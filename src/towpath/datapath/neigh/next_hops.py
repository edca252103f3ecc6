# SPDX-License-Identifier: Apache-2.0
"""By which next hops the datapath's destinations are reached, as the kernel's routes have it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from towpath.kernel.net import routes
from towpath.kernel.net.neighbours import Key

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from towpath.datapath.address import Address
    from towpath.kernel.net.link_state import Device
    from towpath.kernel.net.messages import Netlink
    from towpath.kernel.net.routes import Route


class Destination(NamedTuple):
    """Somewhere that the datapath sends packets to."""

    address: Address
    source: Address | None = None
    """The address of this node that it sends from, for rules that look at it."""
    on_link: bool = False
    """It has to be on the link: packets go to that very host, by no gateway."""


@dataclass(frozen=True, slots=True)
class Way:
    """How a destination is reached."""

    hops: tuple[Key, ...] = ()
    """Next hops that have to be resolved, each of which packets may take."""
    trouble: str | None = None
    """Why it isn't reached; None: it is."""


NOT_ASKED = Way(trouble="not looked up yet")

REASONS = {
    "none": "no route",
    "local": "it is this node's own address",
    "broadcast": "it is a broadcast address",
    "anycast": "it is an anycast address of this node",
    "multicast": "it is a multicast address",
}
"""Why nothing is sent by a route of that type; other types are their own reason."""


def find(
    netlink: Netlink, destinations: Iterable[Destination], known: Mapping[int, Device]
) -> dict[Destination, Way]:
    """Look up all destinations. ``known``: all devices, by interface index."""
    wanted: dict[Destination, Way] = dict.fromkeys(destinations, NOT_ASKED)
    found = zip(wanted, _ask(netlink, list(wanted)), strict=True)
    for destination, route in found:
        wanted[destination] = way(destination, route, known)
    return wanted


def _ask(netlink: Netlink, destinations: Sequence[Destination]) -> list[Route]:
    found = routes.ask(
        netlink, [routes.Question(each.address, each.source) for each in destinations]
    )
    # The kernel answers as for a blackhole if an IPv4 source isn't an address of this node.
    again = [
        number
        for number, (each, route) in enumerate(zip(destinations, found, strict=True))
        if each.source is not None and route.kind == "blackhole"
    ]
    answers = routes.ask(netlink, [routes.Question(destinations[each].address) for each in again])
    for number, route in zip(again, answers, strict=True):
        found[number] = route
    return found


def way(destination: Destination, route: Route, known: Mapping[int, Device]) -> Way:
    """What a route means for a destination."""
    if not route.forwards:
        reason = REASONS.get(route.kind, f"the route is {route.kind}")
        return Way(trouble="every link of its route is down" if route.kind == "unicast" else reason)
    if destination.on_link and any(
        hop.gateway not in (None, destination.address) for hop in route.hops
    ):
        return Way(trouble="not on the link: its route has a gateway")
    return Way(hops=tuple(dict.fromkeys(_resolved(destination, route, known))))


def _resolved(destination: Destination, route: Route, known: Mapping[int, Device]) -> Iterator[Key]:
    for hop in route.hops:
        device = known.get(hop.device)
        if device is not None and device.resolves:
            yield Key(hop.device, hop.gateway or destination.address)
