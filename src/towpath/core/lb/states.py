# SPDX-License-Identifier: Apache-2.0
"""What health checks find, laid over what is wished for."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from towpath.model.kinds import Address  # noqa: TC001 - a field's type, which others look up
from towpath.model.service import BackendState, Service, ServiceKey

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


class BackendKey(NamedTuple):
    """What identifies a backend: its service, and its address in it."""

    service: ServiceKey
    address: Address


# Of a wish and a finding the one that comes later here holds.
_SEVERITY = (
    BackendState.ACTIVE,
    BackendState.QUARANTINED,
    BackendState.DRAINING,
    BackendState.DOWN,
)


def effective(
    services: Iterable[Service], verdicts: Mapping[BackendKey, BackendState]
) -> tuple[Service, ...]:
    """Return the services with the state of each backend as it is to be.

    ``verdicts`` say what was found; a backend that has none is well. The worse of wish
    and finding holds: nobody who was told to drain gets flows for being well, and one
    that was found down loses its flows even while it drains.

    Services that nothing changes for are the very objects.
    """
    judged = {key.service for key in verdicts}
    if not judged:
        return tuple(services)
    return tuple(
        _judged(service, verdicts) if service.key in judged else service for service in services
    )


def _judged(service: Service, verdicts: Mapping[BackendKey, BackendState]) -> Service:
    key = service.key
    backends = tuple(
        replace(
            each,
            state=max(
                each.state,
                verdicts.get(BackendKey(key, each.address), BackendState.ACTIVE),
                key=_SEVERITY.index,
            ),
        )
        for each in service.backends
    )
    return service if backends == service.backends else replace(service, backends=backends)
