# SPDX-License-Identifier: Apache-2.0
"""Packets of QUIC go where their connection id says, whatever addresses they come from.

Each frame goes the fast way and the general one, see test_fast.py: verdict, bytes and counters are
the oracle's, which reads ids by itself.
"""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, fragment
from scapy.layers.inet6 import IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, fragment6
from tests.guests import cases, examples
from tests.prog.lb.frames import CLIENTS, VIPS, ether, frame, ip, segment
from tests.prog.lb.harness import Rig, rigged, service
from tests.prog.lb.network import NEAR
from tests.prog.lb.oracle import NOT_FOR_YOU, TX
from tests.prog.lb.oracle_quic import DOWN, INITIAL, NAMED, UNKNOWN
from tests.prog.lb.test_fast import BothWays
from tests.prog.lb.test_icmp_errors import answered, error

from towpath import quic
from towpath.bench.cpu import on_one_cpu
from towpath.model import Backend, BackendState, Protocol, Quic
from towpath.model.traced import TracedPacket

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.prog.lb.network import Network
    from tests.prog.lb.oracle import Outcome

V1, V2, GREASED = 1, 0x6B3343CF, 0x1A2A3A4A
FAMILIES = [4, 6]
SERVERS = [17, 300, 2, 65535]
QUIC_LB = Quic(length=2, rotation=3)
FORMS = {
    "quic-lb": QUIC_LB,
    "one byte": Quic(length=1),
    "eight bytes": Quic(length=8, rotation=6, length_self_description=True),
    "katran": Quic("katran"),
}


@pytest.fixture(scope="module")
def both(net: Network) -> Iterator[BothWays]:
    """A load balancer of which each way can be asked."""
    with on_one_cpu(), rigged(net, still=True) as made:
        yield BothWays(made.balancer, net)


def serve(rig: Rig, family: int, config: Quic = QUIC_LB, **options: Any) -> list[Backend]:
    """Backends with ids, as a service of UDP has them."""
    most = config.allowed[1]
    backends = [
        Backend(address, server_id=(min(server_id, most - at),))
        for at, (address, server_id) in enumerate(zip(NEAR[family], SERVERS, strict=False))
    ]
    rig.serve(made(family, *backends, config=config, **options))
    return backends


def made(family: int, *backends: Backend, config: Quic | None = QUIC_LB, **options: Any) -> Any:
    """The service."""
    return service(VIPS[family], *backends, protocol=Protocol.UDP, quic=config, **options)


def made_by(backend: Backend, config: Quic = QUIC_LB, **options: Any) -> bytes:
    """A connection id that names a backend, by the first of its ids."""
    return quic.make(backend.server_id[0], config, **options)


def short(connection_id: bytes, rest: int = 24) -> bytes:
    """A packet with a short header."""
    return b"\x40" + connection_id + bytes(rest)


def long(connection_id: bytes, kind: int = 2, version: int = V1, rest: int = 24) -> bytes:
    """One with a long header, by default Handshake."""
    head = bytes([0xC0 | kind << 4]) + version.to_bytes(4, "big")
    return head + bytes([len(connection_id)]) + connection_id + b"\x08" + bytes(8 + rest)


def of(family: int, data: bytes, sport: int = 40000, **fields: Any) -> bytes:
    """A datagram."""
    return frame(family, 17, payload=data, sport=sport, **fields)


def ask(rig: Rig, family: int, data: bytes, sport: int = 40000, **fields: Any) -> Outcome:
    """Send a datagram that a backend gets."""
    return rig.expect(of(family, data, sport, **fields), TX)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_id_lets_nobody_in(both: BothWays, family: int) -> None:
    """Whom a service isn't for is dropped, whatever backend is named; others go there."""
    allowed = CLIENTS[family] + 1
    backends = serve(both, family, allow_from=(ip_network(allowed),))
    backend = backends[1]
    data = short(made_by(backend))
    both.expect(of(family, data), NOT_FOR_YOU)
    found = ask(both, family, data, source=str(allowed))
    assert (found.said, found.backend) == (NAMED, backend.address)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("forwarding", ["dsr", "l2"])
def test_connections_follow_their_ids(
    both: BothWays, family: int, form: str, forwarding: str
) -> None:
    """From any address and port, in any header that has an id, and by the fast way."""
    config = FORMS[form]
    backends = serve(both, family, config, forwarding=forwarding)
    both.decided = both.declined = 0
    sports = iter(range(2000, 60000))
    for backend in backends:
        for version in (1, 2, 3) if config.server_ids == "katran" else (None,):
            connection_id = made_by(backend, config, version=version)
            for client in range(4):
                source = CLIENTS[family] + client
                for data in (short(connection_id), long(connection_id)):
                    found = ask(both, family, data, next(sports), source=str(source))
                    assert (found.said, found.backend) == (NAMED, backend.address)
            tagged = ask(both, family, short(connection_id), next(sports), vlan=7)
            assert tagged.backend == backend.address
    assert both.decided > both.declined


@pytest.mark.parametrize("family", FAMILIES)
def test_each_of_several_ids_names_its_backend(both: BothWays, family: int) -> None:
    """As Katran's users have them, one for each version; what is given on or taken back is so."""
    config = Quic("katran")
    versions = {1: 0xABCD, 2: 0xABCDEF, 3: 0x7BCDEF01}
    backends = [
        Backend(address, server_id=tuple(each - at for each in versions.values()))
        for at, address in enumerate(NEAR[family][:3])
    ]
    others = [Backend(address) for address in NEAR[family][3:]]
    sports = iter(range(2000, 60000))

    def named(*served: Backend) -> None:
        whose = {number: each.address for each in served for number in each.server_id}
        for version, highest in versions.items():
            for number in range(highest - 3, highest + 1):
                data = short(quic.make(number, config, version=version))
                found = ask(both, family, data, next(sports))
                said = NAMED if number in whose else UNKNOWN
                assert (found.said, whose.get(number, found.backend)) == (said, found.backend)

    first, second, third = backends
    both.serve(made(family, *backends, *others, config=config))
    named(*backends)
    # One more and one fewer; all of one to another; one each way; all of one that has gone.
    for served in (
        (replace(first, server_id=(*first.server_id, 0xABCD - 3)), second, third),
        (replace(first, server_id=first.server_id[1:]), second, third),
        (replace(first, server_id=(*first.server_id, *second.server_id)), third),
        (
            replace(first, server_id=third.server_id[:1]),
            second,
            replace(third, server_id=first.server_id),
        ),
        (replace(second, server_id=(*second.server_id, *third.server_id)), first),
    ):
        both.serve(made(family, *served, *others, config=config))
        named(*served)


@pytest.mark.parametrize("family", FAMILIES)
def test_headers_of_katrans_stable_routing(both: BothWays, family: int) -> None:
    """Of UDP that is no QUIC: 0x52 and three bytes of id, of which the lower two name a backend."""
    backends = serve(both, family, Quic(length=2))
    for sport, backend in enumerate(backends, 2000):
        data = bytes((0x52, 3)) + backend.server_id[0].to_bytes(2, "big") + bytes(4)
        assert ask(both, family, data, sport).backend == backend.address
    assert ask(both, family, bytes((0x52, *bytes(7)))).said == UNKNOWN


@pytest.mark.parametrize("family", FAMILIES)
def test_ids_that_a_client_has_chosen(both: BothWays, family: int) -> None:
    """Say nothing, whatever they look like; of versions that nobody knows all are asked."""
    (backend, *_) = serve(both, family)
    named = made_by(backend)
    for version, kinds in ((V1, (0, 1)), (V2, (1, 2))):
        seen = {
            (found := ask(both, family, long(named, kind, version), 3000 + sport)).said
            for kind in kinds
            for sport in range(16)
        }
        assert seen == {INITIAL}
        assert len({ask(both, family, long(named, 0, V1), 3000 + n).backend for n in range(16)}) > 1
        assert found.backend is not None
        for kind in {0, 1, 2, 3} - {*kinds}:
            assert ask(both, family, long(named, kind, version), 5000).backend == backend.address
    for kind in range(4):
        assert ask(both, family, long(named, kind, GREASED), 5001).said == NAMED
        assert ask(both, family, long(b"\x00" * 8, kind, GREASED), 5002).said == UNKNOWN
    # Several packets in a datagram: the first decides.
    both_of_them = long(named, 0, V1) + long(named, 2, V1)
    assert ask(both, family, both_of_them, 5003).said == INITIAL
    assert ask(both, family, both_of_them[-len(long(named)) :] + short(named), 5004).said == NAMED


@pytest.mark.parametrize("form", FORMS)
def test_ids_that_are_cut_short(both: BothWays, form: str) -> None:
    """Where a datagram ends, though its frame goes on; and ids of other lengths and forms."""
    config = FORMS[form]
    backends = serve(both, 4, config)
    both.serve(*(made(v, *by, config=config) for v, by in ((4, backends), (6, backends6(config)))))
    connection_id = made_by(backends[0], config)
    for family in FAMILIES:
        for data in (short(connection_id), long(connection_id), long(connection_id, 0)):
            for length in range(len(data) - 8):
                both.expect(of(family, data[:length]), TX)
                both.expect(of(family, data[:length]) + data[length:], TX)
        for length in range(21):
            both.expect(of(family, long((connection_id + bytes(20))[:length])), TX)
        for first in range(0, 256, 7):
            other = bytes([first]) + connection_id[1:]
            both.expect(of(family, short(other)), TX)
            both.expect(of(family, long(other)), TX)
        whole = bytearray(of(family, short(connection_id)))
        at = len(whole) - len(short(connection_id)) - 4
        for length in (0, 7, 8, 9, 12, 20, 1000, 65535):
            whole[at : at + 2] = length.to_bytes(2, "big")
            both.expect(bytes(whole), TX)


def backends6(config: Quic) -> list[Backend]:
    """The same of the other family."""
    most = config.allowed[1]
    return [
        Backend(address, server_id=(min(server_id, most - at),))
        for at, (address, server_id) in enumerate(zip(NEAR[6], SERVERS, strict=False))
    ]


def test_backends_that_take_no_new_flows_keep_their_connections(both: BothWays) -> None:
    """One that is down has none; one that is gone names nobody, nor does an id that moves."""
    first, second, *others = serve(both, 4)
    named = made_by(first)
    for state, said in (
        (BackendState.ACTIVE, NAMED),
        (BackendState.DRAINING, NAMED),
        (BackendState.QUARANTINED, NAMED),
        (BackendState.DOWN, DOWN),
        (BackendState.ACTIVE, NAMED),
    ):
        both.serve(made(4, replace(first, state=state), second, *others))
        found = ask(both, 4, short(named), 6000 + len(state))
        assert found.said == said
        assert (found.backend == first.address) == (said == NAMED)
    both.serve(made(4, second, *others))
    assert ask(both, 4, short(named), 6100).said == UNKNOWN
    # Two that exchange their ids.
    swapped = [replace(first, server_id=second.server_id), replace(second, server_id=(17,))]
    both.serve(made(4, first, second, *others))
    both.serve(made(4, *swapped, *others))
    assert ask(both, 4, short(named), 6101).backend == second.address
    both.serve(made(4, *(replace(each, server_id=()) for each in swapped), *others))
    assert ask(both, 4, short(named), 6102).said == UNKNOWN
    without = [replace(each, server_id=()) for each in (first, second, *others)]
    both.serve(made(4, *without, config=None))
    assert ask(both, 4, short(named), 6103).said == ""
    both.serve(made(4, first, second, *others))
    assert ask(both, 4, short(named), 6104).backend == first.address


@pytest.mark.parametrize("family", FAMILIES)
def test_what_has_no_id_follows_the_flow(both: BothWays, family: int) -> None:
    """The flow table learns where a client has moved to, and gives no flow away to an id."""
    first, second, *_ = serve(both, family)
    ids = [made_by(each) for each in (first, second)]
    begun = ask(both, family, long(ids[0], 0), 7000)
    assert begun.backend is not None
    moved = {sport: ids[sport % 2] for sport in range(7100, 7116)}
    for sport, connection_id in moved.items():
        assert ask(both, family, short(connection_id), sport).fresh
    for sport, connection_id in moved.items():
        assert not ask(both, family, short(connection_id), sport).fresh
        without = ask(both, family, b"\x40" * 30, sport)
        at = (first, second)[sport % 2].address
        assert (without.said, without.backend) == (UNKNOWN, at)
        told = error(answered(family, 17, client_port=sport))
        assert both.expect(told, TX).backend == at
        # Another connection's id from the same port is obeyed, and changes nothing.
        other = ask(both, family, short(ids[(sport + 1) % 2]), sport)
        assert (other.backend, other.fresh) == ((first, second)[(sport + 1) % 2].address, False)
        assert ask(both, family, b"\x40" * 30, sport).backend == at


@pytest.mark.parametrize("family", FAMILIES)
def test_fragments_follow_the_first_one(both: BothWays, family: int) -> None:
    """Which has the id."""
    backends = serve(both, family)
    for number, backend in enumerate(backends, 1):
        data = short(made_by(backend), 2000)
        datagram = segment(17, sport=8000 + number, payload=data)
        if family == 4:
            cut = fragment(IP(bytes(ip(4, id=number) / datagram)), fragsize=600)
        else:
            cut = fragment6(ip(6) / IPv6ExtHdrFragment(id=number) / datagram, 700)
        found = [both.expect(bytes(ether() / each), TX) for each in cut]
        assert {each.backend for each in found} == {backend.address}
        assert [each.said for each in found] == [NAMED, *[""] * (len(cut) - 1)]


def test_ids_behind_options_and_extensions(both: BothWays) -> None:
    """Headers of any length may stand before them."""
    for family in FAMILIES:
        (backend, *_) = serve(both, family)
        data = segment(17, payload=short(made_by(backend)))
        if family == 4:
            packet = ip(4, options=b"\x01" * 12) / data
        else:
            packet = ip(6) / IPv6ExtHdrDestOpt() / IPv6ExtHdrDestOpt() / data
        assert both.expect(bytes(ether() / packet), TX).backend == backend.address


@pytest.mark.parametrize("flow_table", [True, False])
def test_any_beginning_of_a_datagram(both: BothWays, flow_table: bool) -> None:  # noqa: FBT001 -- a case
    """Is read as the oracle reads it."""
    configs = [*FORMS.values(), Quic(length=3, rotation=1, length_self_description=True)]
    served = []
    for at, config in enumerate(configs):
        backends = [
            replace(each, server_id=(min(n, config.allowed[1]),))
            for n, each in enumerate(map(Backend, NEAR[4]), 1)
        ]
        kept = {"flow_table": flow_table, "port": 500 + at}
        served.append(made(4, *backends[: config.allowed[1]], config=config, **kept))
    both.serve(*served)
    byte = st.one_of(st.integers(0, 4), st.sampled_from([8, 9, 13, 20, 40, 64, 66, 128, 192, 255]))
    rest = st.lists(byte, max_size=40).map(bytes)
    firsts = st.sampled_from([b"\x40", b"\xc0", b"\xe0", b"\xd0", b"\x00", b""])
    versions = st.sampled_from([each.to_bytes(4, "big") for each in (0, V1, V2, GREASED)])

    @settings(max_examples=examples(60))
    @given(st.tuples(firsts, st.one_of(versions, st.just(b"")), rest).map(b"".join))
    def read(data: bytes) -> None:
        for at in range(len(configs)):
            both.expect(of(4, data, dport=500 + at), TX)

    read()


def test_a_trace_says_what_an_id_says(both: BothWays) -> None:
    """And where a packet with it goes."""
    backends = serve(both, 4)
    for backend in cases(backends, 2):
        named = made_by(backend).hex()
        flow = f"{CLIENTS[4]}:4000 -> {VIPS[4]}:80 udp"
        found = both.balancer.trace(TracedPacket.parse(f"{flow} quic {named}"))
        assert (found.quic, found.backend) == (NAMED, backend.address)
        assert both.balancer.trace(TracedPacket.parse(f"{flow} quic ff{named[2:]}")).quic == UNKNOWN
        assert both.balancer.trace(TracedPacket.parse(f"{flow} error")).quic is None
