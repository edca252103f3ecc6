# SPDX-License-Identifier: Apache-2.0
"""Whether there is room for a plan, found before its first step is taken.

The steps are gone through on paper: they only count services and backends, and
move table ranges in a copy of the heap. It finds the same ranges as the heap will.
"""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING

from towpath.core.lb.options import Options
from towpath.core.lb.steps import (
    AddBackend,
    CreateService,
    DiscardService,
    MoveService,
    PublishService,
    RemoveBackend,
    SetOptions,
    SetTable,
    Step,
    WithdrawService,
)
from towpath.datapath.errors import CapacityError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from towpath.datapath.lb.extents import Heap, Range
    from towpath.datapath.lb.lookup import Endpoints
    from towpath.model.kinds import Prefix
    from towpath.model.service import ServiceKey

    Prefixes = tuple[Prefix, ...]

_UNNAMED = 1 << 29
"""Indexes from here on, which no service has, stand for those that are not known yet."""


def _check_count(what: str, now: int, limit: int, changes: Iterable[int]) -> None:
    most = now
    for change in changes:
        now += change
        most = max(most, now)
    if most > limit:
        raise CapacityError(what, most, limit, what)


def _counted(steps: Iterable[Step], more: type[Step], less: type[Step]) -> Iterable[int]:
    return (1 if isinstance(s, more) else -1 for s in steps if isinstance(s, more | less))


def check_room(
    steps: tuple[Step, ...],
    *,
    services: int,
    services_limit: int,
    backends: int,
    backends_limit: int,
    heap: Heap,
    tables: dict[ServiceKey, tuple[Range, int]],
    sources: Mapping[Prefixes, int],
    sources_limit: int,
    allowed: dict[ServiceKey, Prefixes | None],
) -> None:
    """Raise CapacityError if the steps would not all find room.

    ``services`` and ``backends``: how many there are now. ``tables``: each service's
    table now (of 0 slots: none), and its configured size. ``heap`` stays as it is,
    except that nothing rests in it any more if there would not be room otherwise.
    ``sources``: the lists of prefixes that there are, and how many services have each;
    ``allowed``: the list that a service has now.
    """
    _check_count(
        "services", services, services_limit, _counted(steps, CreateService, DiscardService)
    )
    _check_count("backends", backends, backends_limit, _counted(steps, AddBackend, RemoveBackend))
    kept = sum(map(len, sources))
    _check_count("sources", kept, sources_limit, _source_changes(steps, dict(sources), allowed))
    try:
        _check_tables(steps, heap.copy(), tables)
    except CapacityError:
        if not heap.settle():
            raise
        _check_tables(steps, heap.copy(), tables)


def _source_changes(
    steps: tuple[Step, ...],
    users: dict[Prefixes, int],
    allowed: dict[ServiceKey, Prefixes | None],
) -> Iterator[int]:
    """By how many prefixes there are more or less, one after the other: first the new ones."""
    lists = dict(allowed)
    for step in steps:
        wanted: Prefixes | None
        match step:
            case CreateService(service):
                wanted = Options.of(service).allow_from
            case SetOptions(_, options):
                wanted = options.allow_from
            case DiscardService():
                wanted = None
            case _:
                continue
        before = lists.get(step.key)
        lists[step.key] = wanted
        if wanted is not None:
            users[wanted] = users.get(wanted, 0) + 1
            yield len(wanted) if users[wanted] == 1 else 0
        if before is not None:
            users[before] -= 1
            yield 0 if users[before] else -len(before)


def _check_tables(
    steps: tuple[Step, ...], heap: Heap, tables: dict[ServiceKey, tuple[Range, int]]
) -> None:
    ranges = {key: table for key, (table, _) in tables.items()}
    sizes = {key: size for key, (_, size) in tables.items()}
    for step in steps:
        if isinstance(step, CreateService):
            ranges[step.key], sizes[step.key] = (0, 0), step.service.table_size
        elif isinstance(step, SetOptions):
            sizes[step.key] = step.options.table_size
        elif isinstance(step, SetTable):
            size = sizes[step.key] if any(b.takes_flows for b in step.backends) else 0
            base = _allocate(heap, size) if size else 0
            if ranges[step.key][1]:
                heap.rest(*ranges[step.key])
            ranges[step.key] = (base, size)


def _allocate(heap: Heap, size: int) -> int:
    base = heap.allocate(size)
    if base is None:
        raise CapacityError("Maglev slots in one piece", size, heap.largest, "table_slots")
    return base


def check_endpoints(
    steps: tuple[Step, ...], endpoints: Endpoints, indexes: Mapping[ServiceKey, int]
) -> None:
    """Raise CapacityError if packets could not find every service that the steps publish.

    ``indexes``: of the services that there are now. The endpoints stay as they are.
    """
    named, unnamed = dict(indexes), count(_UNNAMED)
    paper = endpoints.on_paper()
    for step in steps:
        if isinstance(step, PublishService):
            named[step.key] = next(unnamed)
            paper.publish(step.key, named[step.key])
        elif isinstance(step, MoveService):
            named[step.to] = named.pop(step.key)
            paper.move(step.key, step.to, named[step.to])
        elif isinstance(step, WithdrawService):
            paper.withdraw(step.key, named.pop(step.key))
