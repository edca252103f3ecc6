# SPDX-License-Identifier: Apache-2.0
"""Translated packets leave by what takes them, in either direction."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.prog.lb.harness_devices import devices
from tests.prog.lb.oracle import HANDOFF, TX, XDP_PASS, XDP_REDIRECT
from tests.prog.lb.test_egress import BRIDGE, TUNNEL, VETH, left
from tests.prog.snat.harness import BOTH, NatRig, answer, client_frame, nat_rigged, services

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from tests.prog.lb.network import Network


@pytest.fixture(scope="module")
def nat(net: Network) -> Iterator[NatRig]:
    """A load balancer that translates to one address of each family."""
    with nat_rigged(net) as made:
        yield made


@pytest.fixture(autouse=True)
def nothing_known(nat: NatRig) -> None:
    """Each test starts with a service of each kind and no translations."""
    nat.serve()
    nat.empty()
    nat.serve(*services())


@pytest.mark.parametrize(("version", "protocol"), BOTH)
@pytest.mark.parametrize(
    ("can", "verdict", "action"),
    [
        (VETH, TX, XDP_REDIRECT),
        (BRIDGE, HANDOFF, XDP_PASS),
        (TUNNEL, HANDOFF, XDP_PASS),
        (None, HANDOFF, XDP_PASS),
    ],
)
def test_there_and_back(
    nat: NatRig,
    version: int,
    protocol: int,
    can: Collection[str] | None,
    verdict: str,
    action: int,
) -> None:
    """Translated as ever: what XDP_TX would have sent, but for MAC addresses that nobody knows."""
    first = client_frame(version, protocol)
    sent = nat.expect(first, TX)
    back = nat.expect(answer(sent), TX)
    begins = 12 if can in (TUNNEL, None) else 0
    with devices(nat, tpx0=can):
        for _ in range(2):
            there = nat.expect(first, verdict)
            assert (there.action, left(there)[begins:]) == (action, sent.frame[begins:])
            again = nat.expect(answer(sent), verdict)
            assert (again.action, left(again)[begins:]) == (action, back.frame[begins:])
