# SPDX-License-Identifier: Apache-2.0
"""Expressions select what libpcap's own filter selects: its interpreter is the oracle.

Each filter runs in the kernel as it is translated, alone in an XDP program.
"""

from __future__ import annotations

import ctypes
import os
import random
from contextlib import contextmanager
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, TCP, UDP, IPOption
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment
from scapy.layers.l2 import ARP, Dot1Q
from scapy.layers.sctp import SCTP
from scapy.packet import Raw
from tests.prog.lb.frames import ether, frame, ip, segment
from tests.prog.lb.harness import Rig, service
from tests.prog.lb.network import IN, NEAR
from tests.prog.recorder.harness import recorded

from towpath.core.recorder.cbpf import Instruction, TranslationError, translate
from towpath.datapath.errors import DatapathError
from towpath.kernel.bpf import pcap, probe
from towpath.kernel.bpf.libbpf import lib
from towpath.kernel.bpf.programs import BPF_F_XDP_HAS_FRAGS, Program, ProgramType

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

ROOM = 4096
EXPRESSIONS = [
    "tcp",
    "udp",
    "icmp",
    "icmp6",
    "arp",
    "ip",
    "ip6",
    "sctp",
    "not ip",
    "tcp and portrange 8000-8100 and host 10.0.0.1",
    "tcp port 80",
    "udp dst port 53",
    "src port 1003",
    "portrange 78-81",
    "port 80 or port 443",
    "host 198.51.100.7",
    "src net 198.51.100.0/28",
    "dst host 203.0.113.10 and tcp dst port 80",
    "net 2001:db8:3::/64",
    "ip6 and tcp port 80",
    "host 2001:db8:3::7 or host 198.51.100.3",
    "tcp[tcpflags] & (tcp-syn|tcp-fin) != 0",
    "tcp[13] = 18",
    "ip[6:2] & 0x1fff != 0",
    "ip[8] < 64",
    "ip[0] & 0xf != 5",
    "ip[1] & 0xfc != 0",
    "tcp port 80 and (((ip[2:2] - ((ip[0]&0xf)<<2)) - ((tcp[12]&0xf0)>>2)) != 0)",
    "vlan",
    "vlan 5",
    "vlan 5 and tcp port 80",
    "not vlan and udp",
    "vlan and vlan 7 and ip",
    "ether host 02:00:00:00:00:01",
    "ether src 02:00:00:00:00:02",
    "ether broadcast",
    "ether[0] & 1 = 0",
    "less 64",
    "greater 200",
    "len > 100 and len <= 200",
    "ip proto 132",
    "ip6 proto 17",
    "udp[4:2] > 20",
    "icmp[icmptype] = icmp-echo",
    "ip[2:2] / 7 * 7 = ip[2:2]",
    "ip[2:2] % 3 = 1",
    "tcp[0:2] ^ tcp[2:2] > 900",
    "tcp[4:4] + tcp[8:4] != 0",
    "ip[12:4] << 3 > 0x80000000",
    "(tcp or udp) and not (port 80 or net 198.51.100.0/25)",
    "ether[2000] = 0",
    "ip multicast or ip6 multicast or ether multicast",
    "gateway 192.0.2.1 or tcp",
]
NOT_ALONE = {"gateway 192.0.2.1 or tcp"}  # needs a name service, which libpcap says


def corpus() -> list[bytes]:
    """Frames of all kinds: whole, cut off, and with nonsense in them."""
    source = random.Random(7)  # noqa: S311 - the same frames every time
    frames = []
    for number in range(160):
        ports = {"sport": 1000 + number % 7, "dport": source.choice((53, 75, 80, 81, 443, 8050))}
        v4 = ip_address(f"198.51.100.{number}")
        v6 = ip_address(f"2001:db8:3::{number:x}")
        payload = Raw(b"x" * source.randrange(300))
        transports = [
            TCP(**ports, flags=source.choice(["S", "SA", "F", "A"]), seq=number << 20) / payload,
            UDP(**ports) / payload,
            SCTP(**ports),
        ]
        transport = source.choice(transports)
        kinds = [
            ip(4, source=v4, ttl=source.randrange(1, 255), traffic_class=number) / transport,
            ip(4, source=v4, options=[IPOption(b"\x94\x04\0\0")]) / transport,
            ip(4, source=v4, flags="MF") / transport,
            ip(4, source=v4, frag=number, proto=17) / payload,
            ip(4, source=v4) / ICMP(type=source.choice((0, 3, 8))),
            ip(4, source=v4, vip=ip_address("10.0.0.1")) / TCP(dport=8000 + number),
            ip(6, source=v6) / transport,
            ip(6, source=v6) / IPv6ExtHdrDestOpt() / transport,
            ip(6, source=v6) / IPv6ExtHdrFragment(offset=number, nh=17) / payload,
            ip(6, source=v6) / ICMPv6EchoRequest(),
            ARP(),
            Dot1Q(vlan=7) / ip(4, source=v4) / transport,
        ]
        tagged = source.choice((None, None, 5, 6))
        frames.append(bytes(ether(vlan=tagged) / kinds[number % len(kinds)]))
    frames += [each[: source.randrange(14, len(each))] for each in frames]
    for each in frames[:160]:
        mixed = bytearray(each)
        for _ in range(4):
            mixed[source.randrange(len(mixed))] = source.randrange(256)
        frames.append(bytes(mixed))
    frames += [source.randbytes(source.randrange(14, 200)) for _ in range(60)]
    return frames


CORPUS = corpus()
needs_fragments = pytest.mark.skipif(
    not probe.fragments(), reason="XDP programs take no frames in fragments"
)


class _Header(ctypes.Structure):
    """struct pcap_pkthdr."""

    _fields_ = (
        ("seconds", ctypes.c_long),
        ("microseconds", ctypes.c_long),
        ("caplen", ctypes.c_uint32),
        ("len", ctypes.c_uint32),
    )


def oracle(program: Sequence[Instruction]) -> Callable[[bytes], bool]:
    """What libpcap's interpreter says of a frame."""
    made = (pcap._Instruction * len(program))(*(pcap._Instruction(*each) for each in program))
    whole = pcap.Program(len(program), made)
    run = pcap.library().pcap_offline_filter
    run.restype = ctypes.c_int
    run.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)

    def matches(sent: bytes) -> bool:
        header = _Header(caplen=len(sent), len=len(sent))
        return bool(run(ctypes.byref(whole), ctypes.byref(header), sent))

    matches.kept = made  # type: ignore[attr-defined]
    return matches


@contextmanager
def translated(
    program: Sequence[Instruction], room: int = ROOM, *, fragments: bool = False
) -> Iterator[Program]:
    """A program that is nothing but a translated filter."""
    code = translate(program, room, fragments=fragments)
    log = ctypes.create_string_buffer(1 << 16)
    from towpath.kernel.bpf._structs import ProgLoadOpts  # noqa: PLC0415 - for this alone

    opts = ProgLoadOpts(
        prog_flags=BPF_F_XDP_HAS_FRAGS if fragments else 0,
        log_level=1,
        log_size=len(log),
        log_buf=ctypes.addressof(log),
    )
    fd = lib.bpf_prog_load(
        ProgramType.XDP, b"filter", b"GPL", code, len(code) // 8, ctypes.byref(opts)
    )
    assert fd >= 0, f"{os.strerror(-fd)}: {log.value.decode()[-2000:]}"
    with Program(fd) as loaded:
        yield loaded


@pytest.mark.parametrize("expression", [each for each in EXPRESSIONS if each not in NOT_ALONE])
def test_the_same_packets_are_selected(expression: str) -> None:
    """Every frame of the corpus: whole, cut off, mutilated, random."""
    program = pcap.compile_expression(expression)
    matches = oracle(program)
    with translated(program) as loaded:
        wrong = [each for each in CORPUS if bool(loaded.test_run(each).retval) != matches(each)]
    assert not wrong, f"{len(wrong)} of {len(CORPUS)}, the first is {wrong[0].hex()}"


_FAR_OFF = ["ether[5000] = 0x6e", "ether[3519:2] > 0x4000", "ether[3520:4] & 1 = 1", "len > 4000"]


@needs_fragments
@pytest.mark.parametrize("expression", [*(set(EXPRESSIONS) - NOT_ALONE), *_FAR_OFF])
def test_the_same_packets_are_selected_where_they_are_in_fragments(expression: str) -> None:
    """Small ones, and those of which a part lies behind the first fragment."""
    source = random.Random(7)  # noqa: S311 - as above
    large = [each + source.randbytes(source.randrange(3300, 9000)) for each in CORPUS[::9]]
    program = pcap.compile_expression(expression)
    matches = oracle(program)
    with translated(program, fragments=True) as loaded:
        frames = [*CORPUS, *large]
        wrong = [each for each in frames if bool(loaded.test_run(each).retval) != matches(each)]
    assert not wrong, f"{len(wrong)} of {len(frames)}, the first is {wrong[0].hex()}"


def test_the_corpus_tells_expressions_apart() -> None:
    """Most expressions select some of the frames and not all: else they would prove nothing."""
    useful = 0
    for expression in EXPRESSIONS:
        if expression not in NOT_ALONE:
            matches = oracle(pcap.compile_expression(expression))
            useful += 0 < sum(map(matches, CORPUS)) < len(CORPUS)
    assert useful > len(EXPRESSIONS) - 8


# ---- Programs that no expression makes -----------------------------------------------------------

K = st.one_of(
    st.integers(0, 70),
    st.sampled_from(
        (31, 32, 33, 3518, 3520, 65530, 65535, 65536, (1 << 31) - 1, 1 << 31, (1 << 32) - 1)
    ),
)
LOADS = (0x20, 0x28, 0x30, 0x40, 0x48, 0x50, 0x00, 0x80, 0x01, 0x81, 0xB1)
ALUS = (
    *(op << 4 | source | 0x04 for op in range(11) for source in (0, 8) if op != 8),
    0x84,
)
JUMPS = tuple(op << 4 | source | 0x05 for op in (1, 2, 3, 4) for source in (0, 8))
OTHERS = (0x07, 0x87)


@st.composite
def programs(draw: st.DrawFn) -> list[Instruction]:
    """Valid programs of classic BPF: jumps lead forward, the last instruction returns."""
    length = draw(st.integers(1, 25))
    made = []
    for at in range(length):
        left = length - at
        kind = draw(st.sampled_from("lllaaaajjoms"))
        k = draw(K)
        if kind == "l":
            made.append(Instruction(draw(st.sampled_from(LOADS)), 0, 0, k))
        elif kind == "a":
            code = draw(st.sampled_from(ALUS))
            if code & 0xF0 in (0x30, 0x90) and not code & 8:
                k = max(k, 1)
            if code & 0xF0 in (0x60, 0x70) and not code & 8:
                k %= 32  # libpcap's interpreter leaves more to the compiler
            made.append(Instruction(code, 0, 0, k))
        elif kind == "j":
            jt, jf = draw(st.integers(0, left - 1)), draw(st.integers(0, left - 1))
            made.append(Instruction(draw(st.sampled_from(JUMPS)), jt, jf, k))
        elif kind == "m":
            made.append(Instruction(draw(st.sampled_from((0x60, 0x61))), 0, 0, k % 16))
        elif kind == "s":
            made.append(Instruction(draw(st.sampled_from((0x02, 0x03))), 0, 0, k % 16))
        else:
            made.append(Instruction(draw(st.sampled_from(OTHERS)), 0, 0, 0))
    made.append(Instruction(draw(st.sampled_from((0x06, 0x16))), 0, 0, draw(K)))
    return [
        # Memory that was not stored to is 0 here and anything there.
        *(Instruction(0x02, 0, 0, slot) for slot in range(16)),
        *made,
    ]


@needs_fragments
@pytest.mark.host
@settings(max_examples=200, derandomize=True)
@given(
    programs(), st.lists(st.sampled_from(CORPUS), min_size=4, max_size=4), st.binary(max_size=99)
)
def test_any_program_means_the_same_of_fragments(
    program: list[Instruction], frames: list[bytes], more: bytes
) -> None:
    """Loads that end in another fragment than they begin in, too."""
    matches = oracle(program)
    with translated(program, fragments=True) as loaded:
        for each in (*frames, *(each + bytes(range(256)) * 15 + more for each in frames)):
            assert bool(loaded.test_run(each).retval) == matches(each)


@pytest.mark.host
@settings(max_examples=300, derandomize=True)
@given(programs(), st.lists(st.sampled_from(CORPUS), min_size=4, max_size=4))
def test_any_program_means_the_same(program: list[Instruction], frames: list[bytes]) -> None:
    """Loads beyond the end, divisions by zero, shifts by any number, memory, all the jumps."""
    matches = oracle(program)
    with translated(program) as loaded:
        for each in frames:
            assert bool(loaded.test_run(each).retval) == matches(each), each.hex()


# ---- What can't be had ---------------------------------------------------------------------------


def test_what_has_no_room_is_refused() -> None:
    """With how much there is."""
    program = pcap.compile_expression("tcp port 80")
    with pytest.raises(TranslationError, match=r"takes .* instructions; allowed: 20, so a shorter"):
        translate(program, 20)
    size = len(translate(program, 200))
    assert size == 200 * 8


@pytest.mark.parametrize(
    "wrong",
    [
        [Instruction(0xF4, 0, 0, 0)],
        [Instruction(0x38, 0, 0, 0)],
        [Instruction(0x02, 0, 0, 16)],
        [Instruction(0x15, 9, 0, 0), Instruction(0x06, 0, 0, 0)],
    ],
)
def test_what_is_no_program_is_refused(wrong: list[Instruction]) -> None:
    """It doesn't come from libpcap."""
    with pytest.raises(TranslationError):
        translate(wrong, 100)


@pytest.mark.parametrize("expression", ["tcp prot 80", "host 10.0.0.300", "len >"])
def test_nonsense_is_refused(rig: Rig, expression: str) -> None:
    """With libpcap's reason; nothing is captured."""
    with (
        pytest.raises(DatapathError, match=r"expression: .*; allowed: what pcap-filter"),
        recorded(rig, expression=expression),
    ):
        pass
    assert rig.balancer.recorder.recordings == ()


def test_loops_are_refused(rig: Rig) -> None:
    """What only libpcap's own interpreter can do."""
    with (
        pytest.raises(DatapathError, match=r"expression: the filter has a loop \(protochain"),
        recorded(rig, expression="ip6 protochain 17"),
    ):
        pass


# ---- In a capture --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wish", "count"),
    [
        ({"expression": "tcp port 80"}, 2),
        ({"expression": "udp and not port 80"}, 1),
        ({"expression": "udp", "filters": ["0 0 0 80 0"]}, 2),
        ({"expression": "udp port 81", "filters": ["0 0 0 80 0"]}, 0),
        ({"expression": "arp or vlan 5"}, 3),
    ],
)
def test_a_capture_has_an_expression(rig: Rig, wish: dict[str, Any], count: int) -> None:
    """And filters, of which one has to match as well."""
    rig.serve(service(ip_address("203.0.113.10"), *NEAR[4]))
    with recorded(rig, **wish) as capture:
        rig.check(frame())
        for sent in (
            frame(protocol=17),
            frame(protocol=17, vip=ip_address("203.0.113.77")),
            frame(protocol=17, dport=81),
            bytes(ether() / ARP()),
            bytes(ether(vlan=5) / ip(4) / segment(dport=79)),
            bytes(ether(vlan=5) / ip(6) / segment(dport=79)),
        ):
            rig.check(sent, IN)
        assert len(capture.end().packets) == count
