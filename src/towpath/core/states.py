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
    services: Iterable[Service],
    verdicts: Mapping[BackendKey, BackendState],
    *,
    fail_open: bool = True,
) -> tuple[Service, ...]:
    """Return the services with the state of each backend as it is to be.

    ``verdicts`` say what was found; a backend that has none is well. The worse of wish
    and finding holds: nobody who was told to drain gets flows for being well, and one
    that was found down loses its flows even while it drains.

    ``fail_open``: a service that would have nobody left for new flows only for what was
    found is left as it is wished for, since findings about all are more often wrong than
    right. Otherwise its new flows are dropped.

    Services that nothing changes for are the very objects.
    """
    judged = {key.service for key in verdicts}
    if not judged:
        return tuple(services)
    return tuple(
        _judged(service, verdicts, fail_open=fail_open) if service.key in judged else service
        for service in services
    )


def _judged(
    service: Service, verdicts: Mapping[BackendKey, BackendState], *, fail_open: bool
) -> Service:
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
    if backends == service.backends:
        return service
    somebody = any(each.takes_flows for each in service.backends)
    if fail_open and somebody and not any(each.takes_flows for each in backends):
        return service
    return replace(service, backends=backends)
