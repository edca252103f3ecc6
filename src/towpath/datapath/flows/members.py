# SPDX-License-Identifier: Apache-2.0
"""Whose flows there are: what the handles in flows stand for."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network
from typing import TYPE_CHECKING, NamedTuple

from towpath.datapath.address import FAMILY_V4, FAMILY_V6

if TYPE_CHECKING:
    from towpath.datapath.address import Address
    from towpath.model.service import ServiceKey


class Member(NamedTuple):
    """A backend of a service: what a handle stands for."""

    service: ServiceKey
    backend: Address
    translated: bool = False
    """Its flows are among those that are translated."""

    @property
    def family(self) -> int:
        """The ``enum family`` of the service's clients."""
        return FAMILY_V4 if isinstance(self.service.vip, IPv4Address | IPv4Network) else FAMILY_V6


Members = dict[int, Member]
"""By handle."""
