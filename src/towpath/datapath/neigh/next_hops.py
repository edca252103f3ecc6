# SPDX-License-Identifier: Apache-2.0
"""By which next hops the datapath's destinations are reached, as the kernel's routes have it."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Network
from typing import TYPE_CHECKING, NamedTuple

from towpath.kernel.net import own_addresses, routes
from towpath.kernel.net.neighbours import Key

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from towpath.datapath.address import Address
    from towpath.kernel.net.link_state import Device
    from towpath.kernel.net.messages import Netlink
    from towpath.kernel.net.routes import Hop, Route


class Destination(NamedTuple):
    """Somewhere that the datapath sends packets to."""

    address: Address
    source: Address | None = None
    """The address of this node that it sends from, for rules that look at it."""
    on_link: bool = False
    """It has to be on the link: packets go to that very host, by no gateway."""


# RFC 6890: what no router forwards. Where there is a route of its own somebody uses it.
_RESERVED = (IPv4Network("169.254.0.0/16"), IPv4Network("240.0.0.0/4"))


class Trouble(NamedTuple):
    """Why packets don't get to a destination."""

    reason: str
    """A key of REASONS."""
    text: str
    """The same for people, with names."""


REASONS = {
    "no_route": "no route",
    "blackhole": "the route is blackhole",
    "unreachable": "the route is unreachable",
    "prohibit": "the route is prohibit",
    "local": "it is this node's own address",
    "broadcast": "it is a broadcast address",
    "anycast": "it is an anycast address of this node",
    "multicast": "it is a multicast address",
    "link_down": "every link of its route is down",
    "no_carrier": "every device of its route is without carrier",
    "martian": "it is no host's address, and only the default route leads there",
    "not_on_link": "not on the link: its route has a gateway",
    "own_gateway": "its next hop is this node",
    "no_answer": "its next hop doesn't answer",
    "other": "the route is of a type that nothing is sent by",
}
"""What there can be, by the label that metrics have."""


@dataclass(frozen=True, slots=True)
class Way:
    """How a destination is reached."""

    hops: tuple[Key, ...] = ()
    """Next hops that have to be resolved, each of which packets may take."""
    trouble: Trouble | None = None
    """Why it isn't reached, as far as routes and devices say; None: it is."""
    several: bool = False
    """There are several ways, among which packets are shared out by flow."""


def find(
    netlink: Netlink, destinations: Iterable[Destination], known: Mapping[int, Device]
) -> dict[Destination, Way]:
    """Look up all destinations. ``known``: all devices, by interface index."""
    wanted = list(dict.fromkeys(destinations))
    found = _ask(netlink, wanted)
    gateways = any(hop.gateway for route in found for hop in route.hops)
    own = own_addresses.dump(netlink) if gateways else frozenset()
    return {
        destination: way(destination, route, known, own)
        for destination, route in zip(wanted, found, strict=True)
    }


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


def way(
    destination: Destination,
    route: Route,
    known: Mapping[int, Device],
    own: Collection[Address] = (),
) -> Way:
    """What a route means for a destination. ``own``: this node's addresses."""
    if not route.forwards:
        return Way(trouble=_refusal(route.kind))
    if route.bits == 0 and any(destination.address in each for each in _RESERVED):
        return Way(trouble=trouble("martian"))
    if destination.on_link and any(
        hop.gateway not in (None, destination.address) for hop in route.hops
    ):
        return Way(trouble=trouble("not_on_link"))
    others = [hop for hop in route.hops if hop.gateway not in own]
    if not others:
        return Way(trouble=_own_gateway(route.hops))
    hops = tuple(dict.fromkeys(_resolved(destination, others, known)))
    devices = {hop.device: known[hop.device] for hop in others if hop.device in known}.values()
    if devices and not any(device.up for device in devices):
        names = ", ".join(device.name for device in devices)
        return Way(hops, Trouble("no_carrier", f"no carrier on {names}"))
    return Way(hops, several=len(set(route.hops)) > 1)


def trouble(reason: str) -> Trouble:
    """A trouble of which there is nothing more to say."""
    return Trouble(reason, REASONS[reason])


def _refusal(kind: str) -> Trouble:
    if kind in {"none", "throw"}:
        return trouble("no_route")
    if kind == "unicast":
        return trouble("link_down")
    return trouble(kind) if kind in REASONS else Trouble("other", f"the route is {kind}")


def _own_gateway(hops: Sequence[Hop]) -> Trouble:
    names = ", ".join(dict.fromkeys(str(hop.gateway) for hop in hops))
    return Trouble("own_gateway", f"{REASONS['own_gateway']}: {names}")


def _resolved(
    destination: Destination, hops: Iterable[Hop], known: Mapping[int, Device]
) -> Iterator[Key]:
    for hop in hops:
        device = known.get(hop.device)
        if device is not None and device.resolves:
            yield Key(hop.device, hop.gateway or destination.address)
