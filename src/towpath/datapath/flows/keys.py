# SPDX-License-Identifier: Apache-2.0
"""Flows of the kernel's connection tracking as programs name them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from towpath.kernel.net.conntrack_flows import Ends


def flow_key(ends: Ends) -> bytes:
    """``struct flow_key``."""
    return (
        ends.source.rjust(16, b"\0")
        + ends.destination.rjust(16, b"\0")
        + ends.source_port
        + ends.port
        + bytes((ends.protocol, ends.family, 0, 0))
    )
