# SPDX-License-Identifier: Apache-2.0
"""Counters as tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from towpath.cli.output import count, print_table

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from towpath.api.documents import BackendCounters, Counters, CpuCounters, ServiceCounters

NUMBERS = ("packets", "bytes", "new flows", "active", "drops")

_Row = tuple[str, ...]


def show_verdicts(counters: Counters) -> None:
    """Packets of each verdict, with a column for each CPU where they are known."""
    cpus = [f"CPU {each.cpu}" for each in counters.cpus]
    rows = [
        (reason, count(number), *(count(each.verdicts.get(reason, 0)) for each in counters.cpus))
        for reason, number in counters.verdicts.items()
        if number
    ]
    print_table(("verdict", "packets", *cpus), rows, numbers=("packets", *cpus))


def show_refused(counters: Counters) -> None:
    """Packets that were counted as sent and did not leave, if there are any."""
    if counters.refused:
        rows = [(each.device, each.error, count(each.packets)) for each in counters.refused]
        print_table(("refused by", "error", "packets"), rows, numbers=("packets",))


def show_local(counters: Counters) -> None:
    """Translated packets of backends on this node, if there is one."""
    rows = [
        (program, verdict, count(number))
        for program, verdicts in counters.local.items()
        for verdict, number in verdicts.items()
        if number and verdict != "bytes"
    ]
    if rows:
        print_table(("on this node", "verdict", "packets"), rows, numbers=("packets",))


def show_unwrapped(counters: Counters) -> None:
    """Packets that were taken out of tunnels, if any address is for that."""
    if counters.unwrapped:
        rows = [(str(u.address), count(u.packets), count(u.bytes)) for u in counters.unwrapped]
        print_table(("unwrapped for", "packets", "bytes"), rows, numbers=("packets", "bytes"))


def show_services(services: Iterable[ServiceCounters]) -> None:
    """A line for each service, and one for each of its backends."""
    rows: list[_Row] = []
    for each in services:
        rows.append((each.service.name, "", *_numbers(each, each.drops)))
        rows += _backends("", each.backends)
    print_table(("service", "backend", *NUMBERS), rows, numbers=NUMBERS)


def show_cpus(service: ServiceCounters) -> None:
    """The same of one service, a block of lines for each CPU that has counted any."""
    rows: list[_Row] = []
    for each in service.cpus:
        if each.packets:
            rows.append((f"{each.cpu}", "", *_numbers(each, each.drops)))
            rows += _backends("", each.backends)
    print_table(("CPU", "backend", *NUMBERS), rows, numbers=NUMBERS)


def show_drops(service: ServiceCounters) -> None:
    """Why packets of a service were dropped, and on the way to which backend."""
    rows = list(_reasons("", service.dropped))
    for backend in service.backends:
        rows += _reasons(str(backend.address), backend.dropped)
    print_table(("reason", "backend", "packets"), rows, numbers=("packets",))


def show_quic(service: ServiceCounters) -> None:
    """What connection ids have said."""
    rows = [(said, count(packets)) for said, packets in service.quic.items()]
    print_table(("connection ids", "packets"), rows, numbers=("packets",))


def _reasons(backend: str, dropped: Mapping[str, int]) -> Iterator[_Row]:
    return ((reason, backend, count(packets)) for reason, packets in dropped.items())


def _backends(first: str, backends: Iterable[BackendCounters]) -> Iterator[_Row]:
    for each in backends:
        yield first, str(each.address), *_numbers(each, sum(each.dropped.values()))


def _numbers(counted: ServiceCounters | BackendCounters | CpuCounters, drops: int) -> _Row:
    active = getattr(counted, "active", None)
    return (
        count(counted.packets),
        count(counted.bytes),
        count(counted.flows),
        "-" if active is None else count(active),
        count(drops),
    )
