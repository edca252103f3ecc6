# SPDX-License-Identifier: Apache-2.0
"""Masquerade of pods in an agent."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Query
from fastapi.responses import Response  # noqa: TC002 -- read by FastAPI
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from pydantic import IPvAnyAddress  # noqa: TC002 -- read by FastAPI

from towpath.agent.errors import InvalidError
from towpath.agent.http.response import answer
from towpath.agent.parts import Part
from towpath.agent.told import Told
from towpath.api import documents
from towpath.datapath.masquerade.flows import FlowTable, Wanted
from towpath.datapath.masquerade.follower import Follower
from towpath.datapath.masquerade.node import detach
from towpath.datapath.masquerade.report import counters, report
from towpath.documents import MasqueradedFlows
from towpath.kernel.net.netfilter import forward_chains
from towpath.kernel.net.xfrm import policies
from towpath.model import Problem
from towpath.model.masquerade import SourcedRules

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from prometheus_client.core import Metric

    from towpath.agent.parts import Given
    from towpath.documents import Masquerade as Document
    from towpath.documents import MasqueradeCounters
    from towpath.model import Config
    from towpath.model.masquerade import Section
    from towpath.model.socket import Section as SocketSection

SOURCED = "masquerade-sourced.json"
"""In the state directory: what a source has told."""
MOST = 10_000
"""Flows that one answer has at most."""
Protocol = Literal["tcp", "udp", "icmp", "sctp"]


def start(given: Given) -> Part:
    """Masquerade, going on where an earlier agent left off."""
    return Masquerade(given)


def forget(given: Given) -> None:
    """Remove what an earlier agent left that had the section."""
    detach(given.pins)
    Told(given.state / SOURCED).forget()


def has_source(config: Config) -> bool:
    """Whether there is a source that tells rules."""
    section: Any = config.sections.get("kubernetes")
    return section is not None and section.masquerades


def _written(sourced: SourcedRules) -> dict[str, list[str]]:
    return {name: [str(each) for each in value] for name, value in sourced._asdict().items()}


def _read(found: Any) -> SourcedRules:
    prefixes, exclude = (tuple(map(ip_network, found[name])) for name in ("prefixes", "exclude"))
    return SourcedRules(tuple(found["devices"]), prefixes, exclude)


def collisions(config: Config, section: Section) -> list[Problem]:
    """What the section has in common with the rest of the configuration, and mustn't."""
    first, last = section.ports
    theirs = config.snat.ports
    if not (config.snat.ipv4 or config.snat.ipv6) or theirs.last < first or last < theirs.first:
        return []
    what = f"{section.ports} and snat.ports ({theirs}) have ports in common; allowed: others"
    return [Problem(what, "masquerade.ports")]


def beside(section: Section) -> Iterator[str]:
    """Say what of netfilter and of IPsec doesn't go with the section."""
    chains = forward_chains() or ()
    if chains and not section.through_stack:
        named = ", ".join(map(str, chains))
        yield f"packets of pods don't pass netfilter's {named}; they do with through_stack: true"
    if not section.through_stack:
        held = [str(each) for each in policies() or () if each.concerns(section.prefixes)]
        if held:
            yield (
                f"packets of pods aren't held to IPsec's policies ({', '.join(held)}): they leave"
                " unencrypted; with through_stack: true they are"
            )
    translating = [str(each) for each in chains if each.translates]
    if translating and section.unsolicited == "drop":
        yield (
            f"{', '.join(translating)} may translate to ports of {section.ports} too, and what is"
            " answered to them is dropped; unsolicited: pass leaves it to netfilter"
        )


def devices_of_packets(config: Config) -> tuple[str, ...]:
    """Those at whose egress answers of services get the services' addresses."""
    sockets: SocketSection | None = config.sections.get("socket")
    return sockets.packets.devices if sockets is not None and sockets.packets is not None else ()


def masquerade_metrics(found: MasqueradeCounters, flows: int) -> Iterator[Metric]:
    """Metrics of masquerade."""
    packets = CounterMetricFamily(
        "towpath_masquerade_packets",
        "Packets by the program that saw them and what became of them.",
        labels=("program", "verdict"),
    )
    for program, verdicts in found.verdicts.items():
        for verdict, number in verdicts.items():
            packets.add_metric((program, verdict), number)
    yield packets
    size = CounterMetricFamily(
        "towpath_masquerade_bytes", "Bytes of translated packets.", labels=("program",)
    )
    for program, number in found.bytes.items():
        size.add_metric((program,), number)
    yield size
    yield CounterMetricFamily("towpath_masquerade_flows_begun", "New flows.", value=found.bound)
    yield GaugeMetricFamily("towpath_masquerade_flows", "Flows in the table.", value=flows)


class Masquerade(Part):
    """Masquerades pods."""

    name = "masquerade"
    fixed = ()  # apply() says what can't change

    def __init__(self, given: Given) -> None:
        self._section: Section = given.config.sections[self.name]
        self._refuse(collisions(given.config, self._section))
        indirect = devices_of_packets(given.config)
        self._file = Told(given.state / SOURCED)
        self._sourced = SourcedRules()
        if has_source(given.config):
            self._sourced = self._file.read(_read) or self._sourced
        else:
            self._file.forget()
        added = self._sourced.added(self._section)
        self._follower = Follower(added, given.pins, indirect=indirect)
        given.shared.prefixes = self

    def _refuse(self, problems: list[Problem]) -> None:
        if problems:
            raise InvalidError(problems)

    def apply(self, config: Config) -> None:
        """Go by other rules. Anything else needs a restart."""
        section: Section = config.sections[self.name]
        if replace(section, rules=self._section.rules) != self._section:
            what = "only its rules can change while the agent runs; restart it to take it over"
            raise InvalidError([Problem(what, self.name)])
        self._refuse(collisions(config, section))
        if section != self._section:
            self._follower.replace_rules(self._sourced.added(section))
        self._follower.replace_indirect(devices_of_packets(config))
        self._section = section

    @property
    def sourced(self) -> SourcedRules:
        """What a source has told last, whatever agent it was. For any thread."""
        return self._sourced

    def masquerade_pods(self, sourced: SourcedRules) -> None:
        """Go by a source's rules as well, on the writer's thread. AgentError, KernelError."""
        if sourced != self._sourced:
            self._file.write(_written(sourced))
            self._sourced = sourced
        # What was refused is tried again.
        self._follower.replace_rules(sourced.added(self._section))

    def found(self) -> Document:
        """All that there is to say, but the flows."""
        told = self._follower.asked(report)
        return replace(told, troubles=tuple(self._troubles()))

    def flows(self, wanted: Wanted, limit: int) -> MasqueradedFlows:
        """Some of the flows."""
        table = self._follower.asked(FlowTable)
        found = list(table.flows(wanted, limit + 1))
        return MasqueradedFlows(tuple(found[:limit]), len(found) > limit)

    def _troubles(self) -> Iterator[str]:
        yield from self._follower.troubles
        yield from beside(self._sourced.added(self._section))

    @property
    def trouble(self) -> str | None:
        """What keeps it from its work."""
        return "; ".join(self._follower.troubles) or None

    def summary(self) -> str:
        """How many flows there are, and by which addresses."""
        flows = self._follower.asked(lambda node: FlowTable(node).count())
        sources = self._follower.asked(lambda node: len(node.sources.by_address))
        told = f"{flows} flows, {sources} addresses to leave from"
        more = list(self._troubles())
        return f"{told}; {more[0]}" if more else told

    def metrics(self) -> Iterable[Metric]:
        """What was counted, and how full the table is."""
        found, flows = self._follower.asked(lambda node: (counters(node), FlowTable(node).count()))
        return masquerade_metrics(found, flows)

    def routes(self) -> Iterable[APIRouter]:
        """Reading it."""
        router = APIRouter(tags=["masquerade"])

        @router.get("/masquerade", response_model=documents.Masquerade)
        def masquerade() -> Response:
            """Rules, devices, addresses, counters, and what isn't as it should be."""
            return answer(self.found())

        @router.get("/masquerade/flows", response_model=documents.MasqueradedFlows)
        def flows(
            client: IPvAnyAddress | None = None,
            remote: IPvAnyAddress | None = None,
            protocol: Protocol | None = None,
            port: Annotated[int | None, Query(ge=1, le=65535)] = None,
            limit: Annotated[int, Query(ge=1, le=MOST)] = 1000,
        ) -> Response:
            """Flows of pods, and what they are translated to."""
            return answer(self.flows(Wanted(client, remote, protocol, port), limit))

        return (router,)

    def detach(self) -> None:
        """Take it out of the kernel."""
        self._follower.detach()

    def close(self) -> None:
        """Let go of it: the kernel goes on."""
        self._follower.close()
