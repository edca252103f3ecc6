# SPDX-License-Identifier: Apache-2.0
"""Services made in Python or by the API: identity, and the same checks as a file's."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from towpath.model import (
    Backend,
    ConfigError,
    Limits,
    Metrics,
    Problem,
    Protocol,
    Quic,
    Service,
    ServiceKey,
    advice,
    check_service,
    check_services,
    parse_service,
    service_problems,
)
from towpath.model.kinds import Ports

VIP = ip_address("203.0.113.10")
VIP6 = ip_address("2001:db8::10")
WEB = Service("web", VIP, 80, backends=(Backend(ip_address("192.0.2.11")),))


def test_key_is_what_packets_know() -> None:
    """Name, backends and options are no part of it; it is a plain tuple, too."""
    assert WEB.key == ServiceKey(VIP, 80, Protocol.TCP) == (VIP, 80, "tcp", "all")
    assert replace(WEB, name="other", backends=(), flow_table=False).key == WEB.key
    assert str(WEB.key) == "203.0.113.10:80/tcp"
    assert str(replace(WEB, vip=VIP6).key) == "[2001:db8::10]:80/tcp"


def test_keys_of_both_families_have_an_order() -> None:
    """IPv4 first, then by address, port and protocol."""
    keys = [
        ServiceKey(ip_address(vip), port, protocol)
        for vip in ("203.0.113.9", "203.0.113.10", "2001:db8::10")
        for port in (80, 443)
        for protocol in Protocol
    ]
    shuffled = keys[::-1]
    assert sorted(shuffled, key=lambda key: key.order) == keys


def test_ids_of_a_backend_have_an_order() -> None:
    """However they are given; what are none stays, and is told."""
    address = ip_address("192.0.2.11")
    given: tuple[Any, ...] = ((7, 9), (9, 7), [9, 7])
    assert {Backend(address, server_id=each) for each in given} == {
        Backend(address, 1, server_id=(7, 9))
    }
    number: Any = 0
    assert Backend(address, server_id=number).server_id == (0,)
    nothing: Any = None
    assert replace(Backend(address, server_id=(7,)), server_id=nothing).server_id == ()
    quic = replace(WEB, protocol=Protocol.UDP, quic=Quic(length=1))
    wrong: Any
    for wrong, message in (
        ((True,), "true is not a whole number; allowed: 0 to 18446744073709551615, or a list"),
        (("a", 1), "'a' is not a whole number"),
        ((7, 7), "7 is listed twice"),
        (tuple(range(65)), "65 are too many"),
    ):
        (problem,) = service_problems(replace(quic, backends=(Backend(address, server_id=wrong),)))
        assert problem.field == "backends[0].server_id"
        assert problem.message.startswith(message)


def test_a_backend_at_the_vip_itself() -> None:
    """A process of this node, said to be here, at another port: translated, or at sockets."""
    here = Backend(VIP, port=8080, local=True)
    check_service(replace(WEB, forwarding="snat", backends=(here,)))
    check_service(replace(WEB, scope="node", backends=(replace(here, local=False),)))
    for wrong in (
        replace(WEB, forwarding="snat", backends=(replace(here, local=False),)),
        replace(WEB, forwarding="snat", backends=(replace(here, port=80),)),
        replace(WEB, forwarding="snat", backends=(replace(here, port=None),)),
        replace(WEB, forwarding="snat", vip=ip_network("203.0.113.0/24"), backends=(here,)),
        replace(WEB, forwarding="l2", backends=(replace(here, port=None),)),
    ):
        with pytest.raises(ConfigError, match="is the service's own vip"):
            check_service(wrong)


def test_protocols_have_their_numbers() -> None:
    """As in an IP header."""
    assert (Protocol.TCP.number, Protocol.UDP.number) == (6, 17)


def test_a_right_service_has_no_problems() -> None:
    """Both families behind an IPv4 VIP, a weight of 0, no backend at all."""
    mixed = (*WEB.backends, Backend(ip_address("2001:db8::1"), 0))
    for service in (WEB, replace(WEB, backends=mixed), replace(WEB, backends=())):
        assert service_problems(service) == ()
        check_service(service)


def test_an_object_is_checked_as_a_file_is() -> None:
    """Every problem of every field, without file and line."""
    backend = WEB.backends[0]
    wrong = Service("", VIP6, 65536, backends=(backend, replace(backend, weight=70000)))
    problems = service_problems(wrong)
    assert [problem.field for problem in problems] == [
        "name",
        "port",
        "backends[1].weight",
        "backends[0].address",
        "backends[1].address",
        "backends[1].address",
    ]
    assert {(problem.file, problem.line) for problem in problems} == {(None, None)}
    assert str(problems[1]) == "port: 65536 is out of range; allowed: 1 to 65535"
    with pytest.raises(ConfigError) as caught:
        check_service(wrong)
    assert caught.value.problems == problems


def test_plain_data_becomes_a_service() -> None:
    """As JSON has it, with backends in short or in full; refused as a file is."""
    raw = {"name": "web", "vip": "203.0.113.10", "port": 80, "backends": ["192.0.2.11"]}
    assert parse_service(raw) == WEB
    with pytest.raises(ConfigError, match=r"^vip: is missing\nport: '8O' is neither a port nor a"):
        parse_service({"name": "web", "port": "8O"})
    with pytest.raises(ConfigError, match="is not a mapping"):
        parse_service([])  # type: ignore[arg-type]


def test_services_that_clash_are_refused() -> None:
    """One name each, one VIP, port and protocol each."""
    other = replace(WEB, port=443)
    check_services([WEB, replace(other, name="tls")])
    with pytest.raises(ConfigError) as caught:
        check_services([WEB, other, replace(WEB, name="again"), replace(WEB, port=0)])
    assert [(problem.field, problem.message) for problem in caught.value.problems] == [
        ("services[3].port", "0 is out of range; allowed: 1 to 65535"),
        ("services[1].name", "web is taken by services[0]; allowed: one service each"),
        (
            "services[2].vip",
            "203.0.113.10:80/tcp is taken by services[0]; allowed: one service each",
        ),
        ("services[3].name", "web is taken by services[0]; allowed: one service each"),
    ]


def test_services_that_do_not_fit_are_refused() -> None:
    """The sum over all is held against the limits, tables of services without backends not."""
    idle = replace(WEB, name="idle", port=81, backends=())
    check_services([WEB, idle], Limits(services=2, backends=1, table_slots=16381))
    with pytest.raises(ConfigError) as caught:
        check_services([WEB, idle], Limits(services=1, backends=1, table_slots=16380))
    assert [problem.field for problem in caught.value.problems] == [
        "limits.services",
        "limits.table_slots",
    ]


def test_advice_on_small_tables() -> None:
    """Less than 100 slots a backend is allowed but not good."""
    addresses = [ip_address(f"2001:db8:1::{host:x}") for host in range(1, 165)]
    backends = tuple(Backend(address) for address in addresses)
    assert advice(replace(WEB, backends=backends[:163])) is None
    assert advice(replace(WEB, backends=())) is None
    assert advice(replace(WEB, backends=backends)) == Problem(
        "16381 slots for 164 backends: shares stray from the weights by more than 1 %; "
        "recommended: 16411",
        "table_size",
    )


def test_what_was_found_right_before_clashes_all_the_same() -> None:
    """Its packets are its own, however it was checked."""
    with pytest.raises(ConfigError, match="is taken by services\\[0\\]"):
        check_services([WEB, replace(WEB, name="again")], checked=[WEB])


def test_metrics_address() -> None:
    """What is listened on, taken apart."""
    assert Metrics().address is None
    assert Metrics("[::1]:9464").address == (ip_address("::1"), 9464)


def test_naming_a_service_imports_nothing_heavy() -> None:
    """A command line that only names the model waits for neither pydantic nor YAML."""
    heavy = {"pydantic", "pydantic_core", "yaml", "numpy"}
    program = f"import sys, towpath.model; print({heavy} & set(sys.modules))"
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert found.stdout == "set()\n"


def test_a_service_for_this_node_stands_beside_one_for_all() -> None:
    """Another key; its backends have ports whatever the forwarding; one port of one address."""
    inner = replace(WEB, name="inner", scope="node", backends=(replace(WEB.backends[0], port=81),))
    assert service_problems(inner) == ()
    assert inner.key != WEB.key
    assert inner.key.shared(WEB.key) is None
    assert str(inner.key) == "203.0.113.10:80/tcp (node)"
    check_services([WEB, inner])
    (problem,) = service_problems(replace(inner, scope="all"))
    assert "forwarding" in problem.message
    changes: tuple[dict[str, Any], ...] = (
        {"port": Ports.of([(80, 81)])},
        {"vip": ip_network("203.0.113.0/28")},
    )
    for change in changes:
        found = [str(each) for each in service_problems(replace(inner, backends=(), **change))]
        assert found == ["scope: node is for one port of one address; allowed: all"]
