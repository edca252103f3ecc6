# SPDX-License-Identifier: Apache-2.0
"""Fragments whose packet's first one isn't known or went elsewhere, and what they say of a flow."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network
from typing import Any

import pytest
from tests.prog.lb.frames import PORT, VIPS
from tests.prog.lb.network import IN, NEAR
from tests.prog.lb.oracle import (
    LOST,
    NO_BACKEND,
    NOT_FOR_YOU,
    TX,
    XDP_TX,
)
from tests.prog.lb.oracle_parse import FRAGMENT
from tests.prog.snat.harness import (
    BOTH,
    SOURCES,
    NatRig,
    client_frame,
    established,
    services,
    snat_service,
)
from tests.prog.snat.harness_fragments import (
    entry_ends,
    framed,
    pieces,
    reversed_ends,
    whole,
)
from tests.prog.snat.oracle import NO_HOP, NatOutcome

from towpath.model import Protocol

# A service of each kind, no translations, and no fragments.
pytestmark = pytest.mark.usefixtures("nothing_known")


# ---- What is gone --------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "protocol"), BOTH)
def test_a_translation_that_is_gone(nat: NatRig, version: int, protocol: int) -> None:
    """Later fragments are dropped, counted, and make no flow."""
    made = pieces(whole(version, protocol))
    there, _ = entry_ends(nat.expect(made[0], TX))
    back = pieces(whole(version, ends=reversed_ends(there)))
    nat.expect(back[0], TX)
    nat.empty()
    nat.expect(made[1], LOST)
    nat.expect(back[1], LOST)
    assert not nat.tables["nat_flows"]["way"]["ref"].any()


@pytest.mark.parametrize("version", [4, 6])
def test_a_backend_that_is_gone(nat: NatRig, version: int) -> None:
    """Nobody else gets what followed its fragments, though the flow goes on elsewhere."""
    one, other = NEAR[version][:2]
    nat.serve(snat_service(version, one, protocol=Protocol.UDP))
    made = pieces(whole(version))
    there, _ = entry_ends(nat.expect(made[0], TX))
    back = pieces(whole(version, ends=reversed_ends(there)))
    nat.expect(back[0], TX)
    nat.serve(snat_service(version, other, protocol=Protocol.UDP))
    nat.expect(made[1], LOST)
    nat.expect(back[1], LOST)
    nat.expect(back[0], FRAGMENT)
    nat.expect(back[1], FRAGMENT)
    moved = nat.expect(framed(whole(version, size=10)), TX)
    assert (moved.fresh, moved.backend) == (True, other)
    nat.expect(made[2], LOST)
    nat.expect(made[0], TX)
    nat.expect(made[2], TX)


@pytest.mark.parametrize("version", [4, 6])
def test_a_service_that_is_gone(nat: NatRig, version: int) -> None:
    """Its clients' fragments are nobody's; those of answers are lost."""
    made = pieces(whole(version))
    there, _ = entry_ends(nat.expect(made[0], TX))
    back = pieces(whole(version, ends=reversed_ends(there)))
    nat.expect(back[0], TX)
    nat.serve()
    nat.expect(made[1], FRAGMENT)
    nat.expect(back[1], LOST)


def test_first_fragments_that_are_dropped(nat: NatRig) -> None:
    """What follows them is dropped too: without a backend, the right source, a hop left."""
    nat.serve(snat_service(4, protocol=Protocol.UDP), replace_backends(6))
    made = pieces(whole(6))
    nat.expect(made[0], NO_BACKEND)
    nat.expect(made[1], LOST)
    for left in (0, 1):
        for each, verdict in zip(pieces(whole(4, hops=left)), (NO_HOP, LOST), strict=False):
            nat.expect(each, verdict)
    few = (ip_network("192.0.2.0/24"),)
    nat.serve(snat_service(4, protocol=Protocol.UDP, allow_from=few))
    made = pieces(whole(4), 9)
    nat.expect(made[0], NOT_FOR_YOU)
    nat.expect(made[1], LOST)


def replace_backends(version: int) -> Any:
    """A service without any."""
    return replace(snat_service(version, protocol=Protocol.UDP), backends=())


@pytest.mark.parametrize("version", [4, 6])
def test_the_last_hop(nat: NatRig, version: int) -> None:
    """Every fragment is forwarded as a router would: one that may go no farther is dropped."""
    first, later, _ = pieces(whole(version))
    there, _ = entry_ends(nat.expect(first, TX))
    nat.expect(pieces(whole(version, hops=1))[1], NO_HOP)
    assert nat.expect(pieces(whole(version, hops=2))[1], TX).frame != later
    ends = reversed_ends(there)
    for left, verdict in ((1, NO_HOP), (2, TX)):
        for each in pieces(whole(version, ends=ends, hops=left)):
            nat.expect(each, verdict)


# ---- The flow ------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [4, 6])
def test_the_flags_of_a_first_fragment_count(nat: NatRig, version: int) -> None:
    """A reset ends the connection: the next SYN begins another."""
    sent = established(nat, version, 6, 40000)
    for each in pieces(whole(version, 6, flags="A")):
        nat.expect(each, TX)
    assert not nat.expect(client_frame(version, flags="S"), TX).fresh
    for each in pieces(whole(version, 6, flags="RA"), 2):
        nat.expect(each, TX)
    again = nat.expect(client_frame(version, flags="S"), TX)
    assert again.fresh
    there, _ = entry_ends(again)
    for each in pieces(whole(version, ends=reversed_ends(there), flags="RA"), 3):
        nat.expect(each, TX)
    assert nat.expect(client_frame(version, flags="S"), TX).fresh
    assert sent.backend is not None


@pytest.mark.parametrize("version", [4, 6])
def test_fragments_keep_a_flow_alive(nat: NatRig, version: int) -> None:
    """Later ones as well as first ones; they confirm a flow as other packets do."""
    made = pieces(whole(version))
    sent = nat.expect(made[0], TX)
    assert isinstance(sent, NatOutcome)
    there, _ = entry_ends(sent)
    for each in pieces(whole(version, ends=reversed_ends(there))):
        nat.expect(each, TX)
    nat.later(20)
    nat.expect(made[1], TX)
    nat.later(20)
    assert not nat.expect(made[0], TX).fresh
    assert sent.entry is not None
    assert sent.entry.confirmed


# ---- The node's own ------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [4, 6])
def test_the_nodes_own_packets_pass(nat: NatRig, version: int) -> None:
    """In fragments, of the same host to the same address: no answer, so all is the kernel's."""
    made = pieces(whole(version))
    there, _ = entry_ends(nat.expect(made[0], TX))
    back = reversed_ends(there)
    for each in pieces(whole(version, ends=back)):
        nat.expect(each, TX)
    # Under the identification that an answer has just had, too.
    for port in (there.source_port + 1, 53, 9999, 65000):
        for each in pieces(whole(version, ends=replace(back, destination_port=port))):
            nat.expect(each, FRAGMENT)
    for each in pieces(whole(version, ends=back)):
        nat.expect(each, TX)
    other = replace(back, destination=SOURCES[version] + 1)
    for each in pieces(whole(version, ends=other), 5):
        nat.expect(each, FRAGMENT)


def test_traces_leave_nothing(nat: NatRig) -> None:
    """A trace of a fragment says what would happen, and teaches nothing."""
    cookie = nat.balancer._program.cookie.to_bytes(8, "little")
    device = nat.devices[IN].to_bytes(4, "little")
    before = [nat.tables[name].tobytes() for name in ("nat_heads", "nat_flows")]
    for each in pieces(whole(4)):
        nat.run(cookie + device + each[12:])
    assert not nat.fragments.ways["ref"].any()
    assert [nat.tables[name].tobytes() for name in ("nat_heads", "nat_flows")] == before
    for version in (4, 6):
        first, *rest = pieces(whole(version))
        nat.expect(first, TX)
        for each in rest:
            assert nat.run(cookie + device + each[12:]).retval == XDP_TX


def test_vips_are_told_from_sources(nat: NatRig) -> None:
    """Another VIP's fragments leave what they left before."""
    nat.serve(*services(), snat_service(4, port=PORT + 1, protocol=Protocol.UDP))
    made = pieces(whole(4))
    assert nat.expect(made[0], TX).key == (VIPS[4], PORT, 17)
    assert nat.expect(made[1], TX).key == (VIPS[4], PORT, 17)
