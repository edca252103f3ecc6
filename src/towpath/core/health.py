# SPDX-License-Identifier: Apache-2.0
"""From results of checks to which backends get flows. Pure: no clock, no sockets.

Everything that affects a backend's standing is in `TRANSITIONS`. A backend that has just
been added is taken for good until it fails as often as one that was up, so that adding
backends to a working service is never worse than without checks; and one result is enough
to call it up. One that the kernel gave no flows when the agent came, or that was down under
another VIP of its service (`State.HELD`), gets none until the first result says otherwise, so
that neither a restart of the agent nor another VIP sends flows to what is down.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeAlias

from towpath.core.lb.states import BackendKey
from towpath.model.health import AllFailed
from towpath.model.service import BackendState

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from towpath.model.health import Health
    from towpath.model.kinds import Address
    from towpath.model.service import Service, ServiceKey

    Down: TypeAlias = Mapping[ServiceKey, Collection[Address]]


class State(enum.StrEnum):
    """What is known of a backend."""

    UNKNOWN = "unknown"
    """Nothing yet, or some failures. It gets flows."""
    HELD = "held"
    """Nothing yet, and it had no flows before: when the agent started, or under the VIP that its
    service had before. It gets none."""
    UP = "up"
    """The last check passed."""
    FAILING = "failing"
    """Up, but the last checks failed. It gets flows."""
    DOWN = "down"
    """Too many checks failed. It gets no new flows."""
    RISING = "rising"
    """Down, but the last checks passed. It gets no new flows."""

    @property
    def serves(self) -> bool:
        """Whether a backend in this state gets new flows."""
        return self in _SERVING


_SERVING = frozenset((State.UNKNOWN, State.UP, State.FAILING))


class Event(enum.Enum):
    """A result, and whether there have been enough of its kind in a row."""

    PASSED = enum.auto()
    PASSED_ENOUGH = enum.auto()
    FAILED = enum.auto()
    FAILED_ENOUGH = enum.auto()


def _row(passed: State, passed_enough: State, failed: State, failed_enough: State) -> list[State]:
    return [passed, passed_enough, failed, failed_enough]


_TABLE = {
    #                    passed        enough    failed         enough
    State.UNKNOWN: _row(State.UP, State.UP, State.UNKNOWN, State.DOWN),
    State.HELD: _row(State.UP, State.UP, State.DOWN, State.DOWN),
    State.UP: _row(State.UP, State.UP, State.FAILING, State.DOWN),
    State.FAILING: _row(State.UP, State.UP, State.FAILING, State.DOWN),
    State.DOWN: _row(State.RISING, State.UP, State.DOWN, State.DOWN),
    State.RISING: _row(State.RISING, State.UP, State.DOWN, State.DOWN),
}
TRANSITIONS: Mapping[tuple[State, Event], State] = MappingProxyType(
    {
        (state, event): after
        for state, row in _TABLE.items()
        for event, after in zip(Event, row, strict=True)
    }
)


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a backend stands. ``since`` and ``checked`` are times as the caller has them."""

    state: State
    since: float
    """When it came to be in this state."""
    streak: int = 0
    """Results in a row that were like the last one."""
    passed: bool = False
    """The last result; without a streak of no meaning."""
    error: str | None = None
    """Why the last check failed; None if it passed, or there was none."""
    checked: float | None = None
    """When the last result came."""


def step(before: Standing, error: str | None, health: Health, now: float) -> Standing:
    """Return the standing after one more result: None if the check passed, else why not."""
    passed = error is None
    streak = before.streak + 1 if before.streak and before.passed == passed else 1
    if passed:
        event = Event.PASSED_ENOUGH if streak >= health.rise else Event.PASSED
    else:
        event = Event.FAILED_ENOUGH if streak >= health.fall else Event.FAILED
    state = TRANSITIONS[before.state, event]
    since = before.since if state is before.state else now
    return Standing(state, since, streak, passed, error, now)


def unable(before: Standing, error: str, now: float) -> Standing:
    """Return the standing after a check that this node could not make: as before, with why."""
    return replace(before, error=error, checked=now)


# ---- What it means for services ------------------------------------------------------------------


def verdicts(services: Iterable[Service], down: Down) -> dict[BackendKey, BackendState]:
    """Return what is to become of backends: no new flows for what is ``down``.

    Nor those that it has, if its service says so. A service of which all backends are down keeps
    them, or has none, as it says.
    """
    # Usually nothing is, and to hash a thousand keys takes longer than the change itself.
    return {
        BackendKey(service.key, address): BackendState.DOWN
        if service.moves_flows_when_down
        else BackendState.QUARANTINED
        for service in services
        if down and service.health is not None
        for address in _judged(service, service.health, down)
    }


def _judged(service: Service, health: Health, down: Down) -> Collection[Address]:
    if health.on_all_failed is AllFailed.OPEN and none_up(service, down):
        return ()
    return down.get(service.key, ())


def none_up(service: Service, down: Down) -> bool:
    """Whether all backends of a service that are to have flows are down."""
    sharing = {backend.address for backend in service.backends if backend.takes_flows}
    checked = service.health is not None
    return checked and bool(sharing) and sharing <= set(down.get(service.key, ()))


def held(
    desired: Iterable[Service], observed: Iterable[Service]
) -> dict[ServiceKey, frozenset[Address]]:
    """Return backends that the kernel gives no flows and that are to be checked: what was down.

    ``observed`` is what the kernel holds as the agent starts. It doesn't know names: a service that
    isn't among them may be one that is gone with another VIP or other ports, so what had no flows
    in any such service has none in this one.
    """
    desired = tuple(desired)
    before = {service.key: service for service in observed}
    gone = [before[key] for key in before.keys() - {service.key for service in desired}]
    found = {}
    for service in desired:
        if service.health is None:
            continue
        known = before.get(service.key)
        alike = [known] if known else [each for each in gone if each.protocol == service.protocol]
        idle = {
            backend.address
            for each in alike
            for backend in each.backends
            if not backend.takes_flows
        }
        wanted = {backend.address for backend in service.backends if backend.takes_flows}
        if both := idle & wanted:
            found[service.key] = frozenset(both)
    return found


def carried(down: Down, before: Iterable[Service], after: Iterable[Service]) -> Down:
    """Return what is ``down`` of the services ``before`` as it is of those ``after``.

    A service is known again by its name, whatever its VIP, ports and protocol are by now; one of
    another name if it is for the very packets of one that isn't elsewhere. Of a backend it is known
    how it is until its checks under the new VIP say otherwise.
    """
    if not down:
        return down
    was, now = ({each.name: each.key for each in services} for services in (before, after))
    elsewhere = {key for name, key in was.items() if now.get(name, key) != key}
    found = {}
    for service in after:
        key = was.get(service.name, service.key)
        if service.name not in was and key in elsewhere:
            continue
        backends = {backend.address for backend in service.backends}
        if service.health is not None and (both := backends.intersection(down.get(key, ()))):
            found[service.key] = frozenset(both)
    return found
