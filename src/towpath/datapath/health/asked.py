# SPDX-License-Identifier: Apache-2.0
"""Whom a check asks."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from towpath.model.service import IPIP

if TYPE_CHECKING:
    from towpath.model.kinds import Address
    from towpath.model.service import Forwarding, Tunnel


class Asked(NamedTuple):
    """A backend, as whom it is asked, and by which way."""

    vip: Address
    backend: Address
    forwarding: Forwarding = "dsr"
    """How packets of the service get there."""
    tunnel: Tunnel = IPIP
    """The service's, with forwarding dsr."""
    datagrams: bool = False
    """UDP is asked, not TCP."""
