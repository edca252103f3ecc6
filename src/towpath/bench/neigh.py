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
_FLAPS, _SHORT = 100, 0.01
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


class Kept:
    """Next hops are kept resolved in some way; this one does nothing for it."""

    def doubt(self, backend: IPv4Address) -> None:
        """A backend doesn't answer its checks."""

    def restart(self, meanwhile: Callable[[], float]) -> float:
        """Whoever keeps them dies, and is there again afterwards."""
        return meanwhile()


class Followed(Kept):
    """By Towpath, in the node's namespace."""

    def __init__(self, network: Network, backend: IPv4Address, undo: ExitStack) -> None:
        self._network, self._backend, self._undo = network, backend, undo
        self._follower = self._begin()

    def _begin(self) -> Follower:
        with in_netns(self._network.node):
            follower = self._undo.enter_context(Follower())
        follower.want("bench", [Destination(self._backend)])
        return follower

    def doubt(self, backend: IPv4Address) -> None:  # noqa: D102 -- as above
        self._follower.doubt(backend)

    def restart(self, meanwhile: Callable[[], float]) -> float:  # noqa: D102 -- as above
        self._follower.close()
        then = meanwhile()
        self._follower = self._begin()
        return then


@dataclass(frozen=True, slots=True)
class Change:
    """Something that happens to a network. ``act`` returns when it could carry packets again."""

    backend: IPv4Address
    act: Callable[[Network, Kept], float]


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


def _other_mac(network: Network, _: Kept) -> float:
    """Nobody says a word: the kernel has to find out."""
    network.set_link(LINKS["tp-a"], address=_OTHER_MAC)
    return time.monotonic()


def _other_mac_and_a_failed_check(network: Network, kept: Kept) -> float:
    then = _other_mac(network, kept)
    kept.doubt(ON_LINK)
    return then


def _flap(network: Network, down: float = _DOWN_SECONDS, **changes: Any) -> float:
    peer = LINKS["tp-a"]
    network.set_link(peer, state="down", **changes)
    time.sleep(down)
    network.set_link(peer, state="up")
    return time.monotonic()


def _flap_same(network: Network, _: Kept) -> float:
    return _flap(network)


def _flap_other(network: Network, _: Kept) -> float:
    return _flap(network, address=_OTHER_MAC)


def _flap_often(network: Network, _: Kept) -> float:
    """Down for 10 ms, up for 10 ms; and the peer is another one in the end."""
    for _flapped in range(_FLAPS - 1):
        _flap(network, down=_SHORT)
        time.sleep(_SHORT)
    return _flap(network, down=_SHORT, address=_OTHER_MAC)


def _reroute(network: Network, _: Kept) -> float:
    """The gateway that nothing was sent by so far is the other link's."""
    network.at_node(
        lambda netlink: netlink.route("replace", dst=BEHIND_NETWORK, gateway=str(GATEWAYS["tp-b"]))
    )
    return time.monotonic()


def _reroute_unseen(network: Network, kept: Kept) -> float:
    """The agent is dead when it happens, and there again a moment later."""
    return kept.restart(lambda: _reroute(network, kept))


CHANGES = dict(
    zip(
        SCENARIOS,
        (
            Change(ON_LINK, _other_mac),
            Change(ON_LINK, _other_mac_and_a_failed_check),
            Change(BEHIND, _other_mac),
            Change(ON_LINK, _flap_same),
            Change(ON_LINK, _flap_other),
            Change(ON_LINK, _flap_often),
            Change(BEHIND, _reroute),
            Change(BEHIND, _reroute_unseen),
        ),
        strict=True,
    )
)


# ---- Ways to have next hops resolved -------------------------------------------------------------


@contextmanager
def _kept(network: Network, way: str, backend: IPv4Address) -> Iterator[Kept]:
    """Have next hops resolved in one way."""
    with ExitStack() as undo:
        if way == PERMANENT:
            network.at_node(lambda netlink: _write(netlink, network))
        yield Followed(network, backend, undo) if way == MANAGED else Kept()


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
        kept = undo.enter_context(_kept(network, way, change.backend))
        with in_netns(network.node):
            devices = [Device(name, "native") for name in (IN, *LINKS)]
            balancer = undo.enter_context(Balancer(devices))
            balancer.apply([service])
        sent = undo.enter_context(stream(network))
        if _healed(sent, time.monotonic(), max(limit, _PATIENCE)) is None:
            raise BenchError(f"{way}: nothing arrives at {change.backend}")
        return _seen(sent, change.act(network, kept), limit)


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
