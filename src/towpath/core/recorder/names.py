# SPDX-License-Identifier: Apache-2.0
"""What addresses are called in a capture's file: VIPs by their services, backends by their pods.

A backend without a name of its own is called as Kubernetes' DNS calls endpoints, by its address and
its service: ``192-0-2-11.web``.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from towpath.model.kinds import Address, Prefix

MOST_NAMES = 8
"""Of one address: services that share a VIP."""


class Told(NamedTuple):
    """What is said of packets that the same became of."""

    text: str
    names: Mapping[Address, tuple[str, ...]] = {}
    """What the addresses are called that it has."""


def names(
    vip: Address | Prefix, at_vip: Iterable[str], backend: Address | None, called: str
) -> dict[Address, tuple[str, ...]]:
    """Return the names of a service's VIP, and of the backend that a packet went to.

    ``at_vip``: services that are there. ``called``: the backend's own name. A prefix has no name:
    it is many addresses. A backend at the VIP itself is called by the services.
    """
    found: dict[Address, tuple[str, ...]] = {}
    if backend is not None:
        found[backend] = (called,)
    if isinstance(vip, IPv4Address | IPv6Address):
        found[vip] = tuple(sorted(at_vip)[:MOST_NAMES])
    return found


def backend_name(backend: Address, service: str) -> str:
    """Return what a backend is called that has no name of its own."""
    dashed = str(backend).replace(".", "-").replace(":", "-").strip("-")
    return f"{dashed}.{service}"
