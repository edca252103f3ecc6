# SPDX-License-Identifier: Apache-2.0
"""What is checked, by which way, and how a check ends that doesn't pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from towpath.datapath.health.asked import Asked
from towpath.errors import Error
from towpath.model.health import DATAGRAMS, checked_address, first_port
from towpath.model.service import IPIP

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable

    from towpath.model import Address, Backend, Health, Service, ServiceKey
    from towpath.model.service import Forwarding, Tunnel


class CheckFailedError(Error):
    """The backend did not pass; the message says why."""


class NoAnswerError(CheckFailedError):
    """Nothing at all has come back in time: perhaps nothing gets there."""


class CheckNotMadeError(Error):
    """This node could not make the check; that says nothing about the backend."""


@dataclass(slots=True)
class Seen:
    """What a check finds beside whether the backend passes."""

    expires: float | None = None
    """When its certificate is no longer valid, in seconds since 1970. None: it has shown none."""


class ProbePath(Protocol):
    """The way to backends: :class:`towpath.datapath.health.path.HealthPath`."""

    def open(self, vips: Iterable[Address], others: Iterable[Address] = ()) -> None:
        """Get ready for checks of these VIPs, and by other programs of others. KernelError."""
        ...

    def close(self) -> None:
        """There are no more checks."""
        ...

    def connection(self, asked: Asked) -> socket.socket:
        """A socket that reaches a backend when it is connected to `Target.to`."""
        ...


@dataclass(frozen=True, slots=True)
class Target:
    """A backend of a service, and its check."""

    service: str
    key: ServiceKey
    backend: Address
    vip: Address
    port: int
    health: Health
    forwarding: Forwarding = "dsr"
    """How the service's packets get to the backend."""
    tunnel: Tunnel = IPIP

    @property
    def asked(self) -> Asked:
        """What a connection is made for."""
        datagrams = self.health.type in DATAGRAMS
        return Asked(self.vip, self.backend, self.forwarding, self.tunnel, datagrams)

    @property
    def to(self) -> Address:
        """Whom the backend is asked as: the VIP, unless it doesn't know of that."""
        return self.backend if self.forwarding == "snat" else self.vip

    @classmethod
    def of(cls, service: Service, backend: Backend) -> Target:
        """The target that a backend of a service with a check is."""
        health = service.health
        if health is None:
            raise ValueError(f"service {service.name} has no check")
        vip = checked_address(service.vip)
        port = health.port or backend.port or first_port(service.port)
        return cls(
            service.name,
            service.key,
            backend.address,
            vip,
            port,
            health,
            service.forwarding,
            service.tunnel,
        )
