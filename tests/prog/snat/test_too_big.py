# SPDX-License-Identifier: Apache-2.0
"""Source NAT: who sends a packet that is too large for its way out is told what fits."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from scapy.layers.inet import ICMP, IP
from scapy.layers.inet6 import ICMPv6PacketTooBig, IPv6
from scapy.layers.l2 import Dot1Q, Ether
from tests.prog.lb.frames import CLIENTS, VIPS
from tests.prog.lb.network import FAR, GATEWAY, IN, MTU, NEAR, OUT, neighbour
from tests.prog.lb.network import ip as run_ip
from tests.prog.lb.oracle import REDIRECT, TOO_BIG, TOO_LARGE, TX, XDP_DROP
from tests.prog.lb.wire_fragments import cut, summed
from tests.prog.snat.harness import (
    BOTH,
    SOURCES,
    NatRig,
    answer,
    client_frame,
    snat_service,
)
from tests.prog.snat.harness_fragments import entry_ends, framed, pattern, reversed_ends, whole
from tests.prog.snat.test_icmp import ROUTERS, error

from towpath.kernel.bpf.probe_fib import fib_lookup
from towpath.model import Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.prog.lb.oracle import Outcome
    from tests.prog.lb.oracle_parse import Address

# A service of each kind, no translations, and no fragments.
pytestmark = pytest.mark.usefixtures("nothing_known")

HEADER = {4: 20, 6: 40}
QUOTED = {4: 548, 6: 1232}
QUIET = "drop_mtu_quiet"
ANSWERS = 8  # of a CPU, in a jiffy


@pytest.fixture(autouse=True)
def _told_mtu() -> None:
    """Only where the FIB look-up tells the MTU."""
    if not fib_lookup().mtu:
        pytest.skip("the FIB look-up tells no MTU")  # before 5.12


def large(length: int, make: Callable[..., bytes], *, dont_fragment: bool = True) -> bytes:
    """A frame whose IP packet has that length, and may not be fragmented."""
    bare = make(payload=b"")
    start = 18 if bare[12:14] == b"\x81\x00" else 14
    made = make(payload=pattern(length - (len(bare) - start)))
    packet = bytearray(made[start:])
    if packet[0] >> 4 == 4 and dont_fragment:
        packet[6] |= 0x40
        packet[:] = summed(bytes(packet))
    return made[:start] + bytes(packet)


def client(version: int, protocol: int = 6, **fields: Any) -> Callable[..., bytes]:
    """What makes a client's frames."""
    return lambda payload: client_frame(version, protocol, payload=payload, **fields)


def back(sent: Outcome, **fields: Any) -> Callable[..., bytes]:
    """What makes those of its backend's answers."""
    return lambda payload: answer(sent, payload=payload, **fields)


@contextmanager
def mtu_of(nat: NatRig, target: Address, mtu: int) -> Iterator[None]:
    """The way to a backend or a client has that MTU in the block: the FIB tells locked ones."""
    way = nat.world.ways[target]
    to = f"{target}/{target.max_prefixlen}"
    gateway = neighbour(IN, target.version, GATEWAY)
    via = f"via {gateway} dev {IN}" if target in CLIENTS.values() else f"dev {IN}"
    run_ip(f"route replace {to} {via} mtu lock {mtu}")
    nat.world.ways[target] = replace(way, mtu=mtu)
    nat.forget_ways()
    try:
        yield
    finally:
        run_ip(f"route del {to}", *([f"route add {to} {via}"] if "via" in via else []))
        nat.world.ways[target] = way
        nat.forget_ways()


# ---- Who is told ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "protocol"), BOTH)
def test_a_byte_too_many_is_answered(nat: NatRig, version: int, protocol: int) -> None:
    """In both directions; the flow is there, and nothing else is counted."""
    sent = nat.expect(client_frame(version, protocol), TX)
    for make in (client(version, protocol), back(sent)):
        nat.expect(large(MTU[IN], make), TX)
        for length in (MTU[IN] + 1, MTU[IN] + 2, 2000, 3001):
            nat.expect(large(length, make), TOO_BIG)
        nat.forget_ways()
        nat.expect(large(MTU[IN] + 1, make), TOO_BIG)
        nat.expect(large(MTU[IN], make), TX)


@pytest.mark.parametrize(("version", "protocol"), BOTH)
def test_another_way_out(nat: NatRig, version: int, protocol: int) -> None:
    """Has an MTU of its own; the answer goes back where the packet came from."""
    nat.serve(
        snat_service(version, *FAR[version], protocol={6: Protocol.TCP, 17: Protocol.UDP}[protocol])
    )
    sent = nat.expect(client_frame(version, protocol), REDIRECT)
    nat.expect(large(MTU[OUT], client(version, protocol)), REDIRECT)
    nat.expect(large(MTU[OUT] + 1, client(version, protocol)), TOO_BIG)
    nat.expect(large(MTU[IN], back(sent)), REDIRECT, OUT)
    nat.expect(large(MTU[IN] + 1, back(sent)), TOO_BIG, OUT)


@pytest.mark.parametrize("version", [4, 6])
def test_a_new_flow_is_answered_and_kept(nat: NatRig, version: int) -> None:
    """Its sender comes again, with less."""
    assert nat.expect(large(1600, client(version, flags="A")), TOO_BIG).fresh
    assert not nat.expect(large(1500, client(version, flags="A")), TX).fresh


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("vlan", [None, 7])
@pytest.mark.parametrize("reply", [False, True])
def test_the_answer_as_others_read_it(
    nat: NatRig, version: int, vlan: int | None, *, reply: bool
) -> None:
    """By scapy: from whom the packet was for, checksums right, the packet quoted as it came."""
    begun = nat.expect(client_frame(version, vlan=vlan), TX)
    there, _ = entry_ends(begun)
    source, target = VIPS[version], CLIENTS[version]
    if reply:
        source, target = there.source, there.destination
        assert source == SOURCES[version]
    make = back(begun, vlan=vlan) if reply else client(version, vlan=vlan)
    sent = large(1540, make)
    got, was = Ether(nat.expect(sent, TOO_BIG).frame), Ether(sent)
    assert (got.src, got.dst) == (was.dst, was.src)
    if vlan is not None:
        assert bytes(got)[12:18] == sent[12:18]
        assert Dot1Q in got
    network = got[IP if version == 4 else IPv6]
    assert (network.src, network.dst) == (str(source), str(target))
    message = network[ICMP if version == 4 else ICMPv6PacketTooBig]
    if version == 4:
        assert (message.type, message.code, message.nexthopmtu) == (3, 4, MTU[IN])
    else:
        assert (message.type, message.code, message.mtu) == (2, 0, MTU[IN])
    assert bytes(network)[HEADER[version] + 8 :] == sent[-1540:][: QUOTED[version]]
    again = network.copy()
    if version == 4:
        del again.chksum, again[ICMP].chksum
    else:
        del again[ICMPv6PacketTooBig].cksum
    assert bytes(again) == bytes(network)


def test_ways_with_small_mtus(nat: NatRig) -> None:
    """Towards the backend and towards the client; IPv6 senders are told 1280 at least."""
    for version in (4, 6):
        nat.serve(snat_service(version, NEAR[version][0]))
        sent = nat.expect(client_frame(version), TX)
        for target, make in ((NEAR[version][0], client(version)), (CLIENTS[version], back(sent))):
            for mtu in {4: (1400, 576, 500), 6: (1400, 1300, 1280)}[version]:
                with mtu_of(nat, target, mtu):
                    nat.expect(large(mtu, make), TX)
                    for length in (mtu + 1, 1500):
                        nat.expect(large(length, make), TOO_BIG)


# ---- Who is not ----------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [6, 17])
def test_ipv4_that_may_be_fragmented(nat: NatRig, protocol: int) -> None:
    """Its sender asked for fragments, which XDP can't make: he is told all the same, or not."""
    sent = nat.expect(client_frame(4, protocol), TX)
    settings = nat.balancer._program.rows("settings")
    for make in (client(4, protocol), back(sent)):
        nat.expect(large(1501, make, dont_fragment=False), TOO_BIG)
        settings["too_big_df"] = nat.world.df_only = True
        nat.expect(large(1501, make, dont_fragment=False), TOO_LARGE)
        nat.expect(large(1501, make), TOO_BIG)
        settings["too_big_df"] = nat.world.df_only = False


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("target", ["ffffffffffff", "010000000001"])
def test_frames_to_many(nat: NatRig, version: int, target: str) -> None:
    """Whoever sees the frame might answer it (RFC 1122, 3.2.2)."""
    sent = nat.expect(client_frame(version), TX)
    for make in (client(version), back(sent)):
        nat.expect(bytes.fromhex(target) + large(1501, make)[6:], TOO_LARGE)


@pytest.mark.parametrize("protocol", [6, 17])
def test_fragments_that_are_too_large(nat: NatRig, protocol: int) -> None:
    """IPv6 ones are answered, of IPv4 the first one: of others there are no ports to quote."""
    for version in (4, 6):
        packet = whole(version, protocol, size=4000)
        sent = [nat.expect(framed(each), TX) for each in cut(packet, 800, 1)]
        there, _ = entry_ends(sent[0])
        answered = whole(version, size=4000, ends=reversed_ends(there))
        for number, each in enumerate((packet, answered)):
            wide = cut(each, 1600, 100 + number)
            assert len(wide) == 3
            nat.expect(framed(wide[0]), TOO_BIG)
            nat.expect(framed(wide[1]), TOO_BIG if version == 6 else TOO_LARGE)
            nat.expect(framed(wide[2]), TX)
            if version == 4:
                kept = [bytes(part[:6]) + bytes((part[6] | 0x40,)) + part[7:] for part in wide]
                nat.expect(framed(summed(kept[0])), TOO_BIG)
                nat.expect(framed(summed(kept[1])), TOO_LARGE)


@pytest.mark.parametrize("version", [4, 6])
def test_errors_are_not_answered(nat: NatRig, version: int) -> None:
    """Neither those for the client nor those for the backend (RFC 1122, 3.2.2; RFC 4443, 2.4)."""
    nat.serve(snat_service(version, NEAR[version][0]))
    begun = nat.expect(client_frame(version, payload=pattern(1300)), TX)
    answered = nat.expect(answer(begun, payload=pattern(1300)), TX)
    there, _ = entry_ends(begun)
    kind = {4: (3, 4), 6: (2, 0)}[version]
    for target, to, quoted in (
        (CLIENTS[version], there.source, begun),
        (NEAR[version][0], VIPS[version], answered),
    ):
        came = error(ROUTERS[version], to, quoted.frame[14:], kind=kind)
        with mtu_of(nat, target, 1300):
            before = nat.counters()
            run = nat.run(framed(came))
            assert (run.retval, run.data) == (XDP_DROP, framed(came))
            moved = nat.moved(before, nat.counters())
            assert moved.pop(TOO_LARGE) == 1
            counted = {"packets": 1, "bytes": len(came), "drops": 1, TOO_LARGE: 1}
            to_client = target in CLIENTS.values()
            expected = {} if to_client else {(begun.key, unit): n for unit, n in counted.items()}
            assert moved == expected


# ---- How often -----------------------------------------------------------------------------------


@pytest.mark.host
@pytest.mark.parametrize("reply", [False, True])
def test_a_flood_is_answered_so_often_and_no_more(nat: NatRig, *, reply: bool) -> None:
    """The rest are dropped under a name of their own, and only in the same jiffy."""
    sent = nat.expect(client_frame(4), TX)
    made = large(1501, back(sent) if reply else client(4))
    for _ in range(20):  # until none of the packets met the next jiffy
        verdicts = nat.tables["verdict_cpus"]["packets"]
        before = verdicts.sum(axis=0)
        nat.run(made)
        start = nat.tables["flow_cpus"]["answer_tick"].max()
        for _ in range(ANSWERS + 4):
            nat.run(made, new_jiffy=False)
        if nat.tables["flow_cpus"]["answer_tick"].max() == start:
            break
    moved = verdicts.sum(axis=0) - before
    names = {name: number for number, name in nat._verdicts.items()}
    assert moved.sum() == ANSWERS + 5
    assert moved[names[TOO_BIG]] == ANSWERS
    assert moved[names[QUIET]] == 5
    nat.expect(made, TOO_BIG)
