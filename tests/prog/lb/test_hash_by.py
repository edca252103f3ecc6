# SPDX-License-Identifier: Apache-2.0
"""New flows that are given a backend by their client, or by their destination port, alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.guests import cases
from tests.prog.lb.frames import VIPS, frame
from tests.prog.lb.harness import Rig, service
from tests.prog.lb.network import NEAR
from tests.prog.lb.oracle import TX

from towpath.model.kinds import Ports

if TYPE_CHECKING:
    from towpath.model.service import HashBy

BOTH_WAYS = True
PORTS = range(8000, 8064)


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("flow_table", [True, False])
def test_all_flows_to_a_port_are_one_backends(rig: Rig, family: int, flow_table: bool) -> None:  # noqa: FBT001 -- a case
    """Whoever asks; ports are spread over backends."""
    made = service(
        VIPS[family],
        *NEAR[family],
        port=Ports.of([(PORTS[0], PORTS[-1])]),
        hash_by="port",
        flow_table=flow_table,
    )
    rig.serve(made)
    seen = set()
    for port in cases(PORTS, 5):
        backends = {
            rig.expect(frame(family, dport=port, sport=sport), TX).backend
            for sport in (1024, 40000, 40001)
        }
        assert len(backends) == 1
        seen |= backends
    assert len(seen) > 1


@pytest.mark.parametrize("family", [4, 6])
def test_all_flows_of_a_client_are_one_backends(rig: Rig, family: int) -> None:
    """Without anything that remembers the client."""
    rig.serve(service(VIPS[family], *NEAR[family], hash_by="client", flow_table=False))
    before = rig.counters()
    backends = {rig.expect(frame(family, sport=sport), TX).backend for sport in range(2000, 2020)}
    assert len(backends) == 1
    assert not [each for each in rig.moved(before, rig.counters()) if "client" in str(each)]


@pytest.mark.parametrize("hash_by", ["client", "port"])
def test_flows_that_are_known_stay(rig: Rig, hash_by: HashBy) -> None:
    """A change of what new ones go by moves none of them."""
    rig.serve(service(VIPS[4], *NEAR[4]))
    sports = range(3000, 3032)
    before = [rig.expect(frame(4, sport=each), TX).backend for each in sports]
    rig.serve(service(VIPS[4], *NEAR[4], hash_by=hash_by))
    assert [rig.expect(frame(4, sport=each), TX).backend for each in sports] == before
    assert len({rig.expect(frame(4, sport=each + 500), TX).backend for each in sports}) == 1
