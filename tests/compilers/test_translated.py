# SPDX-License-Identifier: Apache-2.0
"""Source NAT and decapsulation, as the newest compiler makes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.prog.decap import harness as decap
from tests.prog.decap.oracle import UNWRAPPED
from tests.prog.lb.oracle import TX
from tests.prog.snat.harness import answer, client_frame, nat_rigged, services

from towpath.model import Protocol

if TYPE_CHECKING:
    from tests.prog.lb.network import Network

FLOWS = 8


@pytest.mark.parametrize("version", [4, 6])
def test_packets_are_translated(net: Network, version: int) -> None:
    """There and back, with our address and with the flow's own port."""
    with nat_rigged(net) as nat:
        nat.serve(*services())
        for protocol in Protocol:
            for sport in range(1000, 1000 + FLOWS):
                sent = nat.expect(client_frame(version, protocol.number, sport=sport), TX)
                assert sent.fresh
                nat.expect(answer(sent), TX)
                nat.expect(client_frame(version, protocol.number, sport=sport, flags="A"), TX)


def test_packets_are_decapsulated() -> None:
    """Each family in each."""
    with decap.loaded() as unwrapping:
        for outer, inner in decap.COMBINATIONS:
            unwrapping.expect(decap.tunnelled(outer, inner), UNWRAPPED)
