# SPDX-License-Identifier: Apache-2.0
"""Health checks as they are written, and how wrong ones are refused."""

from __future__ import annotations

import json
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from towpath.api.codec import build, plain
from towpath.model import (
    AllFailed,
    CheckType,
    ConfigError,
    Health,
    Service,
    check_service,
    parse_service,
    parse_services,
)
from towpath.model.health import checked_address, first_port
from towpath.model.kinds import has_status

WEB: dict[str, Any] = {"name": "web", "vip": "203.0.113.10", "port": 80}


def made(health: object, **fields: Any) -> Health:
    """The check of a service."""
    found = parse_service({**WEB, **fields, "health": health}).health
    assert found is not None
    return found


def refused(health: object, **fields: Any) -> list[str]:
    """What a service with this check is refused with."""
    with pytest.raises(ConfigError) as caught:
        parse_service({**WEB, **fields, "health": health})
    return str(caught.value).splitlines()


def test_without_a_check() -> None:
    """As a service was before there were any, and as YAML says nothing."""
    assert parse_service(WEB).health is None
    assert parse_service({**WEB, "health": None}).health is None


def test_the_shortest_check() -> None:
    """A word; everything else has a default."""
    assert made("tcp") == made({"type": "tcp"}) == Health(CheckType.TCP)
    assert made("http") == Health(CheckType.HTTP)


def test_everything_said() -> None:
    """Each field is what it says."""
    assert made(
        {
            "type": "https",
            "interval": "1m",
            "timeout": "1500ms",
            "rise": 1,
            "fall": 5,
            "port": 8443,
            "path": "/health?full=1",
            "host": "web.example",
            "status": [200, "300-399"],
            "verify": True,
            "on_all_failed": "closed",
        }
    ) == Health(
        CheckType.HTTPS,
        interval=60.0,
        timeout=1.5,
        rise=1,
        fall=5,
        port=8443,
        path="/health?full=1",
        host="web.example",
        status="200,300-399",
        verify=True,
        on_all_failed=AllFailed.CLOSED,
    )


@pytest.mark.parametrize(
    ("written", "seconds"),
    [(5, 5.0), (0.25, 0.25), ("500ms", 0.5), ("5s", 5.0), (" 2.5 s ", 2.5), ("1m", 60.0)],
)
def test_durations(written: object, seconds: float) -> None:
    """A number of seconds, or a text with its unit."""
    assert made({"type": "tcp", "interval": written}).interval == seconds


@pytest.mark.parametrize(
    ("health", "message"),
    [
        (
            "icmp",
            "health.type: 'icmp' is not known; allowed: tcp, http, https, udp, dns, grpc, grpcs, ",
        ),
        ({}, "health.type: is missing"),
        ({"type": "tcp", "intervall": 5}, "health.intervall: unknown key; did you mean interval?"),
        ({"type": "tcp", "interval": 0}, "health.interval: 0 is out of range; allowed: 100ms to"),
        ({"type": "tcp", "interval": "5"}, "health.interval: '5' is not a duration; allowed: "),
        ({"type": "tcp", "interval": "5h"}, "health.interval: '5h' is not a duration"),
        ({"type": "tcp", "interval": True}, "health.interval: true is not a duration"),
        ({"type": "tcp", "interval": float("nan")}, "health.interval: nan is out of range"),
        ({"type": "tcp", "interval": "2h"}, "health.interval: '2h' is not a duration"),
        ({"type": "tcp", "timeout": 0.01}, "health.timeout: 0.01 is out of range; allowed: 50ms"),
        ({"type": "tcp", "rise": 0}, "health.rise: 0 is out of range; allowed: 1 to 100"),
        ({"type": "tcp", "port": 0}, "health.port: 0 is out of range; allowed: 1 to 65535"),
        ({"type": "tcp", "path": "/x"}, "health.path: is not for a check of type tcp; allowed: "),
        ({"type": "http", "verify": True}, "health.verify: is not for a check of type http"),
        ({"type": "http", "command": ["/bin/x"]}, "health.command: is not for a check of type "),
        ({"type": "http", "path": "x"}, "health.path: 'x' is not a URL's path; allowed: a path"),
        ({"type": "http", "path": "/a b"}, "health.path: '/a b' is not a URL's path"),
        ({"type": "http", "path": "/a\r\nX: y"}, "health.path: '/a\\r\\nX: y' is not a URL's path"),
        ({"type": "http", "host": "a b"}, "health.host: 'a b' is not a host's name; allowed: "),
        ({"type": "http", "host": "a\r\nX: y"}, "health.host: 'a\\r\\nX: y' is not a host's name"),
        ({"type": "http", "status": []}, "health.status: an empty list has no status code"),
        ({"type": "http", "status": 20}, "health.status: 20 is not a status code; allowed: "),
        ({"type": "http", "status": 600}, "health.status: 600 is not a status code"),
        ({"type": "http", "status": "3-2"}, "health.status: '3-2' is not a status code"),
        ({"type": "http", "status": "300-200"}, "health.status: '300-200' ends before it begins"),
        ({"type": "command"}, "health.command: is missing; allowed: a list of texts"),
        ({"type": "command", "command": "ls"}, "health.command: 'ls' is not a list; allowed: "),
        ({"type": "command", "command": ["ls"]}, "health.command: 'ls' is not an absolute path"),
        ({"type": "command", "command": ["/x", 1]}, "health.command: 1 is not text; put it in qu"),
        ({"type": "udp"}, "health.send: is missing; allowed: text, or hex: and pairs of"),
        ({"type": "udp", "send": "hex:0"}, "health.send: 'hex:0' has no such digits; allowed: "),
        ({"type": "udp", "send": "x" * 1025}, "health.send: 1025 bytes are too many; allowed: "),
        ({"type": "tcp", "expect": "x"}, "health.expect: is not for a check of type tcp; allowed"),
        ({"type": "dns", "send": "x"}, "health.send: is not for a check of type dns; allowed: wi"),
        ({"type": "http", "grpc_service": "a"}, "health.grpc_service: is not for a check of type "),
        ({"type": "grpc", "grpc_service": "a b"}, "health.grpc_service: 'a b' is not a service; a"),
        ({"type": "grpc", "path": "/a"}, "health.path: is not for a check of type grpc; allowed: "),
        ({"type": "dns", "query": "a..b"}, "health.query: 'a..b' is not a domain name; allowed: "),
        ({"type": "tcp", "on_all_failed": "x"}, "health.on_all_failed: 'x' is not known; allowed"),
    ],
)
def test_wrong_checks_are_refused(health: object, message: str) -> None:
    """With the field, what is wrong with it, and what is allowed."""
    (said,) = refused(health)
    assert said.startswith(message)


def test_all_problems_are_found_at_once() -> None:
    """In a file, with its line."""
    text = """
    services:
      - {name: a, vip: 203.0.113.1, port: 80, health: {type: tcp, rise: 0, fall: 0, path: /x}}
    """
    with pytest.raises(ConfigError) as caught:
        parse_services(text, "lb.yaml")
    fields = [
        str(problem).rpartition("health.")[2].partition(":")[0] for problem in caught.value.problems
    ]
    assert fields == ["rise", "fall", "path"]
    assert all(problem.line == 3 for problem in caught.value.problems)


def test_any_port_needs_one_to_check() -> None:
    """Only what opens a connection does."""
    assert refused("tcp", port="any") == [
        "health.port: is missing; allowed: 1 to 65535, as the service is for any port"
    ]
    assert made({"type": "tcp", "port": 25}, port="any").port == 25
    assert made({"type": "command", "command": ["/bin/true"]}, port="any").port is None


def test_what_is_connected_to() -> None:
    """The first port, and an address that a prefix has."""
    assert first_port(80) == 80
    assert first_port(parse_service({**WEB, "port": "8000-8999,443"}).port) == 443
    assert checked_address(ip_address("203.0.113.10")) == ip_address("203.0.113.10")
    assert checked_address(ip_network("203.0.113.16/28")) == ip_address("203.0.113.17")
    assert checked_address(ip_network("2001:db8::/127")) == ip_address("2001:db8::1")


@pytest.mark.parametrize(
    ("codes", "good", "bad"),
    [
        ("200-399", (200, 301, 399), (199, 400)),
        ("204", (204,), (200, 205)),
        ("200,404", (404,), (300,)),
    ],
)
def test_status_codes(codes: str, good: tuple[int, ...], bad: tuple[int, ...]) -> None:
    """Ranges have both ends."""
    kept = made({"type": "http", "status": codes}).status
    assert kept == codes
    assert all(has_status(kept, each) for each in good)
    assert not any(has_status(kept, each) for each in bad)


def test_through_json_and_back() -> None:
    """As the API and the database have it."""
    for health in (None, "tcp", {"type": "command", "command": ["/bin/x", "-v"], "timeout": "1s"}):
        service = parse_service({**WEB, "health": health})
        data = json.loads(json.dumps(plain(service)))
        assert build(Service, data) == service == parse_service(data)
        check_service(service)
