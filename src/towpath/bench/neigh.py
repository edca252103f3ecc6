# SPDX-License-Identifier: Apache-2.0
"""What is lost while next hops change, and for how long: by managed neighbours and beside them."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from towpath.bench.errors import BenchError
from towpath.bench.neigh_network import (
    BEHIND,
    BEHIND_NETWORK,
    GATEWAYS,
    IN,
    LINKS,
    ON_LINK,
    PORT,
    VIP,
    Network,
    Stream,
    neigh_network,
    stream,
)
from towpath.bench.neigh_ways import LIMIT_SECONDS, MANAGED, PERMANENT, SCENARIOS, WAYS
from towpath.datapath.balancer import Balancer
from towpath.datapath.neigh.follower import Follower
from towpath.datapath.neigh.next_hops import Destination
from towpath.kernel.net import interfaces
from towpath.kernel.net.netns import in_netns
from towpath.model.service import Backend, Protocol, Service
from towpath.model.settings import Device

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from ipaddress import IPv4Address

STEADY_SECONDS = 0.5
"""Nothing is lost for so long: it has healed."""
_DOWN_SECONDS = 0.5
_PATIENCE = 30.0
"""For what has to work before anything is measured."""
_OTHER_MAC = "02:00:00:00:00:77"
_PERMANENT = 0x80  # NUD_PERMANENT


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one event."""

    lost: int
    """Packets sent since the network could carry them again, until it had healed."""
    heal_ms: float | None
    """From then to the last packet that was lost; None: it didn't heal in time."""


@dataclass(frozen=True, slots=True)
class Change:
    """Something that happens to a network. ``act`` returns when it could carry packets again."""

    backend: IPv4Address
    act: Callable[[Network, Callable[[IPv4Address], None]], float]
    """Is given the network, and what is to be told of a backend that doesn't answer its checks."""


@dataclass(frozen=True, slots=True)
class NeighReport:
    """By scenario and way."""

    kernel: str
    scenarios: dict[str, dict[str, Outcome]]

    def as_json(self) -> dict[str, Any]:
        """As ``towpath bench neigh --json`` prints it."""
        return {
            "kernel": self.kernel,
            "scenarios": [
                {"name": name}
                | asdict(ways[MANAGED])
                | {"beside": {way: asdict(found) for way, found in ways.items() if way != MANAGED}}
                for name, ways in self.scenarios.items()
            ],
        }


# ---- What happens --------------------------------------------------------------------------------


def _other_mac(network: Network, _: Callable[[IPv4Address], None]) -> float:
    """Nobody says a word: the kernel has to find out."""
    network.set_link(LINKS["tp-a"], address=_OTHER_MAC)
    return time.monotonic()


def _other_mac_and_a_failed_check(network: Network, doubt: Callable[[IPv4Address], None]) -> float:
    then = _other_mac(network, doubt)
    doubt(ON_LINK)
    return then


def _flap(network: Network, **changes: Any) -> float:
    peer = LINKS["tp-a"]
    network.set_link(peer, state="down", **changes)
    time.sleep(_DOWN_SECONDS)
    network.set_link(peer, state="up")
    return time.monotonic()


def _flap_same(network: Network, _: Callable[[IPv4Address], None]) -> float:
    return _flap(network)


def _flap_other(network: Network, _: Callable[[IPv4Address], None]) -> float:
    return _flap(network, address=_OTHER_MAC)


def _reroute(network: Network, _: Callable[[IPv4Address], None]) -> float:
    """The gateway that nothing was sent by so far is the other link's."""
    network.at_node(
        lambda netlink: netlink.route("replace", dst=BEHIND_NETWORK, gateway=str(GATEWAYS["tp-b"]))
    )
    return time.monotonic()


CHANGES = dict(
    zip(
        SCENARIOS,
        (
            Change(ON_LINK, _other_mac),
            Change(ON_LINK, _other_mac_and_a_failed_check),
            Change(BEHIND, _other_mac),
            Change(ON_LINK, _flap_same),
            Change(ON_LINK, _flap_other),
            Change(BEHIND, _reroute),
        ),
        strict=True,
    )
)


# ---- Ways to have next hops resolved -------------------------------------------------------------


@contextmanager
def _kept(network: Network, way: str, backend: IPv4Address) -> Iterator[Callable[[Any], None]]:
    """Have next hops resolved in one way; gives what is to be told of failed checks."""
    with ExitStack() as undo:
        if way == MANAGED:
            with in_netns(network.node):
                follower = undo.enter_context(Follower())
            follower.want("bench", [Destination(backend)])
            yield follower.doubt
        else:
            if way == PERMANENT:
                network.at_node(lambda netlink: _write(netlink, network))
            yield lambda _: None


def _write(netlink: Any, network: Network) -> None:
    for name, peer in LINKS.items():
        index, mac = interfaces.device_index(name), network.mac(peer).hex(":")
        known = [GATEWAYS[name]] + [ON_LINK] * (name == "tp-a")
        for address in known:
            fields = {"ifindex": index, "dst": str(address), "lladdr": mac}
            netlink.neigh("replace", state=_PERMANENT, **fields)


# ---- What is measured ----------------------------------------------------------------------------


def measure(
    scenarios: Iterable[str] = SCENARIOS,
    ways: Iterable[str] = WAYS,
    *,
    limit: float = LIMIT_SECONDS,
    progress: Callable[[str], None] = lambda _: None,
) -> NeighReport:
    """Have each happen under traffic, by each way, in a network of its own.

    A packet is sent a millisecond. Nothing is left behind. BenchError: packets don't arrive before
    anything has changed. KernelError: something can't be made.
    """
    found: dict[str, dict[str, Outcome]] = {}
    for name in scenarios:
        for way in ways:
            progress(f"{name}, {way}")
            found.setdefault(name, {})[way] = _outcome(CHANGES[name], way, limit)
    return NeighReport(os.uname().release, found)


def _outcome(change: Change, way: str, limit: float) -> Outcome:
    service = Service("bench", VIP, PORT, Protocol.UDP, (Backend(change.backend),))
    with ExitStack() as undo:
        network = undo.enter_context(neigh_network())
        doubt = undo.enter_context(_kept(network, way, change.backend))
        with in_netns(network.node):
            devices = [Device(name, "native") for name in (IN, *LINKS)]
            balancer = undo.enter_context(Balancer(devices))
            balancer.apply([service])
        sent = undo.enter_context(stream(network))
        if _healed(sent, time.monotonic(), max(limit, _PATIENCE)) is None:
            raise BenchError(f"{way}: nothing arrives at {change.backend}")
        return _seen(sent, change.act(network, doubt), limit)


def _seen(sent: Stream, then: float, limit: float) -> Outcome:
    healed = _healed(sent, then, limit)
    if healed is None:
        return Outcome(len(sent.lost_since(then)), None)
    lost = [when for when in sent.lost_since(then) if when <= healed]
    return Outcome(len(lost), round((healed - then) * 1000, 1) if lost else 0.0)


def _healed(sent: Stream, then: float, limit: float) -> float | None:
    """When the last packet was sent that was lost, once none is for a while; None: not in time."""
    while time.monotonic() < then + limit:
        time.sleep(STEADY_SECONDS / 5)
        # What was sent just now may still be on its way.
        settled = time.monotonic() - STEADY_SECONDS / 5
        lost = [when for when in sent.lost_since(then) if when < settled]
        last = max(lost, default=then)
        if sent.sent and sent.sent[-1] > settled and settled - STEADY_SECONDS > last:
            return last
    return None
