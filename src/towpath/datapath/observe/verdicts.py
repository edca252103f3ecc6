# SPDX-License-Identifier: Apache-2.0
"""What became of a packet, in words, and what its addresses are called."""

from __future__ import annotations

from typing import TYPE_CHECKING

from towpath.core.recorder.names import Told, backend_name, names
from towpath.datapath.observe.counters import verdict_names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from towpath.datapath.lb.services import Installed
    from towpath.datapath.maps.source import TableSource
    from towpath.model.kinds import Address
    from towpath.model.service import Service, ServiceKey
    from towpath.native.records import Outcome


def describe(
    outcome: Outcome,
    installed: Iterable[Installed],
    services: Mapping[ServiceKey, Service],
    source: TableSource,
    pod: Callable[[str, Address], str | None] = lambda *_: None,
) -> Told:
    """Return ``service=web backend=192.0.2.11 verdict=tx``, as far as there are such, and names.

    What isn't there any more has its number: ``service=#3``. ``pod``: what the pod is called that
    a backend of a service is, by the service's name.
    """
    words = []
    service = next((each for each in installed if each.index == outcome.service), None)
    named = services.get(service.key) if service else None
    if outcome.service:
        words.append(f"service={named.name if named else f'#{outcome.service}'}")
    backend = None
    if outcome.handle:
        backends = service.noted.items() if service else ()
        backend = next((a for a, handle in backends if handle == outcome.handle), None)
        words.append(f"backend={backend or f'#{outcome.handle}'}")
    verdicts = verdict_names(source)
    words.append(f"verdict={verdicts.get(outcome.verdict, outcome.verdict)}")
    return Told(" ".join(words), _names(named, backend, services, pod) if named else {})


def _names(
    service: Service,
    backend: Address | None,
    services: Mapping[ServiceKey, Service],
    pod: Callable[[str, Address], str | None],
) -> Mapping[Address, tuple[str, ...]]:
    at_vip = (each.name for key, each in services.items() if key.vip == service.vip)
    called = "" if backend is None else pod(service.name, backend)
    if called is None and backend is not None:
        called = backend_name(backend, service.name)
    return names(service.vip, at_vip, backend, called or "")
