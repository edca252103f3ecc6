# SPDX-License-Identifier: Apache-2.0
"""Counting packets as a part of an agent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import APIRouter
from prometheus_client.core import CounterMetricFamily
from tests.examples.packets.datapath import PacketCounter, detach

from towpath.agent.errors import InvalidError
from towpath.agent.parts import Part
from towpath.model import Problem

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client.core import Metric
    from tests.examples.packets.model import Section

    from towpath.agent.parts import Given
    from towpath.model import Config


def start(given: Given) -> Part:
    """Count, going on where an earlier agent left off."""
    return Packets(given)


def forget(given: Given) -> None:
    """Remove what an earlier agent left that had the section."""
    detach(given.pins)


class Packets(Part):
    """Counts packets."""

    name = "packets"
    fixed = ()  # apply() says what can't change

    def __init__(self, given: Given) -> None:
        self._section: Section = given.config.sections[self.name]
        self._counter = PacketCounter(self._section.device, given.pins)
        self.apply(given.config)

    def apply(self, config: Config) -> None:
        """Count other ports. Another device needs a restart."""
        section: Section = config.sections[self.name]
        if section.device != self._section.device:
            what = "can't change while the agent runs; restart it to take it over"
            raise InvalidError([Problem(what, "packets.device")])
        self._counter.count_ports(section.first, section.last)
        self._section = section

    def summary(self) -> str:
        """How many there were."""
        return f"{self._counter.packets()} packets on {self._section.device}"

    def metrics(self) -> Iterable[Metric]:
        """How many there were."""
        yield CounterMetricFamily(
            "towpath_packets", "UDP packets to the ports.", value=self._counter.packets()
        )

    def routes(self) -> Iterable[APIRouter]:
        """How many there were."""
        router = APIRouter(tags=["packets"])

        @router.get("/packets")
        def packets() -> dict[str, int]:
            """UDP packets that came in for the ports."""
            return {"packets": self._counter.packets()}

        return (router,)

    def detach(self) -> None:
        """Take the program off its device."""
        self._counter.detach()

    def close(self) -> None:
        """Let go of it: it counts on."""
        self._counter.close()
