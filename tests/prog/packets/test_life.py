# SPDX-License-Identifier: Apache-2.0
"""What becomes of flows while backends, services and tables change."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from typing import TYPE_CHECKING

import numpy as np
import pytest
from scapy.layers.inet import IP, TCP, UDP
from tests.prog.masquerade.oracle import fresh, header
from tests.prog.packets.harness import BACKENDS, EPOCH, OTHER_VIP, POD, SHOT, VIP, Rig, service
from tests.prog.packets.oracle import answer, backend, between, ports

from towpath.datapath.lb.contents import Contents
from towpath.datapath.maps.shared import SharedMaps
from towpath.datapath.socket.packets.flows import FlowTable, renew_handles
from towpath.datapath.socket.packets.program import PacketProgram
from towpath.kernel.bpf import bpffs
from towpath.model.service import Backend, BackendState

if TYPE_CHECKING:
    from scapy.packet import Packet

V4 = IP(src=POD, dst=VIP, ttl=64)
BALANCED = {"from_pod.balanced": 1}
BEGUN = BALANCED | {"from_pod.begun": 1}


def syn(port: int = 40000, **more: str) -> Packet:
    """A connection begins."""
    return fresh(IP(src=more.get("source", POD), dst=more.get("vip", VIP))
                 / TCP(sport=port, dport=8080, flags="S"))  # fmt: skip


def segment(flags: str = "A", port: int = 40000) -> Packet:
    """It goes on."""
    return fresh(V4 / TCP(sport=port, dport=8080, flags=flags))


def datagram(port: int = 40000) -> Packet:
    """A question."""
    return fresh(V4 / UDP(sport=port, dport=8080))


def in_state(state: BackendState, *addresses: str) -> list[Backend]:
    """All backends, these in a state."""
    return [
        Backend(ip_address(each), state=state if each in addresses else BackendState.ACTIVE)
        for each in BACKENDS
    ]


def establish(rig: Rig, packet: Packet) -> str:
    """Have a flow be answered and confirmed; its backend."""
    sent = rig.out(packet).packet
    flags = "SA" if TCP in packet else None
    rig.to_pod(answer(sent, TCP(flags=flags) if flags else UDP()))
    if TCP in packet:
        rig.out(segment(port=ports(packet).sport))
    else:
        rig.out(packet)
    return str(header(sent).dst)


@pytest.mark.parametrize("state", [BackendState.DRAINING, BackendState.QUARANTINED])
@pytest.mark.parametrize("begins", [syn, datagram])
def test_a_flow_stays_with_a_backend_that_takes_no_others(
    rig: Rig, begins: object, state: BackendState
) -> None:
    """New ones go elsewhere."""
    packet = begins()  # type: ignore[operator]
    protocol = "tcp" if TCP in packet else "udp"
    rig.apply(service(VIP, BACKENDS, protocol=protocol))
    was = establish(rig, packet)
    rig.apply(service(VIP, in_state(state, was), protocol=protocol))
    more = segment() if TCP in packet else packet
    run = rig.out(more)
    assert run.moved == BALANCED
    assert header(run.packet).dst == was
    others = {header(rig.out(begins(41000 + n)).packet).dst for n in range(32)}  # type: ignore[operator]
    assert others == {*BACKENDS} - {was}


@pytest.mark.parametrize("change", ["removed", "down"])
def test_a_flow_whose_backend_is_gone_gets_another(rig: Rig, change: str) -> None:
    """Of TCP that one says that it knows nothing of it, and both ends learn."""
    rig.apply(service(VIP, BACKENDS), service(VIP, BACKENDS, protocol="udp"))
    for packet, more in ((syn(), segment()), (datagram(), datagram())):
        was = establish(rig, packet)
        left = [each for each in BACKENDS if each != was]
        gone = left if change == "removed" else in_state(BackendState.DOWN, was)
        rig.apply(service(VIP, gone), service(VIP, gone, protocol="udp"))
        run = rig.out(more)
        assert run.moved == BEGUN
        now = header(run.packet).dst
        assert now in left
        reset = answer(run.packet, TCP(flags="R") if TCP in packet else UDP())
        assert header(rig.to_pod(reset).packet).src == VIP
        assert rig.out(more).moved == BALANCED
        rig.apply(service(VIP, BACKENDS), service(VIP, BACKENDS, protocol="udp"))


def test_answers_on_their_way_are_the_services_though_their_backend_has_gone(rig: Rig) -> None:
    """Until the flow gets another."""
    rig.apply(service(VIP, BACKENDS))
    sent = rig.out(syn()).packet
    rig.apply(service(VIP, [each for each in BACKENDS if each != header(sent).dst]))
    assert rig.to_pod(answer(sent, TCP(flags="SA"))).moved == {"to_pod.restored": 1}


def test_a_syn_that_nobody_has_answered_leaves_a_backend_that_drains(rig: Rig) -> None:
    """As one of a port that is used again after its connection's end; an established one stays."""
    rig.apply(service(VIP, BACKENDS))
    was = header(rig.out(syn()).packet).dst
    other = 40001
    while header(rig.out(syn(other)).packet).dst != was:
        other += 1
    establish(rig, syn(other))
    rig.out(segment("FA", other))
    rig.to_pod(answer(between(segment(port=other), None, (was, 8080)), TCP(flags="FA")))
    rig.apply(service(VIP, in_state(BackendState.DRAINING, was)))
    for port in (40000, other):
        run = rig.out(syn(port))
        assert run.moved == BEGUN
        assert header(run.packet).dst != was


def test_a_service_that_has_gone_leaves_packets_alone(rig: Rig) -> None:
    """They are nobody's."""
    rig.apply(service(VIP, BACKENDS))
    establish(rig, syn())
    rig.apply()
    assert rig.out(segment()).moved == {"from_pod.pass_no_service": 1}


def test_affinity_is_the_pods_address(rig: Rig) -> None:
    """As a packet from outside has it; and while tables change the client stays."""
    rig.apply(service(VIP, BACKENDS, affinity=60))
    wanted = backend(syn(), BACKENDS, by_client=True)
    for port in range(40000, 40020):
        assert header(rig.out(syn(port)).packet).dst == wanted
    rig.apply(service(VIP, [*BACKENDS, "10.77.0.4", "10.77.0.5"], affinity=60))
    assert header(rig.out(syn(41000)).packet).dst == wanted


def test_new_flows_by_their_client_alone(rig: Rig) -> None:
    """As packets from outside are given backends, with nothing that remembers it."""
    rig.apply(service(VIP, BACKENDS, hash_by="client"))
    wanted = backend(syn(), BACKENDS, by_client=True)
    for port in range(40000, 40020):
        assert header(rig.out(syn(port)).packet).dst == wanted


def test_who_talks_to_a_backend_itself_is_answered_by_it(rig: Rig) -> None:
    """A flow that would have its answers be the service's is over."""
    rig.apply(service(VIP, BACKENDS[:1]))
    rig.out(syn())
    direct = between(syn(), None, (BACKENDS[0], 8080))
    assert rig.out(direct).moved == {"from_pod.pass_no_service": 1}
    assert rig.to_pod(answer(direct, TCP(flags="SA"))).moved == {"to_pod.pass_no_flow": 1}
    assert not rig.entries()
    rig.out(syn(40001))
    middle = between(segment(port=40001), None, (BACKENDS[0], 8080))
    rig.out(middle)
    assert rig.entries() == 1


def age(rig: Rig, units: int) -> None:
    """Have all flows have been silent for so long."""
    with rig.program.maps["packet_flows"].mmap() as flows:
        seen = flows.array["way"]["life"]["seen"]
        seen -= np.uint16(units)


@pytest.mark.parametrize("timeout", [None, 1000])
def test_a_datagram_after_a_long_pause_begins_another_flow(rig: Rig, timeout: int | None) -> None:
    """Its service's `flow_timeout`, or five minutes."""
    made = service(VIP, BACKENDS, protocol="udp", flow_timeout=timeout)
    rig.apply(made)
    was = establish(rig, datagram())
    rig.apply(replace(made, backends=tuple(in_state(BackendState.DRAINING, was))))
    pause = rig.program.allowed["nat_udp_open"]
    age(rig, pause - 1)
    assert header(rig.out(datagram()).packet).dst == was
    age(rig, pause + 2)
    stays = header(rig.out(datagram()).packet).dst == was
    assert stays == (timeout is not None)


@pytest.mark.thorough
def test_a_table_that_is_full_keeps_what_is_established(network: None) -> None:
    """What was never answered makes room; then new flows are dropped, and counted."""
    assert network is None
    with Rig(flows=1024) as rig:
        rig.apply(service(VIP, BACKENDS[:1]))
        known = [40000 + n for n in range(700)]
        for port in known:
            establish(rig, syn(port))
        runs = [rig.out(syn(port, source="10.244.0.9")) for port in range(1024)]
        assert {"from_pod.drop_full": 1} in [run.moved for run in runs]
        assert rig.entries() <= 1024
        for port in known:
            assert rig.out(segment(port=port)).moved == BALANCED
        age(rig, 10)
        more = [rig.out(syn(port, source="10.244.0.10")).moved for port in range(100)]
        assert more == [BEGUN] * 100


def test_new_flows_are_held_back(network: None) -> None:
    """Beyond the rate; what is known goes on."""
    assert network is None
    with Rig(rate=0) as rig:
        rig.apply(service(VIP, BACKENDS))
        run = rig.out(syn())
        assert (run.moved, run.action) == ({"from_pod.drop_rate": 1}, SHOT)
        assert not rig.entries()


# ---- Other tables --------------------------------------------------------------------------------


def test_flows_of_other_tables_go_on(network: None) -> None:
    """Until they are looked up, and from then on if their backend is there."""
    assert network is None
    pins = bpffs.ensure_bpffs() / "towpath-packets-test"
    try:
        with Rig(pins=pins) as rig:
            rig.apply(service(OTHER_VIP, BACKENDS), service(VIP, BACKENDS))
            gone = [establish(rig, syn(port)) for port in (40000, 40001)]
        left = [each for each in BACKENDS if each != gone[0]]
        with Rig(pins=pins, epoch=EPOCH + 1) as rig:
            rig.apply(service(VIP, left))
            run = rig.out(segment(port=40001))
            assert (run.moved, header(run.packet).dst) == (BALANCED, gone[1])
            run = rig.out(segment(port=40000))
            assert (run.moved, header(run.packet).dst) == (BALANCED, gone[0])
            renew_handles(rig.program, rig.contents)
            run = rig.out(segment(port=40000))
            assert run.moved == BEGUN
            assert header(run.packet).dst in left
            if gone[1] in left:
                run = rig.out(segment(port=40001))
                assert (run.moved, header(run.packet).dst) == (BALANCED, gone[1])
            assert FlowTable(rig.program).count() == 2
    finally:
        bpffs.remove_pins(pins)


def test_a_table_of_another_size_is_made_anew(network: None) -> None:
    """What is in the middle of a connection goes by its hash, to the same backend."""
    assert network is None
    pins = bpffs.ensure_bpffs() / "towpath-packets-test"
    try:
        with Rig(pins=pins) as rig:
            rig.apply(service(VIP, BACKENDS))
            was = establish(rig, syn())
        tables = SharedMaps(rig.limits)
        try:
            contents = Contents(tables)
            contents.apply([service(VIP, BACKENDS)])
            with PacketProgram(tables, 8192, EPOCH, pins) as program:
                assert set(program.own.fresh) == {"packet_heads", "packet_flows", "packet_locks"}
                program.own.settle()
        finally:
            tables.close()
        with Rig(flows=8192, pins=pins) as rig:
            rig.apply(service(VIP, BACKENDS))
            run = rig.out(segment())
            assert (run.moved, header(run.packet).dst) == (BEGUN, was)
    finally:
        bpffs.remove_pins(pins)
