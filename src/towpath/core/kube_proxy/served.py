# SPDX-License-Identifier: Apache-2.0
"""An address and port that kube-proxy serves."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from towpath.model.kinds import Address


class Served(NamedTuple):
    """One of them. A node port is one for each of the node's addresses that have them."""

    address: Address
    port: int
    protocol: str
    name: str
    """Of the service, as kube-proxy has it: NAMESPACE/NAME:PORT."""
    node_port: bool = False

    def __str__(self) -> str:
        host = f"[{self.address}]" if self.address.version == 6 else self.address  # noqa: PLR2004
        return f"{host}:{self.port} {self.protocol} ({self.name})"


def service_name(namespace: str, name: str, port: str) -> str:
    """Return a service's name, with that of its port if it has one."""
    return f"{namespace}/{name}:{port}" if port else f"{namespace}/{name}"
