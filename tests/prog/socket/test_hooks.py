# SPDX-License-Identifier: Apache-2.0
"""What processes see of services: connections and datagrams go to backends, and seem not to.

Each test says which counters move, and that no other does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from tests.prog.socket.harness import (
    BACKENDS,
    BACKENDS6,
    CIDR,
    OTHER_VIP,
    PORT,
    VIP,
    VIP6,
    Child,
    down,
    service,
)

from towpath.datapath.socket.program import chooses_errors
from towpath.model.kinds import Ports

if TYPE_CHECKING:
    from tests.prog.socket.harness import Rig

TCP, UDP = "tcp-192.0.2.10-8080", "udp-192.0.2.10-8080"
REFUSED = "ECONNREFUSED"


def counted(hook: str, name: str, backend: str, again: int = 1) -> dict[str, int]:
    """What moves when calls are balanced."""
    what = "connects" if hook == "connect" else "datagrams"
    return {
        f"{hook} balanced": again,
        f"{name}: {hook} balanced": again,
        f"{name}, {backend}: {what}": again,
    }


# ---- TCP -----------------------------------------------------------------------------------------


def test_a_connection_goes_to_a_backend_and_its_peer_is_the_service(rig: Rig) -> None:
    """As getpeername() says."""
    rig.apply(service())
    with rig.counting() as moved:
        backend, peer = rig.run(f"tcp('{VIP}', {PORT})")
    assert backend in BACKENDS[:3]
    assert peer == [VIP, PORT]
    assert moved == counted("connect", TCP, backend) | {"getpeername restored": 1}


def test_connections_are_shared_out(rig: Rig) -> None:
    """Among all backends, though they come from one process."""
    rig.apply(service())
    came = {rig.run(f"tcp('{VIP}', {PORT})")[0] for _ in range(60)}
    assert came == set(BACKENDS[:3])


def test_ipv6_connects_alike(rig: Rig) -> None:
    """Over its own services."""
    rig.apply(service(VIP6, BACKENDS6[:3]))
    with rig.counting() as moved:
        backend, peer = rig.run(f"tcp('{VIP6}', {PORT}, AF_INET6)")
    assert backend in BACKENDS6[:3]
    assert peer == [VIP6, PORT]
    name = f"tcp-{VIP6}-8080"
    assert moved == counted("connect", name, backend) | {"getpeername restored": 1}


def test_an_ipv6_socket_with_a_mapped_address_is_ipv4s(rig: Rig) -> None:
    """And goes on seeing it mapped."""
    rig.apply(service())
    with rig.counting() as moved:
        backend, peer = rig.run(f"tcp('::ffff:{VIP}', {PORT}, AF_INET6)")
    assert backend in BACKENDS[:3]
    assert peer == [f"::ffff:{VIP}", PORT]
    assert moved == counted("connect", TCP, backend) | {"getpeername restored": 1}


def test_other_addresses_ports_and_protocols_are_left_alone(rig: Rig) -> None:
    """A backend's own address shows itself."""
    rig.apply(service())
    own = BACKENDS[4]
    with rig.counting() as moved:
        assert rig.run(f"tcp('{own}', {PORT})") == [own, [own, PORT]]
        for refused in ((VIP, PORT + 1), (OTHER_VIP, PORT)):
            assert "errno" in rig.run(f"tcp{refused}")
    assert moved == {"connect pass_no_service": 3, "getpeername pass_no_service": 1}


def test_connect_again_after_a_refusal_may_go_elsewhere(rig: Rig) -> None:
    """One socket isn't bound for ever to a backend where nobody listens."""
    dead = "10.77.0.99"
    rig.apply(service(backends=[dead, BACKENDS[0]]))
    rig.run("make('s')")
    for _ in range(40):
        if rig.run(f"S['s'].connect(('{VIP}', {PORT}))") is None:
            break
    assert rig.run("S['s'].recv(100).decode()") == BACKENDS[0]


def test_other_processes_are_left_alone(rig: Rig) -> None:
    """It is the cgroup's."""
    rig.apply(service())
    with Child() as outside, rig.counting() as moved:
        assert "errno" in outside.run(f"tcp('{VIP}', {PORT})")
    assert moved == {}


def test_backends_ports_are_their_own(rig: Rig) -> None:
    """Where they have one; the service's else."""
    rig.apply(service(port=80, forwarding="snat", backends=_with_port(BACKENDS[:2], PORT)))
    with rig.counting() as moved:
        backend, peer = rig.run(f"tcp('{VIP}', 80)")
    assert peer == [VIP, 80]
    name = f"tcp-{VIP}-80"
    assert moved == counted("connect", name, backend) | {"getpeername restored": 1}


def _with_port(addresses: tuple[str, ...], port: int) -> Any:
    from ipaddress import ip_address  # noqa: PLC0415

    from towpath.model.service import Backend  # noqa: PLC0415

    return [Backend(ip_address(each), port=port) for each in addresses]


@pytest.mark.parametrize(
    ("ports", "port"),
    [
        (Ports.of([(80, 80), (PORT, PORT)]), PORT),
        (Ports.of([(8000, 8999)]), PORT),
        (Ports.of([(1, 65535)]), PORT),
    ],
)
def test_services_have_several_ports(rig: Rig, ports: Ports, port: int) -> None:
    """A list, a range or any: the backend's is the one that was asked for."""
    rig.apply(service(port=ports, name="many"))
    with rig.counting() as moved:
        backend, peer = rig.run(f"tcp('{VIP}', {port})")
    assert peer == [VIP, port]
    assert moved == counted("connect", "many", backend) | {"getpeername restored": 1}


def test_services_have_prefixes(rig: Rig) -> None:
    """Any address of one; the longest counts, and one port of one address before all."""
    rig.apply(
        service(CIDR, BACKENDS[:1], name="net"),
        service("192.0.2.136/29", BACKENDS[1:2], name="part"),
        service("192.0.2.137", BACKENDS[2:3], name="one"),
    )
    for vip, backend, name in (
        ("192.0.2.130", BACKENDS[0], "net"),
        ("192.0.2.138", BACKENDS[1], "part"),
        ("192.0.2.137", BACKENDS[2], "one"),
    ):
        with rig.counting() as moved:
            assert rig.run(f"tcp('{vip}', {PORT})") == [backend, [vip, PORT]]
        assert moved == counted("connect", name, backend) | {"getpeername restored": 1}


# ---- UDP -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["AF_INET", "AF_INET6", "mapped"])
def test_a_connected_socket_of_udp_sees_the_service(rig: Rig, family: str) -> None:
    """As its peer, and as the source of what it receives; nothing is done for a datagram.

    But that the kernel calls the hook for each that goes to an IPv4-mapped peer.
    """
    vip, backends = (VIP6, BACKENDS6) if family == "AF_INET6" else (VIP, BACKENDS)
    rig.apply(service(vip, backends[:3], protocol="udp"))
    host = f"::ffff:{vip}" if family == "mapped" else vip
    kind = "AF_INET" if family == "AF_INET" else "AF_INET6"
    rig.run(f"make('u', {kind}, SOCK_DGRAM)")
    with rig.counting() as moved:
        rig.run(f"S['u'].connect(('{host}', {PORT}))")
        backend = rig.run("ask('u')")
    name = f"udp-{vip}-8080"
    each = {"sendmsg pass_no_service": 1} if family == "mapped" else {}
    assert moved == counted("connect", name, backend) | each
    with rig.counting() as moved:
        assert rig.run("S['u'].getpeername()[:2]") == [host, PORT]
        rig.run("S['u'].send(b'?')")
        assert rig.run("S['u'].recvfrom(100)[1][:2]") == [host, PORT]
    assert moved == {"getpeername restored": 1, "recvmsg restored": 1} | each


@pytest.mark.parametrize("family", ["AF_INET", "AF_INET6", "mapped"])
def test_an_unconnected_socket_sees_the_service(rig: Rig, family: str) -> None:
    """As the source of what it receives. All it sends to a service goes to one backend."""
    vip, backends = (VIP6, BACKENDS6) if family == "AF_INET6" else (VIP, BACKENDS)
    rig.apply(service(vip, backends[:3], protocol="udp"))
    host = f"::ffff:{vip}" if family == "mapped" else vip
    kind = "AF_INET" if family == "AF_INET" else "AF_INET6"
    rig.run(f"make('u', {kind}, SOCK_DGRAM)")
    with rig.counting() as moved:
        backend, source = rig.run(f"send('u', '{host}', {PORT})")
        assert [backend, source] == rig.run(f"send('u', '{host}', {PORT})")
    assert source == [host, PORT]
    name = f"udp-{vip}-8080"
    assert moved == counted("sendmsg", name, backend, 2) | {"recvmsg restored": 2}


def test_what_is_sent_to_a_backend_itself_is_answered_by_it(rig: Rig) -> None:
    """The last one that a socket has sent to counts."""
    rig.apply(service(protocol="udp", backends=BACKENDS[:1]))
    rig.run("make('u', AF_INET, SOCK_DGRAM)")
    own = BACKENDS[0]
    for host, hook in ((VIP, "balanced"), (own, "pass_no_service"), (VIP, "balanced")):
        with rig.counting() as moved:
            assert rig.run(f"send('u', '{host}', {PORT})") == [own, [host, PORT]]
        assert moved[f"sendmsg {hook}"] == 1


def test_a_socket_may_talk_to_many_services(rig: Rig) -> None:
    """Answers of the last eight backends are told as their services'."""
    vips = [f"192.0.2.{n}" for n in range(20, 28)]
    pairs = list(zip(vips, (*BACKENDS, *BACKENDS), strict=False))
    rig.apply(
        *(
            service(
                vip, _with_port((backend,), PORT), protocol="udp", port=1000 + n, forwarding="snat"
            )
            for n, (vip, backend) in enumerate(pairs[:5])
        )
    )
    rig.run("make('u', AF_INET, SOCK_DGRAM)")
    for n, (vip, backend) in enumerate(pairs[:5]):
        assert rig.run(f"send('u', '{vip}', {1000 + n})") == [backend, [vip, 1000 + n]]
    for n, (vip, _) in enumerate(pairs[:5]):
        rig.run(f"S['u'].sendto(b'?', ('{vip}', {1000 + n}))")
    sources = {tuple(rig.run("S['u'].recvfrom(100)[1]")) for _ in range(5)}
    assert sources == {(vip, 1000 + n) for n, (vip, _) in enumerate(pairs[:5])}


def test_datagrams_stay_with_a_backend_that_drains_and_leave_one_that_is_down(rig: Rig) -> None:
    """As flows of packets do."""
    from dataclasses import replace  # noqa: PLC0415
    from ipaddress import ip_address  # noqa: PLC0415

    from towpath.model.service import Backend, BackendState  # noqa: PLC0415

    rig.apply(service(protocol="udp"))
    rig.run("make('u', AF_INET, SOCK_DGRAM)")
    first, _ = rig.run(f"send('u', '{VIP}', {PORT})")
    others = [Backend(ip_address(each)) for each in BACKENDS[:3] if each != first]
    leaving = Backend(ip_address(first), state=BackendState.DRAINING)
    rig.apply(service(protocol="udp", backends=[*others, leaving]))
    assert rig.run(f"send('u', '{VIP}', {PORT})")[0] == first
    rig.apply(
        service(protocol="udp", backends=[*others, replace(leaving, state=BackendState.DOWN)])
    )
    second, source = rig.run(f"send('u', '{VIP}', {PORT})")
    assert second != first
    assert source == [VIP, PORT]


def test_disconnecting_ends_it(rig: Rig) -> None:
    """connect(AF_UNSPEC): what is sent then says itself where to."""
    rig.apply(service(protocol="udp", backends=BACKENDS[:1]))
    rig.run("make('u', AF_INET, SOCK_DGRAM)")
    rig.run(f"S['u'].connect(('{VIP}', {PORT}))")
    assert rig.run("ask('u')") == BACKENDS[0]
    with rig.counting() as moved:
        assert rig.run("unspec('u')") is None
        assert rig.run("S['u'].getpeername()") == {"errno": "ENOTCONN"}
        assert rig.run("S['u'].send(b'?')") == {"errno": "EDESTADDRREQ"}
    assert moved == {}
    own = BACKENDS[0]
    assert rig.run(f"send('u', '{own}', {PORT})") == [own, [own, PORT]]
    assert rig.run(f"send('u', '{VIP}', {PORT})") == [own, [VIP, PORT]]
    assert rig.run(f"S['u'].connect(('{VIP}', {PORT}))") is None
    assert rig.run("S['u'].getpeername()") == [VIP, PORT]


# ---- Refused, and left alone ---------------------------------------------------------------------


@pytest.mark.parametrize("backends", [[], [down(BACKENDS[0])]])
def test_a_service_without_a_backend_refuses(rig: Rig, backends: Any) -> None:
    """With ECONNREFUSED, where the kernel lets programs choose: nobody waits for an answer."""
    rig.apply(service(backends=backends), service(protocol="udp", backends=backends))
    refused = {"errno": REFUSED if chooses_errors() else "EPERM"}
    rig.run("make('u', AF_INET, SOCK_DGRAM)")
    with rig.counting() as moved:
        assert rig.run(f"tcp('{VIP}', {PORT})") == refused
        assert rig.run(f"send('u', '{VIP}', {PORT})") == refused
        assert rig.run(f"S['u'].connect(('{VIP}', {PORT}))") == refused
    assert moved == {
        "connect refuse_no_backend": 2,
        "sendmsg refuse_no_backend": 1,
        f"{TCP}: connect refuse_no_backend": 1,
        f"{UDP}: connect refuse_no_backend": 1,
        f"{UDP}: sendmsg refuse_no_backend": 1,
    }


def test_services_for_some_sources_are_left_to_packets(rig: Rig) -> None:
    """A socket may have no address yet: who balances the packets looks at theirs."""
    from ipaddress import ip_network  # noqa: PLC0415

    rig.apply(service(allow_from=(ip_network("198.51.100.0/24"),)))
    with rig.counting() as moved:
        assert "errno" in rig.run(f"tcp('{VIP}', {PORT})")
    assert moved == {"connect pass_sources": 1, f"{TCP}: connect pass_sources": 1}


def test_services_that_route_by_source_are_left_to_packets(rig: Rig) -> None:
    """For the same reason."""
    from dataclasses import replace  # noqa: PLC0415
    from ipaddress import ip_network  # noqa: PLC0415

    from towpath.model import SourceRoute  # noqa: PLC0415

    made = service()
    route = SourceRoute((ip_network("198.51.100.0/24"),), (made.backends[0].address,))
    rig.apply(replace(made, route_from=(route,)))
    with rig.counting() as moved:
        assert "errno" in rig.run(f"tcp('{VIP}', {PORT})")
    assert moved == {"connect pass_sources": 1, f"{TCP}: connect pass_sources": 1}


def test_backends_of_the_other_family_are_left_to_packets(rig: Rig) -> None:
    """Which a tunnel brings there."""
    rig.apply(service(backends=BACKENDS6[:1]))
    with rig.counting() as moved:
        assert "errno" in rig.run(f"tcp('{VIP}', {PORT})")
    assert moved == {"connect pass_family": 1, f"{TCP}: connect pass_family": 1}


def test_ping_sockets_are_left_alone(rig: Rig) -> None:
    """Linux calls the hook for them, with port 0, since 5.17."""
    rig.apply(service(port=Ports.of([(1, 65535)]), name="any"))
    rig.run("open('/proc/sys/net/ipv4/ping_group_range', 'w').write('0 2147483647')")
    rig.run("make('p', AF_INET, SOCK_DGRAM, IPPROTO_ICMP)")
    with rig.counting() as moved:
        rig.run(f"S['p'].connect(('{VIP}', 0))")
    assert set(moved) <= {"connect pass_protocol"}


def test_cgroups_can_be_left_out(rig: Rig) -> None:
    """With all that is in them, and until they aren't any more."""
    nested = rig.cgroup / "pod"
    nested.mkdir()
    rig.apply(service())
    with Child(nested) as pod:
        assert pod.run(f"tcp('{VIP}', {PORT})")[0] in BACKENDS
        rig.sockets.replace_excluded([nested])
        with rig.counting() as moved:
            assert "errno" in pod.run(f"tcp('{VIP}', {PORT})")
            assert rig.run(f"tcp('{VIP}', {PORT})")[0] in BACKENDS
        assert (moved["connect pass_cgroup"], moved["connect balanced"]) == (1, 1)
        rig.sockets.replace_excluded([])
        assert pod.run(f"tcp('{VIP}', {PORT})")[0] in BACKENDS


@pytest.mark.parametrize("mark", [0x74, 65537])
def test_health_checks_are_left_alone(servers: object, mark: int) -> None:
    """They are known by their marks, others' too, and have to go by the service's address."""
    from tests.prog.socket.harness import Rig  # noqa: PLC0415

    assert servers
    with Rig(mark=0x74, foreign=1 << 16) as rig:
        rig.apply(service())
        rig.run("make('s')")
        rig.run(f"S['s'].setsockopt(SOL_SOCKET, SO_MARK, {mark})")
        with rig.counting() as moved:
            assert "errno" in rig.run(f"S['s'].connect(('{VIP}', {PORT}))")
        assert moved == {"connect pass_check": 1}


# ---- Other ways to connect -----------------------------------------------------------------------


def test_fast_open_connects_by_sendmsg(rig: Rig) -> None:
    """MSG_FASTOPEN."""
    rig.apply(service())
    rig.run("make('s')")
    rig.run("S['s'].settimeout(None)")
    with rig.counting() as moved:
        assert rig.run(f"S['s'].sendto(b'?', MSG_FASTOPEN, ('{VIP}', {PORT}))") == 1
        backend = rig.run("S['s'].recv(100).decode()")
        assert rig.run("S['s'].getpeername()") == [VIP, PORT]
    assert moved == counted("connect", TCP, backend) | {"getpeername restored": 1}


def test_mptcp_sees_the_service(rig: Rig) -> None:
    """It connects by another socket than the one that is asked for its peer."""
    rig.apply(service())
    made = rig.run("make('m', AF_INET, SOCK_STREAM, IPPROTO_MPTCP)")
    if isinstance(made, dict):
        pytest.skip(f"no MPTCP in this kernel ({made['errno']})")
    with rig.counting() as moved:
        backend, peer = rig.run(f"tcp('{VIP}', {PORT}, AF_INET, IPPROTO_MPTCP)")
    assert peer == [VIP, PORT]
    assert moved == counted("connect", TCP, backend) | {"getpeername restored": 1}


# ---- Affinity ------------------------------------------------------------------------------------


def test_a_namespace_is_a_client(rig: Rig) -> None:
    """All its connections go to one backend, also when there are others."""
    rig.apply(service(affinity=600))
    came = {rig.run(f"tcp('{VIP}', {PORT})")[0] for _ in range(20)}
    assert len(came) == 1
    (first,) = came
    rig.apply(service(affinity=600, backends=[*BACKENDS[:3], BACKENDS[3], BACKENDS[4]]))
    assert {rig.run(f"tcp('{VIP}', {PORT})")[0] for _ in range(20)} == came
    rig.apply(service(affinity=600, backends=[each for each in BACKENDS if each != first]))
    other = {rig.run(f"tcp('{VIP}', {PORT})")[0] for _ in range(20)}
    assert len(other) == 1
    assert other != came


def test_affinity_ends_when_its_time_is_over(rig: Rig) -> None:
    """The client's place is then found by Maglev again."""
    rig.apply(service(affinity=1, backends=BACKENDS[:1]))
    assert rig.run(f"tcp('{VIP}', {PORT})")[0] == BACKENDS[0]
    rig.apply(service(affinity=1, backends=BACKENDS))
    clients = rig.tables.rows("clients")["way"]
    assert int((clients["ref"] != 0).sum()) == 1
    clients["seen"][clients["ref"] != 0] -= 2  # seconds ago
    came = rig.run(f"tcp('{VIP}', {PORT})")[0]
    rig.apply(service(affinity=1, backends=[each for each in BACKENDS if each != came]))
    rig.apply(service(affinity=1, backends=BACKENDS))
    clients["ref"][:] = 0
    assert rig.run(f"tcp('{VIP}', {PORT})")[0] == came
