# SPDX-License-Identifier: Apache-2.0
"""From what is observed to what is desired: which steps, and what they mean to flows.

A service is identified by what packets know of it, (vip, ports, protocol), and a
backend within its service by its address. A change of name alone is a change
without steps, and two services that swap their VIPs swap backends. Only ports may
change: the service then keeps its flows.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from itertools import compress
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from towpath.core.lb import maglev, service_table
from towpath.core.lb.options import Options
from towpath.core.lb.routes import canonical
from towpath.core.lb.steps import (
    AddBackends,
    CreateService,
    DiscardService,
    MoveService,
    PublishService,
    RemoveBackend,
    SetBackend,
    SetOptions,
    SetRoutes,
    SetServerIds,
    SetTable,
    Step,
    WithdrawService,
)
from towpath.documents import Plan, ServiceChange, ServiceName
from towpath.model.numbered import numbers_of
from towpath.model.service import Backend, BackendState, Service, ServiceKey, SourceRoute

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from towpath.model.kinds import Address


class Change(NamedTuple):
    """A service as it was and as it will be."""

    before: Service | None
    """None: the service is added."""
    after: Service | None
    """None: the service is removed."""


@dataclass(frozen=True, slots=True)
class Transition:
    """The way from what is observed to what is desired: what to do, in this order."""

    changes: tuple[Change, ...] = ()
    """By service: removals, changes, additions. Those of ``plan``, with the whole services."""
    steps: tuple[Step, ...] = ()
    plan: Plan = field(default_factory=Plan)
    """What it amounts to, as people are told."""


def plan(
    observed: Iterable[Service],
    desired: Iterable[Service],
    traffic: Mapping[ServiceKey, float] | None = None,
    others: int = 0,
) -> Transition:
    """Plan the way from ``observed`` to ``desired``; neither has a service twice.

    ``others``: how many services there are that stay as they are and aren't among these.

    ``traffic`` says how many new flows each observed service gets, in any unit,
    to weigh them in the overall share that moves; without it all get as many.
    Removals come first, they make room. Raises ValueError for a service given
    twice.
    """
    before, after = tuple(observed), tuple(desired)
    old, new = _apart(before, after)
    old_kept = _kept(old, new)
    gone = old.keys() - {each.key for each in old_kept.values()}
    removals = [_removal(old[key]) for key in _ordered(gone)]
    differing = [key for key, service in new.items() if not _equal(old_kept.get(key), service)]
    common = [_change(old_kept[key], new[key]) for key in _ordered(old_kept.keys() & differing)]
    additions = [_addition(new[key]) for key in _ordered(new.keys() - old_kept.keys())]
    planned = [*removals, *(each for each in common if each), *additions]
    steps = tuple(step for each in planned for step in each.steps)
    summary = Plan(
        tuple(each.summary for each in planned),
        len(steps),
        _moved_overall(planned, before, traffic, others),
    )
    return Transition(tuple(each.change for each in planned), steps, summary)


def backends_gone(
    observed: Iterable[Service], desired: Iterable[Service]
) -> tuple[tuple[Service, Service, Backend], ...]:
    """Return the backends that services lose which stay: before, after, backend.

    Neither side has a service twice (ValueError). A service that goes takes its
    backends along; they are not among these.
    """
    old, new = _apart(tuple(observed), tuple(desired))
    found = []
    for key, before in _kept(old, new).items():
        after = new[key]
        if _same_addresses(before, after):
            continue
        gone = _matched(before, after).removed
        found += [(before, after, each) for each in gone]
    return tuple(found)


class _Planned(NamedTuple):
    """What becomes of one service."""

    change: Change
    summary: ServiceChange
    steps: list[Step]


# Up to so many changed services are compared with all others one by one.
_FEW = 16


def _apart(
    before: tuple[Service, ...], after: tuple[Service, ...]
) -> tuple[dict[ServiceKey, Service], dict[ServiceKey, Service]]:
    """Return by their keys the services that are not the very same objects on both sides.

    Usually one of a thousand is not, and hashing the keys of all would take longer
    than everything else.
    """
    there, wanted = set(map(id, before)), set(map(id, after))
    old = _by_key(_among(before, there - wanted))
    new = _by_key(_among(after, wanted - there))
    if len(wanted) < len(after) or len(new) > _FEW:
        _by_key(after)
    else:
        kept = _among(after, wanted & there)
        # What has a key of before can have no other beside it: there it was once.
        for key in new.keys() - old.keys():
            if any(other.port == key.port and other.key == key for other in kept):
                raise _twice(key)
    return old, new


def _among(services: tuple[Service, ...], ids: set[int]) -> list[Service]:
    return list(compress(services, map(ids.__contains__, map(id, services)))) if ids else []


def _kept(
    old: Mapping[ServiceKey, Service], new: Mapping[ServiceKey, Service]
) -> dict[ServiceKey, Service]:
    """Return the services that stay as they were, by the keys that they will have."""
    moved = _moved(
        [old[key] for key in _ordered(old.keys() - new.keys())],
        [new[key] for key in _ordered(new.keys() - old.keys())],
    )
    return {each.key: before for before, each in moved} | {
        key: service for key, service in old.items() if key in new
    }


def _moved(gone: list[Service], come: list[Service]) -> list[tuple[Service, Service]]:
    """Pair services that only have other ports than before.

    Of one VIP and protocol: those with the same name, then those that have a port in common, which
    is how a service is known again whose name isn't.
    """
    pairs = []
    for alike in (_same_name, _common_port):
        for service in list(come):
            for before in gone:
                if before.key.space == service.key.space and alike(before, service):
                    pairs.append((before, service))
                    gone.remove(before)
                    come.remove(service)
                    break
    return pairs


def _same_name(before: Service, after: Service) -> bool:
    return before.name == after.name


def _common_port(before: Service, after: Service) -> bool:
    return before.key.ports.overlap(after.key.ports) is not None


def _twice(key: ServiceKey) -> ValueError:
    return ValueError(f"{key} is given twice; allowed: once")


def _by_key(services: Iterable[Service]) -> dict[ServiceKey, Service]:
    found: dict[ServiceKey, Service] = {}
    for service in services:
        key = service.key
        if key in found:
            raise _twice(key)
        found[key] = service
    return found


def _equal(before: Service | None, after: Service) -> bool:
    """Whether nothing differs, the order of backends included: the usual case, fast."""
    return before is after or before == after


def _ordered(keys: Iterable[ServiceKey]) -> list[ServiceKey]:
    return sorted(keys, key=lambda key: key.order)


def _moved_overall(
    planned: Iterable[_Planned],
    observed: tuple[Service, ...],
    traffic: Mapping[ServiceKey, float] | None,
    others: int,
) -> float:
    """Return the share of all observed services' new flows that moves."""

    def flows(key: ServiceKey) -> float:
        return 1.0 if traffic is None else traffic.get(key, 0.0)

    given = len(observed) if traffic is None else sum(flows(each.key) for each in observed)
    total = given + others
    moved = sum(
        each.summary.moved * flows(each.summary.service.key)
        for each in planned
        if each.change.before
    )
    return moved / total if total else 0.0


def _addition(service: Service) -> _Planned:
    key = service.key
    summary = ServiceChange(
        "add", ServiceName.of(service), backends_added=_addresses(service.backends)
    )
    return _Planned(
        Change(None, service),
        summary,
        [
            CreateService(service),
            *_adding(key, service.backends),
            SetTable(key, service.backends),
            *_routing(key, (), service),
            PublishService(key),
        ],
    )


def _removal(service: Service) -> _Planned:
    key = service.key
    summary = ServiceChange(
        "remove",
        ServiceName.of(service),
        backends_removed=_addresses(service.backends),
        moved=1.0,
    )
    return _Planned(
        Change(service, None),
        summary,
        [
            WithdrawService(key),
            *([SetRoutes(key, (), ())] if service.route_from else ()),
            SetTable(key, ()),
            *(RemoveBackend(key, backend.address) for backend in service.backends),
            DiscardService(key),
        ],
    )


def _change(before: Service, after: Service) -> _Planned | None:
    found = _matched(before, after)
    added, removed, pairs = found
    changed = [new for old, new in pairs if old is not new and old != new]
    old = {new.address: old for old, new in pairs if old is not new} if changed else {}
    differing = tuple(
        each.name
        for each in fields(Service)
        if each.name != "backends" and getattr(before, each.name) != getattr(after, each.name)
    )
    if not (added or removed or changed or differing):
        return None
    key = before.key
    steps: list[Step] = []
    if Options.of(before) != (options := Options.of(after)):
        steps.append(SetOptions(key, options))
    steps += _adding(key, added)
    steps += _naming(key, [each for each in changed if _is_renamed(old[each.address], each)])
    noted = [each for each in changed if not _is_only_renamed(old[each.address], each)]
    early = [each for each in noted if _noted_early(old[each.address], each)]
    steps += [SetBackend(key, backend) for backend in early]
    if _has_other_table(before, after, found):
        steps.append(SetTable(key, after.backends))
    steps += _routing(key, before.route_from, after)
    steps += [SetBackend(key, backend) for backend in noted if backend not in early]
    steps += [RemoveBackend(key, backend.address) for backend in removed]
    if before.key != after.key:
        steps.append(MoveService(before.key, after.key))

    def differing_in(name: str) -> tuple[Address, ...]:
        return tuple(
            each.address
            for each in changed
            if getattr(each, name) != getattr(old[each.address], name)
        )

    summary = ServiceChange(
        "change",
        ServiceName.of(after),
        differing,
        backends_added=_addresses(added),
        backends_removed=_addresses(removed),
        backends_reweighted=differing_in("weight"),
        backends_restated=differing_in("state"),
        backends_redirected=differing_in("port"),
        backends_relocated=differing_in("local"),
        backends_reidentified=differing_in("server_id"),
        moved=_share_moved(before, after, found),
    )
    return _Planned(Change(before, after), summary, steps)


def _routing(key: ServiceKey, before: tuple[SourceRoute, ...], after: Service) -> list[Step]:
    routes = canonical(after.route_from)
    return [] if canonical(before) == routes else [SetRoutes(key, routes, after.backends)]


class _Matched(NamedTuple):
    """Backends that come, those that go, and of each that stays both."""

    added: tuple[Backend, ...]
    removed: tuple[Backend, ...]
    pairs: list[tuple[Backend, Backend]]


def _same_addresses(before: Service, after: Service) -> bool:
    """Whether both have backends of the same addresses in the same order: the usual case, fast."""
    return len(before.backends) == len(after.backends) and all(
        old is new or old.address == new.address
        for old, new in zip(before.backends, after.backends, strict=True)
    )


def _matched(before: Service, after: Service) -> _Matched:
    if _same_addresses(before, after):
        return _Matched((), (), list(zip(before.backends, after.backends, strict=True)))
    gone = dict(zip(numbers_of(before.backends), before.backends, strict=True))
    added, pairs = [], []
    for number, new in zip(numbers_of(after.backends), after.backends, strict=True):
        was = gone.pop(number, None)
        if was is None:
            added.append(new)
        else:
            pairs.append((was, new))
    return _Matched(tuple(added), tuple(gone.values()), pairs)


def _has_other_table(before: Service, after: Service, found: _Matched) -> bool:
    """Whether the table of one isn't that of the other. Who has weight 0 is in none."""
    if before.table_size != after.table_size:
        return True
    return any(each.weight for each in (*found.added, *found.removed)) or any(
        (old.weight, old.takes_flows) != (new.weight, new.takes_flows)
        and bool(old.weight or new.weight)
        for old, new in found.pairs
        if old is not new
    )


def _adding(key: ServiceKey, backends: tuple[Backend, ...]) -> list[Step]:
    return [AddBackends(key, backends)] if backends else []


def _naming(key: ServiceKey, backends: list[Backend]) -> list[Step]:
    """Before any of them is noted otherwise, and before any goes: see `SetServerIds`."""
    return [SetServerIds(key, tuple(backends))] if backends else []


def _is_renamed(before: Backend, after: Backend) -> bool:
    """Whether it has other ids."""
    return before.server_id != after.server_id


def _is_only_renamed(before: Backend, after: Backend) -> bool:
    """Whether it has other ids, and nothing else that is."""
    return _is_renamed(before, after) and replace(before, server_id=after.server_id) == after


def _addresses(backends: Iterable[Backend]) -> tuple[Address, ...]:
    return tuple(backend.address for backend in backends)


def _noted_early(before: Backend, after: Backend) -> bool:
    """Whether a backend's new weight and state are noted before the table is set.

    A backend that takes flows by its record and is in no table is one whose removal
    was begun. So one that had no slots is noted after the table: else a death in
    between would end its flows. One that goes down loses them, and must have left
    the table before.
    """
    return before.takes_flows and after.state is not BackendState.DOWN


def share_moved(before: Service, after: Service) -> float:
    """Return the share (0..1) of new flows that go to another backend than before.

    Of clients without a route: how many flows those have that have one isn't known.
    """
    return _share_moved(before, after, _matched(before, after))


def _share_moved(before: Service, after: Service, found: _Matched) -> float:
    if (before.affinity is None) != (after.affinity is None):
        # By another hash: each flow goes to any backend, whichever it went to before.
        old, new = _shares(before), _shares(after)
        if not old or not new:
            return float(bool(old) != bool(new))
        return 1.0 - sum(share * new.get(address, 0.0) for address, share in old.items())
    if not _has_other_table(before, after, found):
        return 0.0
    one, other = (service_table.table(each.backends, each.table_size) for each in (before, after))
    if _same_addresses(before, after):
        return maglev.disruption(one, other)
    there = (*numbers_of(after.backends), *numbers_of(found.removed))
    at = {number: place for place, number in enumerate(there)}
    places = np.array([at[number] for number in numbers_of(before.backends)], np.uint32)
    # Those of the table after are in the order of their numbers.
    return maglev.disruption(np.take(places, one), other)


def _shares(service: Service) -> dict[Address, float]:
    """Return the share (0..1) of new flows that each backend gets."""
    sharing_ones = [backend for backend in service.backends if backend.takes_flows]
    total = sum(backend.weight for backend in sharing_ones)
    return {each.address: each.weight / total for each in sharing_ones}
