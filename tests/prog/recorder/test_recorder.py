# SPDX-License-Identifier: Apache-2.0
"""The recorder: every frame as it came in and as it was sent on, and what became of it.

All frames are run by the program that records; `Rig.check` asserts meanwhile that it balances as
the other one does: action, every byte, and that no other counter moves.
"""

from __future__ import annotations

import struct
from contextlib import ExitStack
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Any

import pytest
from scapy.layers.inet import ICMP, IPOption
from scapy.layers.inet6 import IPv6ExtHdrDestOpt
from scapy.layers.l2 import ARP
from tests.prog.lb.frames import CLIENTS, VIPS, ether, flows, frame, ip, segment
from tests.prog.lb.harness import Rig, rigged, service
from tests.prog.lb.network import (
    FAR,
    FAR_UNRESOLVED,
    IN,
    MTU,
    NEAR,
    NO_ROUTE,
    OUT,
    REFUSED,
    THIRD,
    THIRDS,
)
from tests.prog.recorder.harness import (
    assert_sent_on,
    assert_told,
    recorded,
    serve_all,
)
from tests.read_pcapng import read

from towpath.datapath.errors import DatapathError
from towpath.kernel.bpf import links, probe
from towpath.kernel.bpf.probe_fib import fib_lookup
from towpath.lab.waiting import wait_until
from towpath.loadbalancer import LoadBalancer
from towpath.model import ConfigError, FlowTuple
from towpath.model.capture import Capture

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.prog.lb.network import Network

COMBINATIONS = [(4, 4), (4, 6), (6, 6)]  # what is inside, what is outside
OTHER = {4: ip_address("203.0.113.99"), 6: ip_address("2001:db8:4::99")}


@pytest.fixture
def balancing(net: Network) -> Iterator[Rig]:
    """A load balancer of the test's own."""
    with rigged(net, devices=[THIRD]) as made:
        yield made


# ---- Both sides ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("inner", "outer"), COMBINATIONS)
@pytest.mark.parametrize("vlan", [None, 7])
def test_both_sides_are_captured(rig: Rig, inner: int, outer: int, vlan: int | None) -> None:
    """As it came in and encapsulated, byte for byte, tied by number, flow, service and backend."""
    serve_all(rig, inner, *NEAR[outer], *FAR[outer], FAR_UNRESOLVED[outer])
    frames = [
        frame(inner, protocol, sport=sport, payload=b"x" * (sport % 200), vlan=vlan)
        for protocol in (6, 17)
        for sport in range(1024, 1060)
    ]
    with recorded(rig, filters=[f"0 0 {VIPS[inner]} 80 tcp", "0 0 0 80 udp"]) as capture:
        outcomes = [rig.check(each) for each in frames]
        found = capture.end()
    assert {outcome.verdict for outcome in outcomes} == {"tx", "redirect", "handoff"}
    assert len(found.packets) == 2 * len(frames)
    sides = zip(frames, outcomes, found.packets[::2], found.packets[1::2], strict=True)
    for sent, outcome, came, went in sides:
        assert_told(rig, came, sent, IN, outcome)
        assert_sent_on(rig, went, came, IN, outcome)
    assert len({each.packet_id for each in found.packets}) == len(frames)


@pytest.mark.thorough
def test_header_options_are_captured(rig: Rig) -> None:
    """A frame with IPv4 options, one with IPv6 extension headers, and one padded."""
    frames = [
        bytes(ether() / ip(4, options=[IPOption(b"\x94\x04\0\0")]) / segment()),
        bytes(ether() / ip(6) / IPv6ExtHdrDestOpt() / segment()),
        frame(4, payload=b"") + bytes(6),
    ]
    for sent in frames:
        version = 4 if sent[12:14] == b"\x08\0" else 6
        serve_all(rig, version, *NEAR[version])
        with recorded(rig, filters=["0 0 0 80 tcp"]) as capture:
            outcome = rig.expect(sent, "tx")
            came, went = capture.end().packets
        assert_told(rig, came, sent, IN, outcome)
        assert_sent_on(rig, went, came, IN, outcome)


@pytest.mark.thorough
@pytest.mark.parametrize("inner", [4, 6])
def test_the_other_device_is_named(rig: Rig, inner: int) -> None:
    """What comes in on one device and goes out of it, or of another, has an interface for each."""
    serve_all(rig, inner, *NEAR[inner], *FAR[inner])
    with recorded(rig) as capture:
        outcomes = [rig.check(each, device) for each in flows(20, inner) for device in (IN, OUT)]
        found = capture.end()
    assert {outcome.verdict for outcome in outcomes} == {"tx", "redirect"}
    assert {each.name for each in found.interfaces} == {
        f"{device}-{direction}" for device in (IN, OUT) for direction in ("in", "out")
    }
    for at, outcome in enumerate(outcomes):
        came, went = found.packets[2 * at : 2 * at + 2]
        assert_sent_on(rig, went, came, (IN, OUT)[at % 2], outcome)


# ---- What isn't sent on --------------------------------------------------------------------------

PASSED = [
    ("pass_not_ip", bytes(ether() / ARP())),
    ("pass_protocol", bytes(ether() / ip(4) / ICMP(type="echo-reply"))),
    ("pass_no_vip", frame(dport=81)),
    ("pass_no_vip", frame(6, 17, vip=OTHER[6])),
    ("pass_fragment", bytes(ether() / ip(4, vip=OTHER[4], flags="MF") / segment())),
    ("pass_malformed", frame()[:40]),
    ("pass_malformed", frame()[:14]),
]


@pytest.mark.thorough
@pytest.mark.parametrize(("verdict", "sent"), PASSED)
def test_what_passes_is_captured_once(rig: Rig, verdict: str, sent: bytes) -> None:
    """With the reason, and nothing else."""
    serve_all(rig, 4, *NEAR[4])
    with recorded(rig) as capture:
        outcome = rig.expect(sent, verdict)
        (found,) = capture.end().packets
    assert_told(rig, found, sent, IN, outcome)


@pytest.mark.parametrize("inner", [4, 6])
def test_what_is_dropped_is_captured_once(rig: Rig, inner: int) -> None:
    """With the reason, the service, and the backend if there was one."""
    backends = {
        "drop_no_route": NO_ROUTE[inner],
        "drop_prohibited": REFUSED["prohibit"][0][inner],
    }
    for verdict, backend in backends.items():
        serve_all(rig, inner, backend)
        sent = frame(inner, payload=b"x" * (MTU[OUT] - 40))
        with recorded(rig) as capture:
            outcome = rig.expect(sent, verdict)
            (found,) = capture.end().packets
        assert_told(rig, found, sent, IN, outcome)
    rig.serve(service(VIPS[inner]))
    with recorded(rig) as capture:
        outcome = rig.expect(frame(inner), "drop_no_backend")
        (found,) = capture.end().packets
    assert_told(rig, found, frame(inner), IN, outcome)


@pytest.mark.thorough
@pytest.mark.parametrize("inner", [4, 6])
def test_an_answer_is_captured_beside_what_it_answers(rig: Rig, inner: int) -> None:
    """The packet that is too large, and what its sender is told."""
    if not fib_lookup().mtu:
        pytest.skip("the FIB look-up tells no MTU")  # before 5.12
    serve_all(rig, inner, FAR[inner][0])
    fields: dict[str, Any] = {"flags": "DF"} if inner == 4 else {}
    sent = frame(inner, payload=b"x" * (MTU[OUT] - 40), **fields)
    with recorded(rig) as capture:
        outcome = rig.expect(sent, "tx_too_big")
        came, went = capture.end().packets
    assert_told(rig, came, sent, IN, outcome)
    assert_sent_on(rig, went, came, IN, outcome)


@pytest.mark.thorough
@pytest.mark.parametrize("inner", [4, 6])
def test_without_a_tunnel_both_sides_are_captured(rig: Rig, inner: int) -> None:
    """Of l2 services too, of which only the link header is another one."""
    backends = (*NEAR[inner], *FAR[inner])
    rig.serve(service(VIPS[inner], *backends, forwarding="l2"))
    with recorded(rig) as capture:
        frames = list(flows(20, inner, start=200_000))
        outcomes = [rig.check(each) for each in frames]
        found = capture.end().packets
    assert {outcome.verdict for outcome in outcomes} == {"tx", "redirect"}
    sides = zip(frames, outcomes, found[::2], found[1::2], strict=True)
    for sent, outcome, came, went in sides:
        assert_told(rig, came, sent, IN, outcome)
        assert_sent_on(rig, went, came, IN, outcome)


@pytest.mark.thorough
def test_a_refused_source_has_no_backend(rig: Rig) -> None:
    """Nor the one of the packet before it."""
    rig.serve(service(VIPS[4], *NEAR[4], allow_from=(ip_network("198.51.100.77/32"),)))
    other_source = frame(source=ip_address("198.51.100.78"))
    with recorded(rig) as capture:
        rig.expect(frame(), "tx")
        outcome = rig.expect(other_source, "drop_source")
        found = capture.end().packets[-1]
    assert_told(rig, found, other_source, IN, outcome)


@pytest.mark.thorough
def test_a_trace_is_not_captured(rig: Rig) -> None:
    """Asking where a flow would go leaves nothing in the file."""
    serve_all(rig, 4, *NEAR[4])
    with recorded(rig) as capture:
        asked = FlowTuple.parse(f"{CLIENTS[4]}:4000 -> {VIPS[4]}:80")
        assert rig.balancer.trace(asked).verdict == "tx"
        assert capture.end().packets == []


# ---- Losses --------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_losses_are_counted(rig: Rig) -> None:
    """What finds no room in the ring is lost, counted and told; packets go on all the same."""
    serve_all(rig, 4, *NEAR[4], *FAR[4])
    count = 300
    with recorded(rig, ring_bytes=4096) as capture:
        for each in flows(count, start=100_000):
            rig.check(each)
        found = capture.end()
        progress = capture.recording.progress()
    assert progress.matched == count
    assert 0 < len(found.packets) < count
    # Of a packet whose first side was lost the second one isn't tried.
    came = [each for each in found.packets if each.inbound]
    interfaces = {each.name: each for each in found.interfaces}
    assert interfaces[f"{IN}-in"].received == count
    assert interfaces[f"{IN}-in"].dropped == count - len(came)
    assert progress.lost == sum(each.dropped or 0 for each in found.interfaces)
    # Where people look, too: the first packet after a loss says so. Here nothing comes after it.
    assert not any("lost" in each.said for each in found.packets)
    for interface in found.interfaces:
        assert interface.received is not None
        there = [packet for packet in found.packets if packet.interface is interface]
        assert interface.received - (interface.dropped or 0) == len(there)


@pytest.mark.thorough
def test_the_first_packet_after_a_loss_says_so(rig: Rig) -> None:
    """How many frames were lost before it; all of them together are what was counted."""
    serve_all(rig, 4, *NEAR[4])
    with recorded(rig, ring_bytes=4096) as capture:
        chunks = capture.recording.chunks()
        made = bytes(next(chunks))
        for _ in range(3):
            for each in flows(100):
                rig.run(each, IN, new_jiffy=False)
            made += bytes(next(chunks))
        rig.run(frame(sport=7), IN)
        capture.recording.stop()
        made += b"".join(map(bytes, chunks))
        lost = capture.recording.progress().lost
    found = read(made).packets
    said = [(at, int(each.said["lost"])) for at, each in enumerate(found) if "lost" in each.said]
    assert lost == sum(number for _, number in said) > 200
    # The first one after what there was room for, thrice; the last one is the one that had room.
    assert len(said) == 3
    assert found[said[-1][0]].data == frame(sport=7)


def test_a_read_ring_loses_nothing(rig: Rig) -> None:
    """As long as it is read in time: many times its size goes through it."""
    serve_all(rig, 4, *NEAR[4])
    with recorded(rig, ring_bytes=1 << 16) as capture:
        chunks = capture.recording.chunks()
        made = bytes(next(chunks))
        sent = list(flows(2000))
        for at in range(0, len(sent), 50):
            for each in sent[at : at + 50]:
                rig.run(each, IN, new_jiffy=False)
            made += bytes(next(chunks))
        capture.recording.stop()
        made += b"".join(map(bytes, chunks))
    found = read(made)
    assert [each.data for each in found.packets if each.inbound] == sent
    assert {each.dropped for each in found.interfaces} == {0}


# ---- Several -------------------------------------------------------------------------------------


@pytest.mark.thorough
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (1, 2, 0)])
def test_captures_do_not_disturb_each_other(rig: Rig, order: tuple[int, ...]) -> None:
    """Each gets what it is for and as much of it as it wants, whenever others begin or end."""
    serve_all(rig, 4, *NEAR[4])
    sent = {6: frame(protocol=6, payload=b"x" * 300), 17: frame(protocol=17, payload=b"y" * 300)}
    wishes: list[dict[str, Any]] = [
        {"filters": ["0 0 0 0 tcp"], "snaplen": 50},
        {"filters": ["0 0 0 0 udp"], "snaplen": 200},
        {"snaplen": 100, "direction": "in"},
    ]
    before = _attached(rig)
    rig.check(sent[6])
    with (
        recorded(rig, **wishes[0]) as first,
        recorded(rig, **wishes[1]) as second,
        recorded(rig, **wishes[2]) as third,
    ):
        captures = [first, second, third]
        expected: list[list[bytes]] = [[], [], []]
        going = {0, 1, 2}
        for ending in order:
            for protocol in (6, 17):
                out = rig.expect(sent[protocol], "tx").frame
                for at in going:
                    if at == 2:
                        expected[2].append(sent[protocol][:100])
                    elif (protocol == 6) == (at == 0):
                        cut = wishes[at]["snaplen"]
                        expected[at] += [sent[protocol][:cut], out[:cut]]
            found = captures[ending].end()
            assert [each.data for each in found.packets] == expected[ending]
            going.discard(ending)
        assert rig.balancer.recorder.recordings == ()
        assert _attached(rig) == before


@pytest.mark.thorough
def test_there_are_so_many_captures(rig: Rig) -> None:
    """One more is refused, and those that are there go on."""
    balancer = rig.balancer
    serve_all(rig, 4, *NEAR[4])
    with ExitStack() as stack:
        captures = [stack.enter_context(recorded(rig)) for _ in range(8)]
        with pytest.raises(DatapathError, match="there are 8 captures, which is the most"):
            balancer.record(captures[0].recording.capture)
        rig.expect(frame(), "tx")
        for each in captures:
            assert len(each.end().packets) == 2


def _attached(rig: Rig) -> set[int]:
    return {links.xdp_program_id(index) for index in rig.balancer._attachment.devices}


# ---- Life ----------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_the_program_that_records_is_attached_meanwhile(rig: Rig) -> None:
    """On every device, and afterwards the other one is again."""
    before = _attached(rig)
    assert before == {rig.balancer._program.object.programs["towpath_lb"].id}
    with recorded(rig) as capture:
        assert _attached(rig) == {capture.recording.program.id}
    assert _attached(rig) == before


@pytest.mark.thorough
def test_names_follow_the_services(rig: Rig) -> None:
    """A backend that comes while a capture goes on is called by its address, what is renamed anew.

    Addresses too: a VIP by all its services, a backend by one, said before their first packet.
    """
    serve_all(rig, 4, NEAR[4][0])
    with recorded(rig, direction="in") as capture:
        chunks = capture.recording.chunks()
        made = bytes(next(chunks))
        rig.expect(frame(), "tx")
        made += bytes(next(chunks))
        serve_all(rig, 4, NEAR[4][1])
        rig.expect(frame(), "tx")
        made += bytes(next(chunks))
        rig.serve(*(replace(each, name=f"new-{each.protocol}") for each in rig.balancer.observed()))
        rig.expect(frame(), "tx")
        capture.recording.stop()
        made += b"".join(map(bytes, chunks))
    found = read(made)
    first, second, vip = str(NEAR[4][0]), str(NEAR[4][1]), str(VIPS[4])
    assert [each.said["backend"] for each in found.packets] == [first, second, second]
    before = tuple(f"{each}-80-{vip}" for each in ("tcp", "udp"))
    assert found.named == [
        (0, first, (f"{first.replace('.', '-')}.{before[0]}",)),
        (0, vip, before),
        (1, second, (f"{second.replace('.', '-')}.{before[0]}",)),
        (2, second, (f"{second.replace('.', '-')}.new-tcp",)),
        (2, vip, ("new-tcp", "new-udp")),
    ]
    assert [each.said["service"] for each in found.packets] == [before[0], before[0], "new-tcp"]


@pytest.mark.thorough
def test_the_library_records(net: Network) -> None:
    """A script without an agent gets the file's bytes."""
    with LoadBalancer(THIRD) as balancer, balancer.record(Capture(packets=1)) as recording:
        index = net.devices[THIRD]
        sent = frame()
        context = struct.pack("=6I", 0, len(sent), 0, index, 0, 0)
        recording.program.test_run(sent, ctx=context if probe.test_run_context() else None)
        (found,) = read(b"".join(map(bytes, recording.chunks()))).packets
    assert found.data == sent
    assert found.said["verdict"] == "pass_no_vip"
    with LoadBalancer(THIRD) as balancer, pytest.raises(ConfigError, match="snaplen: 0 is out"):
        balancer.record(Capture(snaplen=0))


@pytest.mark.thorough
def test_a_capture_without_a_reader_dies(balancing: Rig) -> None:
    """When nobody says any more that it is read, packets are no longer looked at."""
    rig = balancing
    serve_all(rig, 4, *THIRDS[4])
    with recorded(rig) as capture:
        recording = capture.recording
        rig.expect(frame(), "tx", THIRD)
        assert recording.progress().seen == 1
        rig.balancer.recorder._closed.set()  # as if the process had stopped

        def is_dead() -> bool:
            before = recording.progress().seen
            rig.expect(frame(), "tx", THIRD)
            return recording.progress().seen == before

        wait_until(is_dead, seconds=120, what="the capture to die")
