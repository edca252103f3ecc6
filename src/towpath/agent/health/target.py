# SPDX-License-Identifier: Apache-2.0
"""What is checked, by which way, and how a check ends that doesn't pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from towpath.model.health import checked_address, first_port

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable

    from towpath.model import Address, Backend, Health, Service, ServiceKey


class FailedError(Exception):
    """The backend did not pass; the message says why."""


class UnableError(Exception):
    """This node could not make the check; that says nothing about the backend."""


class Path(Protocol):
    """The way to backends: :class:`towpath.datapath.health.HealthPath`."""

    def open(self, vips: Iterable[Address]) -> None:
        """Get ready for checks of these VIPs. KernelError."""
        ...

    def close(self) -> None:
        """There are no more checks."""
        ...

    def connection(self, vip: Address, backend: Address, *, l2: bool = False) -> socket.socket:
        """A socket to be connected to a VIP, which reaches that backend."""
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
    l2: bool = False
    """Whether the service's packets go on as they are, in a frame for the backend."""
    direct: bool = False
    """Whether they go to the backend's own address, being translated. The port is that there."""

    @property
    def end(self) -> tuple[Address, int]:
        """Where a check connects to."""
        return (self.backend if self.direct else self.vip), self.port

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
            l2=service.forwarding == "l2",
            direct=service.forwarding == "snat",
        )
