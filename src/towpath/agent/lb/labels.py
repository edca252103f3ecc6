# SPDX-License-Identifier: Apache-2.0
"""Labels of services and backends as text, made anew only for what has changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from towpath.agent.http.exposition import escaped

if TYPE_CHECKING:
    from collections.abc import Iterable

    from towpath.agent.health.registry import Record
    from towpath.agent.health.target import Target
    from towpath.datapath.lb.services import Place
    from towpath.model import Service, ServiceKey
    from towpath.model.kinds import Address, Prefix

    Array = np.ndarray[Any, Any]


_SHOWN = 4


class Label(NamedTuple):
    """A sample's labels in two parts; a label whose name sorts in between may be put there.

    ``head`` has backend, port and protocol; ``tail`` service and vip, and the space before the
    sample's value.
    """

    head: str
    tail: str

    @property
    def text(self) -> str:
        """Both."""
        return self.head + self.tail

    def having(self, name: str, value: str) -> str:
        """Both, with one more: reason or result."""
        return f'{self.head}{name}="{value}",{self.tail}'

    @classmethod
    def of_service(cls, name: str, key: ServiceKey) -> Label:
        """The labels of a service."""
        head = f'{{port="{key.port}",protocol="{key.protocol}",'
        return cls(head, f'service="{escaped(name)}",vip="{key.vip}"}} ')

    def of_backend(self, address: Address) -> Label:
        """With a service's labels, those of a backend of it."""
        return self._replace(head=f'{{backend="{address}",{self.head[1:]}')


class _Known(NamedTuple):
    """A service's labels, and what they were made of."""

    name: str
    place: Place
    label: Label
    backends: tuple[Label, ...]
    routes: tuple[str, ...]

    @classmethod
    def of(cls, name: str, place: Place) -> _Known:
        label = Label.of_service(name, place.key)
        backends = tuple(label.of_backend(address) for address, _ in place.handles)
        routes = tuple(label.having("route", _sources(sources)) for sources, _ in place.routes)
        return cls(name, place, label, backends, routes)


def _sources(prefixes: tuple[Prefix, ...]) -> str:
    """The first ones: no other route of the service has any of them."""
    shown = [*map(str, prefixes[:_SHOWN])]
    more = len(prefixes) - len(shown)
    return ",".join([*shown, f"+{more}"] if more else shown)


@dataclass(frozen=True, slots=True)
class Rows:
    """Services and their backends, each with its labels and where it is counted.

    ``indexes``: of services. ``handles``: of backends; ``owners``: the positions of their services
    here; ``translated``: whether their flows are among those that are translated.
    """

    services: tuple[Label, ...]
    indexes: Array
    backends: tuple[Label, ...]
    handles: Array
    owners: Array
    translated: Array
    routes: tuple[str, ...]
    """Labels of services' routes, whole."""
    route_indexes: Array
    """Where their flows are counted."""


class Labels:
    """Keeps rows from one scrape to the next. For one thread at a time."""

    def __init__(self) -> None:
        self._known: dict[ServiceKey, _Known] = {}
        self._made_of: tuple[object, object] = None, None
        self._rows: Rows | None = None

    def rows(self, services: tuple[Service, ...], places: tuple[Place, ...]) -> Rows:
        """The services that are in the kernel, in their order."""
        if self._rows is None or self._made_of != (services, places):
            there = {place.key: place for place in places}
            self._known = {
                service.key: self._of(service.name, there[service.key])
                for service in services
                if service.key in there
            }
            self._rows, self._made_of = _rows(tuple(self._known.values())), (services, places)
        return self._rows

    def _of(self, name: str, place: Place) -> _Known:
        known = self._known.get(place.key)
        if known and (known.name, known.place) == (name, place):
            return known
        return _Known.of(name, place)


def _rows(known: tuple[_Known, ...]) -> Rows:
    counts = [len(each.backends) for each in known]
    return Rows(
        services=tuple(each.label for each in known),
        indexes=np.array([each.place.index for each in known], np.intp),
        backends=tuple(label for each in known for label in each.backends),
        handles=np.array([h for each in known for _, h in each.place.handles], np.uint32),
        owners=np.repeat(np.arange(len(known)), counts),
        translated=np.repeat(np.array([each.place.translated for each in known], bool), counts),
        routes=tuple(text for each in known for text in each.routes),
        route_indexes=np.array([at for each in known for _, at in each.place.routes], np.intp),
    )


class TargetLabels:
    """The labels of what is checked. For one thread at a time."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Target, Label]] = {}

    def of(self, records: Iterable[Record]) -> list[Label]:
        """The labels of each."""
        targets = [record.target for record in records]
        # A target is kept with its label: no other can have its id meanwhile.
        self._known = {id(each): self._known.get(id(each)) or _labelled(each) for each in targets}
        return [self._known[id(each)][1] for each in targets]


def _labelled(target: Target) -> tuple[Target, Label]:
    return target, Label.of_service(target.service, target.key).of_backend(target.backend)
