# SPDX-License-Identifier: Apache-2.0
"""Towpath: an XDP layer-4 load balancer, programmed and operated from Python.

Ways in:

- :class:`towpath.LoadBalancer` loads and attaches the datapath in this process, as
  :class:`towpath.SocketLoadBalancer` does for the sockets of a cgroup;
- :class:`towpath.Client` talks to a running agent, :class:`towpath.AsyncClient` does so
  with asyncio. Both load balancers are :class:`towpath.Balancing`;
- :class:`towpath.WildcardTable` writes rules for BPF programs of one's own.

Beside them are the classes that their methods take, return and raise. All are imported when
first asked for, so that ``import towpath`` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from towpath.api.aio import AsyncClient
    from towpath.api.client import Client
    from towpath.balancing import Balancing
    from towpath.errors import ConfigError, ConflictError, Error, KernelError, NotFoundError
    from towpath.loadbalancer import LoadBalancer
    from towpath.model import (
        Affinity,
        Backend,
        BackendState,
        Device,
        Drain,
        FlowTuple,
        Health,
        Icmp,
        Limits,
        Local,
        Protocol,
        Quic,
        Service,
        ServiceKey,
        Snat,
        Source,
        SourceRoute,
        Unwrap,
    )
    from towpath.model.capture import Capture
    from towpath.socketloadbalancer import SocketLoadBalancer
    from towpath.wildcard import Packet, Rule, WildcardTable

__all__ = [
    "Affinity",
    "AsyncClient",
    "Backend",
    "BackendState",
    "Balancing",
    "Capture",
    "Client",
    "ConfigError",
    "ConflictError",
    "Device",
    "Drain",
    "Error",
    "FlowTuple",
    "Health",
    "Icmp",
    "KernelError",
    "Limits",
    "LoadBalancer",
    "Local",
    "NotFoundError",
    "Packet",
    "Protocol",
    "Quic",
    "Rule",
    "Service",
    "ServiceKey",
    "Snat",
    "SocketLoadBalancer",
    "Source",
    "SourceRoute",
    "Unwrap",
    "WildcardTable",
    "__version__",
]

__version__ = "0.1.0"

_MODULES = {
    "towpath.api.aio": ("AsyncClient",),
    "towpath.api.client": ("Client",),
    "towpath.balancing": ("Balancing",),
    "towpath.errors": ("ConfigError", "ConflictError", "Error", "KernelError", "NotFoundError"),
    "towpath.loadbalancer": ("LoadBalancer",),
    "towpath.model": (
        "Affinity",
        "Backend",
        "BackendState",
        "Device",
        "Drain",
        "FlowTuple",
        "Health",
        "Icmp",
        "Limits",
        "Local",
        "Protocol",
        "Quic",
        "Service",
        "ServiceKey",
        "Snat",
        "Source",
        "SourceRoute",
        "Unwrap",
    ),
    "towpath.model.capture": ("Capture",),
    "towpath.socketloadbalancer": ("SocketLoadBalancer",),
    "towpath.wildcard": ("Packet", "Rule", "WildcardTable"),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> object:
    """Import a public class on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'towpath' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """Every public name, whether it was imported yet or not."""
    return sorted(__all__)
