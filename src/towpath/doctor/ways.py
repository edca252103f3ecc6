# SPDX-License-Identifier: Apache-2.0
"""Whether there is a way to each backend of a configuration, as routes and neighbours are now."""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING

from towpath.datapath.neigh.keeper import Keeper
from towpath.datapath.neigh.next_hops import Destination
from towpath.doctor.capability import Answer, no, yes
from towpath.kernel.net.messages import ROUTE, Netlink

if TYPE_CHECKING:
    from towpath.model.settings import Config

_SHOWN = 5
"""Backends without a way that are named; the others are counted."""
_ON_LINK = "@link"


def question(config: Config) -> str:
    """What to ask `ways`."""
    asked = (
        f"{backend.address}{_ON_LINK if service.forwarding == 'l2' else ''}"
        for service in config.services
        for backend in service.backends
    )
    return ",".join(dict.fromkeys(asked))


def ways(question: str) -> Answer:
    """Which have none, and why. Asks the kernel, and changes nothing. KernelError, OSError."""
    asked = [_destination(each) for each in question.split(",")]
    with Netlink(ROUTE) as netlink:
        keeper = Keeper(netlink, managed=True, inherit=False)
        keeper.note("doctor", asked)
        keeper.resync()
        troubles = keeper.troubles()
    if not troubles:
        return yes(f"to all {len(asked)}" if len(asked) > 1 else f"to {asked[0].address}")
    told = [f"{each.address}: {why.text}" for each, why in troubles.items()]
    more = [f"{len(told) - _SHOWN} more"] if len(told) > _SHOWN else []
    return no("; ".join(told[:_SHOWN] + more))


def _destination(text: str) -> Destination:
    address = ip_address(text.removesuffix(_ON_LINK))
    return Destination(address, on_link=text.endswith(_ON_LINK))
