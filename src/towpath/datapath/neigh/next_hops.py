# SPDX-License-Identifier: Apache-2.0
"""By which next hops the datapath's destinations are reached, as the kernel's routes have it."""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import TYPE_CHECKING, NamedTuple

from towpath.kernel.net import own_addresses, routes
from towpath.kernel.net.neighbours import Key

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from towpath.datapath.address import Address
    from towpath.kernel.net.link_state import Device
    from towpath.kernel.net.messages import Netlink
    from towpath.kernel.net.routes import Hop, Place, Route


class Destination(NamedTuple):
    """Somewhere that the datapath sends packets to."""

    address: Address
    source: Address | None = None
    """The address of this node that it sends from, for rules that look at it."""
    on_link: bool = False
    """It has to be on the link: packets go to that very host, by no gateway."""

    def __hash__(self) -> int:
        """As for any tuple, in a third of the time that an address's own takes."""
        source = 0 if self.source is None else int(self.source)
        return hash((int(self.address), source, self.on_link))


def _is_reserved(address: Address) -> bool:
    """RFC 6890: what no router forwards. Where there is a route of its own somebody uses it."""
    return isinstance(address, IPv4Address) and (
        int(address) >> 16 == _LINK_LOCAL or int(address) >> 28 == _FUTURE
    )


_LINK_LOCAL, _FUTURE = 0xA9FE, 0xF
"""169.254.0.0/16 and 240.0.0.0/4."""


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


class Way(NamedTuple):
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
    means = {id(route): _meaning(route, known, own) for route in _each_once(found)}
    # Nobody gets anywhere by these, whoever it is.
    refused = {at: Way(trouble=each.trouble) for at, each in means.items() if not each.gateways}
    return {
        destination: refused.get(id(route)) or _way(destination, means[id(route)])
        for destination, route in zip(wanted, found, strict=True)
    }


def _each_once(found: Iterable[Route]) -> Iterable[Route]:
    return {id(route): route for route in found}.values()


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


class _Meaning(NamedTuple):
    """What a route means for whoever is reached by it."""

    trouble: Trouble | None = None
    """Without hops: nobody is."""
    hops: tuple[tuple[int, Address | None], ...] = ()
    """Devices and gateways of next hops that are resolved."""
    gateways: tuple[Address | None, ...] = ()
    """Of all its next hops."""
    several: bool = False
    default: bool = False


def _meaning(route: Route, known: Mapping[int, Device], own: Collection[Address]) -> _Meaning:
    if not route.forwards:
        return _Meaning(_refusal(route.kind))
    others = [hop for hop in route.hops if hop.gateway not in own]
    if not others:
        return _Meaning(_own_gateway(route.hops))
    devices = {hop.device: known[hop.device] for hop in others if hop.device in known}
    lost = None
    if devices and not any(device.up for device in devices.values()):
        names = ", ".join(device.name for device in devices.values())
        lost = Trouble("no_carrier", f"no carrier on {names}")
    resolved = (hop for hop in others if hop.device in devices and devices[hop.device].resolves)
    return _Meaning(
        lost,
        tuple(dict.fromkeys(resolved)),
        tuple(hop.gateway for hop in route.hops),
        several=len(set(route.hops)) > 1,
        default=route.bits == 0,
    )


def _way(destination: Destination, meaning: _Meaning) -> Way:
    why, hops, gateways, several, default = meaning
    address, _, on_link = destination
    if default and _is_reserved(address):
        return Way(trouble=trouble("martian"))
    if on_link and any(each not in (None, address) for each in gateways):
        return Way(trouble=trouble("not_on_link"))
    keys = tuple(Key(device, gateway or address) for device, gateway in hops)
    return Way(keys, why, several)


def doubtful(
    netlink: Netlink, addresses: Sequence[Address], doubled: Collection[Place]
) -> dict[Address, Trouble]:
    """Those that are reached by the first of two routes, and so perhaps not as is meant."""
    if not doubled:
        return {}
    return {
        address: Trouble(
            "two_routes",
            f"there are two routes to {place.prefix} of one metric; the first is taken",
        )
        for address, place in zip(addresses, routes.places(netlink, addresses), strict=True)
        if place is not None and place in doubled
    }


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
