# SPDX-License-Identifier: Apache-2.0
"""Forwarding l2: the packet as the client sent it, in a frame for the backend."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from scapy.layers.inet import IPOption_NOP
from scapy.layers.l2 import Ether
from tests.guests import cases
from tests.prog.lb.frames import VIPS, ether, frame, ip, segment
from tests.prog.lb.harness import Rig, rigged, service
from tests.prog.lb.network import (
    BEHIND_GATEWAY,
    FAR,
    FAR_UNRESOLVED,
    HOST,
    IN,
    MACS,
    MTU,
    NEAR,
    NEAR_UNRESOLVED,
    NO_ROUTE,
    OUT,
    OWN,
    REFUSED,
    THIRD,
    THIRDS,
    neighbour_mac,
    told_mtu,
)
from tests.prog.lb.network import ip as run_ip
from tests.prog.lb.oracle import HANDOFF, LOCAL, NOT_ON_LINK, REDIRECT, TOO_BIG, TX, Way
from tests.prog.lb.test_nexthop import bare_network, forwarding, until_as_foretold
from tests.prog.lb.test_vlan import tag_of, tagged, vlans

from towpath.kernel.bpf import probe
from towpath.kernel.bpf.probe_fib import fib_lookup
from towpath.kernel.errors import KernelError
from towpath.kernel.net import interfaces
from towpath.model import Backend, Protocol

if TYPE_CHECKING:
    from tests.prog.lb.oracle_parse import Address

COMBINATIONS = [(4, 4), (4, 6), (6, 6)]  # the packet's family, that of the backend's address


def serve(rig: Rig, inside: int, *backends: Address | Backend, **options: Any) -> None:
    """The usual VIP of a family, with these backends on the link."""
    rig.serve(service(VIPS[inside], *backends, forwarding="l2", **options))


# ---- The frame -----------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", Protocol)
@pytest.mark.parametrize(("inside", "outside"), COMBINATIONS)
def test_only_the_frame_is_new(rig: Rig, inside: int, outside: int, protocol: Protocol) -> None:
    """To the backend's MAC address and from the device's own, out of either device."""
    made = frame(inside, protocol.number)
    for backends, home in ((NEAR, IN), (FAR, OUT), (THIRDS, THIRD)):
        serve(rig, inside, *backends[outside], protocol=protocol)
        for device in (IN, OUT):
            outcome = rig.expect(made, TX if device == home else REDIRECT, device)
            assert outcome.backend in backends[outside]
            target = neighbour_mac(home, outcome.backend.packed[-1])
            link = Ether(src=MACS[home].hex(":"), dst=target.hex(":"))
            # A second opinion: scapy takes the type from the packet.
            assert outcome.frame == bytes(link / ip(inside) / segment(protocol.number))


@pytest.mark.parametrize(("inside", "outside"), COMBINATIONS)
def test_the_packet_is_left_alone(rig: Rig, inside: int, outside: int) -> None:
    """TTL, DSCP, ECN, options, checksums right or wrong, padding: all as they came."""
    serve(rig, inside, *NEAR[outside])
    lasts: dict[str, Any] = {"ttl" if inside == 4 else "hlim": 1}
    made = [frame(inside, **lasts), frame(inside) + bytes(18)]
    made += [frame(inside, traffic_class=each) for each in cases(range(256), 7)]
    made.append(bytes(ether() / ip(inside) / segment())[:-3] + b"bad")  # as the checksum was
    if inside == 4:
        made += [frame(4, chksum=0xDEAD), frame(4, id=7, flags=0)]
        for words in range(11):
            header = ip(4, options=[IPOption_NOP()] * 4 * words)
            made.append(bytes(ether() / header / segment()))
    for each in made:
        assert rig.expect(each, TX).frame[14:] == each[14:]


@pytest.mark.parametrize(("inside", "outside"), COMBINATIONS)
def test_tags_are_kept_pushed_popped_and_exchanged(rig: Rig, inside: int, outside: int) -> None:
    """As those of packets in tunnels are; a tag means four bytes more or less in front."""
    for family in ("ipv4", "ipv6"):
        interfaces.set_forwarding(THIRD, family, on=True)
    serve(rig, inside, *NEAR[outside])
    out = rig.expect(tagged(inside, 7, priority=3), TX).frame
    assert (tag_of(out), out[16:]) == (3 << 13 | 7, tagged(inside, 7)[16:])
    assert tag_of(rig.expect(tagged(inside, 7), REDIRECT, OUT).frame) is None
    with vlans(rig, tpx2=(IN, 100), tpx1=(IN, 0xFFE)):
        assert tag_of(rig.expect(tagged(inside, 100), TX).frame) is None
        serve(rig, inside, *THIRDS[outside])
        assert tag_of(rig.expect(frame(inside), TX).frame) == 100
        assert tag_of(rig.expect(tagged(inside, 100, priority=5), TX).frame) == 100
        serve(rig, inside, *FAR[outside])
        assert tag_of(rig.expect(tagged(inside, 100), TX).frame) == 0xFFE


@pytest.mark.parametrize(("inside", "outside"), COMBINATIONS)
@pytest.mark.parametrize(("backends", "device"), [(NEAR, IN), (FAR, OUT), (THIRDS, THIRD)])
def test_exactly_the_mtu_and_a_byte_more(
    rig: Rig, inside: int, outside: int, backends: dict[int, list[Address]], device: str
) -> None:
    """Nothing is added: what counts is the packet as it came."""
    serve(rig, inside, backends[outside][0])
    verdict = TX if device == IN else REDIRECT
    room = MTU[device] - (len(frame(inside, payload=b"")) - 14)
    above = TOO_BIG if fib_lookup().mtu else verdict
    for _ in range(2):
        rig.expect(frame(inside, payload=bytes(room)), verdict)
        rig.expect(frame(inside, payload=bytes(room)) + bytes(100), verdict)
        rig.expect(frame(inside, payload=bytes(room + 1)), above)
        rig.forget_ways()


# ---- The way -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("inside", "outside"), COMBINATIONS)
def test_a_gateway_is_no_way(rig: Rig, inside: int, outside: int) -> None:
    """It would send the packet on to the VIP, which is here. Resolved or not."""
    serve(rig, inside, BEHIND_GATEWAY[outside])
    for device in (IN, OUT):
        for _ in range(3):
            rig.expect(frame(inside), NOT_ON_LINK, device)


@pytest.mark.parametrize(("inside", "outside"), COMBINATIONS)
def test_a_route_that_gets_a_gateway_and_loses_it(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, inside: int, outside: int
) -> None:
    """Followed within a jiffy: on the link, behind a host, behind one not resolved, back again."""
    target, made = NO_ROUTE[outside], frame(inside)
    host = f"{target}/{HOST[outside]}"
    ways, mac = rig.world.ways.copy(), neighbour_mac(IN, 0x77)
    here = Way(rig.devices[IN], OWN[IN][outside], MACS[IN], mac, told_mtu(IN))
    near, unresolved = NEAR[outside][0], NEAR_UNRESOLVED[outside]
    behind = replace(here, gateway=near)
    serve(rig, inside, target)
    rig.expect(made, "drop_no_route")
    run_ip(f"neigh replace {target} lladdr {mac.hex(':')} dev {IN}")
    changes = [
        (f"replace {host} dev {IN}", here, TX),
        (f"replace {host} via {near}", behind, NOT_ON_LINK),
        (f"replace {host} via {unresolved}", behind, NOT_ON_LINK),
        (f"replace {host} dev {IN}", here, TX),
        (f"delete {host}", ways[target], "drop_no_route"),
    ]
    if outside == 4:
        by_v6 = f"replace {host} via inet6 {NEAR[6][0]} dev {IN}"
        changes.insert(1, (by_v6, behind, NOT_ON_LINK))
    try:
        for command, way, verdict in changes:
            run_ip(f"route {command}")
            monkeypatch.setitem(rig.world.ways, target, way)
            until_as_foretold(rig, made)
            rig.expect(made, verdict)
    finally:
        run_ip(f"neigh delete {target} lladdr {mac.hex(':')} dev {IN}")


@pytest.mark.parametrize(("inside", "outside"), COMBINATIONS)
@pytest.mark.parametrize("device", [IN, OUT])
def test_an_unresolved_backend_is_the_kernels_to_resolve(
    rig: Rig, inside: int, outside: int, device: str
) -> None:
    """Told in front of the packet: the device and the address, which the packet doesn't have."""
    for backends in (NEAR_UNRESOLVED, FAR_UNRESOLVED):
        serve(rig, inside, backends[outside])
        for made in (frame(inside), tagged(inside, 7)):
            outcome = rig.expect(made, HANDOFF, device)
            assert outcome.frame.endswith(frame(inside)[14:])
            if rig.world.shows_note:
                assert outcome.frame[16:32].endswith(backends[outside].packed)


@pytest.mark.parametrize(("inside", "outside"), COMBINATIONS)
def test_a_drivers_metadata_goes_with_the_packet(rig: Rig, inside: int, outside: int) -> None:
    """Unless the packet is the kernel's to send: then the note takes its place."""
    if not probe.test_run_context():
        with pytest.raises(KernelError, match=r"test run of program towpath_lb: .*that context"):
            rig.run(frame(inside), metadata=bytes(4))
        return
    metadata = bytes(range(16))
    for backend in (NEAR[outside][0], NEAR_UNRESOLVED[outside]):
        serve(rig, inside, backend)
        judged = rig.world.judge(frame(inside), rig.devices[IN])
        run = rig.run(frame(inside), metadata=metadata)
        expected = judged.frame if judged.verdict == HANDOFF else metadata + judged.frame
        assert (run.retval, run.data) == (judged.action, expected)


@pytest.mark.parametrize(("inside", "outside"), COMBINATIONS)
def test_routes_that_lead_nowhere(rig: Rig, inside: int, outside: int) -> None:
    """Dropped each with its own reason, as of packets in tunnels."""
    for addresses, verdict in (*REFUSED.values(), (NO_ROUTE, "drop_no_route")):
        serve(rig, inside, addresses[outside])
        rig.expect(frame(inside), verdict)
    serve(rig, inside, OWN[IN][outside])
    rig.expect(frame(inside), LOCAL)


@pytest.mark.parametrize("outside", [4, 6])
def test_forwarding_switched_off_on_the_ingress_device(rig: Rig, outside: int) -> None:
    """Of the family of the backend's address, for which the kernel is asked."""
    serve(rig, 4, NEAR[outside][0])
    with forwarding(rig, IN, outside, on=False):
        rig.expect(frame(4), "drop_no_forwarding", IN)
        rig.expect(frame(4), REDIRECT, OUT)
    rig.expect(frame(4), TX, IN)


def test_a_node_without_an_address_will_do() -> None:
    """Nothing is sent from the node's own address; in a tunnel it would be."""
    with bare_network(loopback=True) as net, rigged(net, devices=(IN,)) as rig:
        for inside, outside in COMBINATIONS:
            near = NEAR[outside][0]
            mac = neighbour_mac(IN, 0x11)
            rig.world.ways[near] = Way(
                rig.devices[IN], None, MACS[IN], mac, told_mtu(IN), refused="drop_no_address"
            )
            for _ in range(20):
                serve(rig, inside, near)
                rig.expect(frame(inside), TX)
                rig.serve(service(VIPS[inside], near))
                rig.expect(frame(inside), "drop_no_address")


@pytest.mark.parametrize(("inside", "outside"), COMBINATIONS)
def test_forwarding_changes_between_two_packets(rig: Rig, inside: int, outside: int) -> None:
    """What is kept of a look-up holds for the forwarding that it was made for; flows stay."""
    rig.serve()
    backends = (*NEAR[outside][:3], BEHIND_GATEWAY[outside])
    first: dict[int, object] = {}
    for round_ in range(20):
        for l2 in (True, False):
            rig.serve(service(VIPS[inside], *backends, forwarding="l2" if l2 else "dsr"))
            for sport in range(12):
                outcome = rig.check(frame(inside, sport=sport))
                behind = outcome.backend == BEHIND_GATEWAY[outside]
                assert outcome.verdict == (NOT_ON_LINK if l2 and behind else TX)
                assert first.setdefault(sport, outcome.backend) == outcome.backend
                assert outcome.fresh == (l2 and round_ == 0)
    assert len(set(first.values())) == len(backends)


@pytest.mark.parametrize(("inside", "outside"), COMBINATIONS)
def test_services_of_both_kinds_stand_side_by_side(rig: Rig, inside: int, outside: int) -> None:
    """With the same backends."""
    rig.serve(
        service(VIPS[inside], *NEAR[outside], forwarding="l2"),
        service(VIPS[inside], *NEAR[outside], port=81),
    )
    for sport in range(50):
        changed = [rig.expect(frame(inside, sport=sport, dport=port), TX) for port in (80, 81)]
        assert len(changed[1].frame) - len(changed[0].frame) == {4: 20, 6: 40}[outside]
