# SPDX-License-Identifier: Apache-2.0
"""What is known of every backend that is checked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from towpath.agent.health.target import Target
from towpath.core.health import Standing, State

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from towpath.core.health import Down
    from towpath.model import Address, Service, ServiceKey


class Id(NamedTuple):
    """A backend of a service."""

    service: ServiceKey
    backend: Address


@dataclass(frozen=True, slots=True)
class Record:
    """A target, where it stands, and how its checks ended so far."""

    target: Target
    standing: Standing
    passed: int = 0
    failed: int = 0
    unmade: int = 0
    """Checks that this node could not make."""
    expires: float | None = None
    """When the certificate that was shown last is no longer valid, in seconds since 1970."""

    def moved(self, standing: Standing, expires: float | None = None) -> Record:
        """The record after one more result, and what certificate was seen."""
        expires = expires or self.expires
        if standing.passed:
            return replace(self, standing=standing, passed=self.passed + 1, expires=expires)
        return replace(self, standing=standing, failed=self.failed + 1, expires=expires)

    def unable(self, standing: Standing) -> Record:
        """The record after a check that could not be made."""
        return replace(self, standing=standing, unmade=self.unmade + 1)


class Targets:
    """Finds what is to be checked. A service that is the same object as before costs nothing."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Service, dict[Id, Target]]] = {}

    def of(self, services: Iterable[Service]) -> dict[Id, Target]:
        """All backends of services with checks.

        Also those of weight 0, so that it is known how they are before they get flows again.
        """
        checked = [service for service in services if service.health is not None]
        # The service is kept with its targets: no other can have its id meanwhile.
        self._known = {
            id(service): self._known.get(id(service)) or (service, _targets_of(service))
            for service in checked
        }
        found: dict[Id, Target] = {}
        for _, targets in self._known.values():
            found |= targets
        return found


def _targets_of(service: Service) -> dict[Id, Target]:
    return {
        Id(service.key, backend.address): Target.of(service, backend)
        for backend in service.backends
    }


class Registry:
    """Records by service and backend. One thread writes; any may read."""

    def __init__(self) -> None:
        self._records: dict[Id, Record] = {}

    def keep(self, wanted: Mapping[Id, Target], down: Down, now: float) -> None:
        """Have records of exactly these targets.

        Where one stands outlasts a change of its check; one that is new and among what is
        ``down`` is held, since that is what the datapath does with it. New is also who is found
        where a service was that has gone elsewhere.
        """
        kept = {}
        places = {target.service: target.key for target in wanted.values()}
        for key, target in wanted.items():
            known = self._records.get(key)
            if known is not None and places.get(known.target.service, key.service) == key.service:
                same = known.target.health == target.health
                kept[key] = replace(known, target=target, expires=known.expires if same else None)
                continue
            gone = key.backend in down.get(key.service, ())
            state = State.HELD if gone else State.UNKNOWN
            kept[key] = Record(target, Standing(state, now))
        self._records = kept

    def get(self, key: Id) -> Record:
        """One record. KeyError: there is none."""
        return self._records[key]

    def put(self, key: Id, record: Record) -> None:
        """Replace a record, unless it is no longer kept."""
        if key in self._records:
            self._records[key] = record

    def records(self) -> list[Record]:
        """All records, in the order of services and their backends."""
        return list(self._records.values())

    def down(self) -> dict[ServiceKey, frozenset[Address]]:
        """Backends that are to get no new flows, by service."""
        found: dict[ServiceKey, set[Address]] = {}
        for key, record in self._records.items():
            if not record.standing.state.serves:
                found.setdefault(key.service, set()).add(key.backend)
        return {key: frozenset(backends) for key, backends in found.items()}
