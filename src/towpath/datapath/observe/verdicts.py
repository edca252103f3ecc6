# SPDX-License-Identifier: Apache-2.0
"""What became of a packet, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from towpath.datapath.observe.counters import verdict_names

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from towpath.datapath.lb.services import Installed
    from towpath.datapath.maps.source import TableSource
    from towpath.model.service import Service, ServiceKey
    from towpath.native.records import Outcome


def describe(
    outcome: Outcome,
    installed: Iterable[Installed],
    services: Mapping[ServiceKey, Service],
    source: TableSource,
) -> str:
    """Return ``service=web backend=192.0.2.11 verdict=tx``, as far as there are such.

    What isn't there any more has its number: ``service=#3``.
    """
    words = []
    service = next((each for each in installed if each.index == outcome.service), None)
    if outcome.service:
        named = services.get(service.key) if service else None
        words.append(f"service={named.name if named else f'#{outcome.service}'}")
    if outcome.handle:
        backends = service.handles.items() if service else ()
        found = next((str(a) for a, handle in backends if handle == outcome.handle), None)
        words.append(f"backend={found or f'#{outcome.handle}'}")
    names = verdict_names(source)
    words.append(f"verdict={names.get(outcome.verdict, outcome.verdict)}")
    return " ".join(words)
