# SPDX-License-Identifier: Apache-2.0
"""The single steps that change what the datapath does.

Between any two of them the datapath works: a service that packets can find has
its table, and a table refers only to backends that are there. A process may die
after any step; planning again from what is then observed leads to the same end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from towpath.core.lb.options import Options
    from towpath.model.kinds import Address
    from towpath.model.service import Backend, Service, ServiceKey, SourceRoute


@dataclass(frozen=True, slots=True)
class CreateService:
    """Make room for a service. It has no backends and packets don't find it yet."""

    service: Service

    @property
    def key(self) -> ServiceKey:
        """The service."""
        return self.service.key


@dataclass(frozen=True, slots=True)
class SetOptions:
    """Change how a service works. A new size holds from the next table on."""

    key: ServiceKey
    options: Options


@dataclass(frozen=True, slots=True)
class MoveService:
    """Let packets find the service by other ports, of which some may be those it had."""

    key: ServiceKey
    to: ServiceKey


@dataclass(frozen=True, slots=True)
class AddBackends:
    """Make backends known. No table refers to them yet."""

    key: ServiceKey
    backends: tuple[Backend, ...]


@dataclass(frozen=True, slots=True)
class SetServerIds:
    """Have connection ids name these backends, all of them known, as they say from now on.

    What names one of them and is to name another does so without a moment between: none is taken
    away before all are there.
    """

    key: ServiceKey
    backends: tuple[Backend, ...]


@dataclass(frozen=True, slots=True)
class SetBackend:
    """Note a backend's new weight and state. A table that is set takes effect, not this.

    But for one that is now down: its flows move at once. It is then in no table. And for a
    new port: translated flows that begin go there from now on.
    """

    key: ServiceKey
    backend: Backend


@dataclass(frozen=True, slots=True)
class SetTable:
    """Put a table of these backends, all of them known, in the place of the old one.

    Those that take no flows get no slot. If none is left the table is empty and
    packets of no known flow are dropped.
    """

    key: ServiceKey
    backends: tuple[Backend, ...]


@dataclass(frozen=True, slots=True)
class SetRoutes:
    """Put other routes of sources in the place of those that a service has.

    Those that stay have their tables made anew with each `SetTable`, of the backends that it has.
    """

    key: ServiceKey
    routes: tuple[SourceRoute, ...]
    """As `towpath.core.lb.routes.canonical` has them."""
    backends: tuple[Backend, ...]
    """The service's, all of them known."""


@dataclass(frozen=True, slots=True)
class PublishService:
    """Let packets find the service. Its table is set."""

    key: ServiceKey


@dataclass(frozen=True, slots=True)
class WithdrawService:
    """Let packets find the service no more: they pass to the kernel."""

    key: ServiceKey


@dataclass(frozen=True, slots=True)
class RemoveBackend:
    """Forget a backend that no table refers to any more. Its flows move at once."""

    key: ServiceKey
    address: Address


@dataclass(frozen=True, slots=True)
class DiscardService:
    """Give up the room of a withdrawn service that has no backends left."""

    key: ServiceKey


ServiceStep: TypeAlias = (
    CreateService | SetOptions | PublishService | MoveService | WithdrawService | DiscardService
)
BackendStep: TypeAlias = (
    AddBackends | SetServerIds | SetBackend | SetTable | SetRoutes | RemoveBackend
)
Step: TypeAlias = ServiceStep | BackendStep
