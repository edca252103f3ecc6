# SPDX-License-Identifier: Apache-2.0
"""Next hops in an agent: kept resolved for all parts that send packets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import APIRouter
from fastapi.responses import Response  # noqa: TC002 -- read by FastAPI
from prometheus_client.core import GaugeMetricFamily
from pydantic import IPvAnyAddress  # noqa: TC002 -- read by FastAPI

from towpath.agent.http.response import answer
from towpath.agent.parts import Part
from towpath.api import documents
from towpath.datapath.neigh.follower import Follower
from towpath.datapath.neigh.report import report
from towpath.datapath.neigh.route import ask
from towpath.model.settings import DEFAULT_NEIGHBOURS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from prometheus_client.core import Metric

    from towpath.agent.parts import Given
    from towpath.datapath.neigh.keeper import Keeper
    from towpath.documents import NextHops


def start(given: Given) -> Part:
    """Keep resolved what others want, taking over what an earlier agent has made."""
    return Neighbours(given)


def forget(_: Given) -> None:
    """Remove the entries that an earlier agent has made."""
    Follower(per_second=DEFAULT_NEIGHBOURS.per_second).let_go()


def next_hop_metrics(found: NextHops) -> Iterator[Metric]:
    """Metrics of next hops."""
    states: dict[str, int] = {}
    for each in found.next_hops:
        states[each.state] = states.get(each.state, 0) + 1
    family = GaugeMetricFamily(
        "towpath_next_hops", "Next hops by the state of their neighbour.", labels=("state",)
    )
    for state, number in sorted(states.items()):
        family.add_metric((state,), number)
    yield family
    yield GaugeMetricFamily(
        "towpath_destinations_unreached",
        "Backends, and others that packets are sent to, without a way there.",
        value=len(found.unreached),
    )


class Neighbours(Part):
    """Keeps next hops resolved."""

    name = "neigh"
    fixed = ("neighbours",)

    def __init__(self, given: Given) -> None:
        self._devices = tuple(each.name for each in given.config.devices)
        self._wanted = given.next_hops
        self._follower = Follower(per_second=given.config.neighbours.per_second)
        self._wanted.resolve_by(self._follower)

    def next_hops(self) -> NextHops:
        """All of them, and what can't be reached."""
        return self._follower.asked(report)

    @property
    def trouble(self) -> str | None:
        """What keeps it from following the network."""
        trouble = self._follower.trouble
        return f"next hops aren't followed: {trouble}" if trouble else None

    def summary(self) -> str:
        """How many there are, and how many of them don't answer."""
        found = self._follower.asked(_resolved)
        silent = len(found) - sum(found)
        told = f"{len(found)} next hops"
        return f"{told}, {silent} of them not resolved" if silent else told

    def metrics(self) -> Iterable[Metric]:
        """Next hops by state, and destinations that have none."""
        return next_hop_metrics(self.next_hops())

    def routes(self) -> Iterable[APIRouter]:
        """Reading them."""
        router = APIRouter(tags=["next hops"])

        @router.get("/next-hops", response_model=documents.NextHops)
        def next_hops() -> Response:
            """Hosts on the links that packets are sent to, and whether they answer."""
            return answer(self.next_hops())

        @router.get("/route", response_model=documents.Route)
        def route(
            to: IPvAnyAddress,
            device: str | None = None,
            source: IPvAnyAddress | None = None,
        ) -> Response:
            """What the datapath would do with a packet for an address."""
            return answer(ask(to, device or self._devices[0], source))

        return (router,)

    def detach(self) -> None:
        """Remove all entries."""
        self._wanted.resolve_by(None)
        self._follower.let_go()

    def close(self) -> None:
        """Let go: what was made stays, and the kernel goes on keeping it resolved."""
        self._wanted.resolve_by(None)
        self._follower.close()


def _resolved(keeper: Keeper) -> list[bool]:
    """Of each next hop whether it is resolved; who is behind them is another, longer question."""
    return [kept is not None and kept.valid for kept in keeper.entries().values()]
