# SPDX-License-Identifier: Apache-2.0
"""States of backends outlive the process that set them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.guests import examples
from tests.prog.lb.frames import VIPS, flows, frame
from tests.prog.lb.harness import Rig, rigged, service
from tests.prog.lb.network import NEAR, Network
from tests.prog.lb.oracle import TX

from towpath.kernel.bpf import bpffs
from towpath.model import Backend, BackendState

if TYPE_CHECKING:
    from tests.prog.lb.oracle_parse import Address

MANY = examples(300, 60)


def owners(rig: Rig) -> dict[bytes, Address | None]:
    """Send a packet of each of MANY flows: who gets them."""
    return {each: rig.expect(each, TX).backend for each in flows(MANY)}


def test_states_are_read_back(net: Network) -> None:
    """The next process finds them in the kernel, and the flows of those that drain go on."""
    pins = bpffs.ROOT / "towpath-states"
    web = service(
        VIPS[4],
        Backend(NEAR[4][0]),
        Backend(NEAR[4][1], 3, BackendState.DRAINING),
        Backend(NEAR[4][2], 2, BackendState.QUARANTINED),
        Backend(NEAR[4][3], 1, BackendState.DOWN),
    )
    try:
        with rigged(net, pins=pins) as rig:
            rig.serve(service(VIPS[4], *NEAR[4][:4]))
            owners(rig)
            rig.serve(web)
            before = owners(rig)
            world = rig.world
        with rigged(net, pins=pins) as heir:
            (found,) = heir.balancer.observed()
            assert sorted(found.backends, key=lambda each: each.address) == list(web.backends)
            assert not heir.balancer.apply([web]).steps
            heir.world.remembered = world.remembered
            heir.told([web])
            assert owners(heir) == before
            heir.expect(frame(4, sport=1), TX)
    finally:
        bpffs.remove_pins(pins)
