# SPDX-License-Identifier: Apache-2.0
"""What single fields hold, as text, as values, and as JSON schema."""

from __future__ import annotations

import json
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from towpath.model import Config, Service, parse_service, problems_of
from towpath.model.kinds import (
    AbsolutePath,
    DeviceName,
    Duration,
    FieldError,
    Flag,
    Integer,
    Integers,
    IntegerSet,
    Kind,
    Listen,
    Name,
    Ports,
    PortSet,
    Prefixes,
    SourceAddress,
    UnicastAddress,
    UnicastAddresses,
    Vip,
    Word,
    plain,
)
from towpath.model.kinds.rates import Quantity

TEN = ip_network("10.0.0.0/8")
RATE = Quantity(0, 10**9, "bits a second")

GOOD: list[tuple[Kind, object, object]] = [
    (Integer(0, 9), 9, 9),
    (Integers(0, 9, 2), [9, 0], (9, 0)),
    (Integers(0, 9, 2), 9, (9,)),
    (Integers(0, 9, 2), None, ()),
    (IntegerSet(0, 9, 2), [9, 0], (0, 9)),
    (IntegerSet(0, 9, 2), 0, (0,)),
    (IntegerSet(0, 9, 2), None, ()),
    (UnicastAddresses(), "192.0.2.1", (ip_address("192.0.2.1"),)),
    (UnicastAddresses(), None, ()),
    (Flag(), False, False),
    (Word("a", "b"), "b", "b"),
    (Name(), "ns.web_1:http-80", "ns.web_1:http-80"),
    (DeviceName(), "enp3s0f1np1.4094"[:15], "enp3s0f1np1.409"),
    (DeviceName(), "bond0@x", "bond0@x"),
    (AbsolutePath(), "/run/a.sock", Path("/run/a.sock")),
    (UnicastAddress(), "203.0.113.10", ip_address("203.0.113.10")),
    (RATE, "0.5M", 500_000),
    (RATE, "1e6", 1_000_000),
    (RATE, "1Mi", 1 << 20),
    (RATE, 100, 100),
    (UnicastAddress(), "2001:DB8::0010", ip_address("2001:db8::10")),
    (UnicastAddress(), "169.254.0.1", ip_address("169.254.0.1")),
    (PortSet(), 80, 80),
    (PortSet(), "80", 80),
    (PortSet(), "any", Ports.of([(0, 65535)])),
    (PortSet(), "8000-8999", Ports.of([(8000, 8999)])),
    (PortSet(), " 80, 443 ,8000 - 8999", Ports.of([(80, 80), (443, 443), (8000, 8999)])),
    (PortSet(), [81, "80", "82-90"], Ports.of([(80, 90)])),
    (PortSet(), ["80-80"], 80),
    (Vip(), "203.0.113.10", ip_address("203.0.113.10")),
    (Vip(), "203.0.113.0/24", ip_network("203.0.113.0/24")),
    (Vip(), "203.0.113.10/32", ip_address("203.0.113.10")),
    (Vip(), ip_network("2001:db8::/64"), ip_network("2001:db8::/64")),
    (SourceAddress(4), "node", "node"),
    (SourceAddress(4), "10.0.0.0/8", ip_network("10.0.0.0/8")),
    (SourceAddress(6), "2001:db8::/127", ip_network("2001:db8::/127")),
    (Listen(), None, None),
    (Listen(), "[::]:9464", "[::]:9464"),
    (Listen(), "0.0.0.0:9464", "0.0.0.0:9464"),
    (Duration(1, 100000), 90, 90),
    (Duration(1, 100000), "90", 90),
    (Duration(1, 100000), "90s", 90),
    (Duration(1, 100000), "10m", 600),
    (Duration(1, 100000), "3h", 10800),
    (Duration(1, 100000), "1d1h1m1s", 90061),
    (Prefixes(), None, None),
    (Prefixes(), "198.51.100.7, 10.0.0.0/8", (TEN, ip_network("198.51.100.7/32"))),
    (Prefixes(), ["0.0.0.0/0"], (ip_network("0.0.0.0/0"),)),
    (Prefixes(), ["2001:db8::/32", "10.0.0.0/8"], (TEN, ip_network("2001:db8::/32"))),
    (Prefixes(), ["10.128.0.0/9", "10.0.0.0/9", "10.1.0.0/16", "10.0.0.0/8"], (TEN,)),
]

BAD: list[tuple[Kind, object, str]] = [
    (Integers(0, 9, 2), [1, 2, 3], "3 are too many; allowed: up to 2, each from 0 to 9"),
    (Integers(0, 9, 2), [1, 1], "1 is listed twice; allowed: up to 2"),
    (Integers(0, 9, 2), [10], "10 is out of range; allowed: up to 2, each from 0 to 9"),
    (IntegerSet(0, 9, 2), 10, "10 is out of range; allowed: 0 to 9, or a list of up to 2 of them"),
    (IntegerSet(0, 9, 2), [2, 1, 2], "3 are too many; allowed: 0 to 9, or a list of up to 2"),
    (IntegerSet(0, 9, 2), [1, 1], "1 is listed twice; allowed: 0 to 9, or a list"),
    (IntegerSet(0, 9, 2), "1,2", "'1,2' is not a whole number; allowed: 0 to 9, or a list"),
    (UnicastAddresses(), ["::1"], "is a loopback address"),
    (UnicastAddresses(), ["192.0.2.1"] * 2, "192.0.2.1 is listed twice"),
    (Integer(0, 9), 10, "10 is out of range; allowed: 0 to 9"),
    (Integer(0, 9), "5", "'5' is not a whole number; allowed: 0 to 9"),
    (Integer(0, 9), 5.0, "5.0 is not a whole number"),
    (Integer(0, 9), True, "true is not a whole number"),
    (Integer(0, 9), None, "null is not a whole number"),
    (Flag(), 1, "1 is neither true nor false"),
    (Word("a", "b"), "c", "'c' is not known; allowed: a, b"),
    (Word("a", "b"), ["a"], "['a'] is not known"),
    (PortSet(), 0, "0 is out of range; allowed: 1 to 65535"),
    (PortSet(), 65536, "65536 is out of range"),
    (
        PortSet(),
        "80-",
        "'80-' is neither a port nor a range; allowed: a port (1 to 65535), a range",
    ),
    (PortSet(), "-1", "'-1' is neither a port nor a range"),
    (PortSet(), True, "true is neither a port nor a range"),
    (PortSet(), 80.0, "80.0 is neither a port nor a range"),
    (PortSet(), None, "null is neither a port nor a range"),
    (PortSet(), [], "an empty list has no port"),
    (PortSet(), "9000-8000", "'9000-8000' ends before it begins; allowed: 8000-9000"),
    (PortSet(), "0-80", "'0-80' is out of range"),
    (PortSet(), "1-99999", "'1-99999' is out of range"),
    (PortSet(), [80, "http"], "'http' is neither a port nor a range"),
    (Vip(), "203.0.113.10/24", "has host bits set; allowed: 203.0.113.0/24, or 203.0.113.10 alone"),
    (Vip(), "0.0.0.0/0", "0.0.0.0/0 is too wide; allowed: /8 or longer"),
    (Vip(), "2001::/16", "2001::/16 is too wide; allowed: /32 or longer"),
    (Vip(), "224.0.0.0/24", "224.0.0.0/24: 224.0.0.0 is a multicast address"),
    (Vip(), "127.0.0.0/8", "is a loopback address"),
    (Vip(), "203.0.113.0/33", "'203.0.113.0/33' is not a prefix; allowed: a unicast"),
    (Vip(), 5, "5 is not text; put it in quotes; allowed: a unicast IPv4 or IPv6 address, or a"),
    (RATE, "010M", "'010M' is not a number of bits a second; allowed: bits a second, such as 10M"),
    (RATE, "\u0663M", "is not a number of bits a second"),
    (RATE, "1_0M", "'1_0M' is not a number of bits a second"),
    (RATE, "1e06", "'1e06' is not a number of bits a second"),
    (RATE, "00.5M", "'00.5M' is not a number of bits a second"),
    (RATE, "10K", "; K is written k; allowed"),
    (
        RATE,
        "2G",
        "'2G' is out of range; allowed: bits a second, such as 10M, 1G or 1Gi, from 0 to 1G",
    ),
    (Name(), "", "'' is not a name"),
    (Name(), "a b", "'a b' is not a name"),
    (Name(), "a/b", "'a/b' is not a name"),
    (Name(), "a\n", r"'a\\n' is not a name"),
    (Name(), "x" * 254, "is too long; allowed: 253 characters"),
    (DeviceName(), "a" * 16, "can't be a device's name"),
    (DeviceName(), "..", "can't be a device's name"),
    (DeviceName(), "é" * 8, "can't be a device's name"),
    (AbsolutePath(), "run/a", "is not an absolute path"),
    (AbsolutePath(), "/a\0b", "is not an absolute path"),
    (AbsolutePath(most=5), "/12345", "is too long; allowed: 5 bytes"),
    (UnicastAddress(), "203.0.113.256", "is not an address; allowed: a unicast IPv4 or IPv6"),
    (UnicastAddress(), "203.0.113.010", "is not an address"),
    (UnicastAddress(), "web.example", "is not an address"),
    (UnicastAddress(), 3405803786, "3405803786 is not text; put it in quotes"),
    (UnicastAddress(), "0.0.0.0", "is the unspecified address"),
    (UnicastAddress(), "::", "is the unspecified address"),
    (UnicastAddress(), "239.1.1.1", "is a multicast address"),
    (UnicastAddress(), "ff02::1", "is a multicast address"),
    (UnicastAddress(), "127.1.2.3", "is a loopback address, which no packet on a wire has"),
    (UnicastAddress(), "::1", "is a loopback address"),
    (UnicastAddress(), "255.255.255.255", "is the broadcast address"),
    (UnicastAddress(), "0.0.0.9", "is in 0.0.0.0/8, which no host has"),
    (UnicastAddress(), "fe80::1", "is link-local, which means something on one link only"),
    (UnicastAddress(), "2001:db8::1%eth0", "has a zone"),
    (UnicastAddress(), "::ffff:192.0.2.1", "is IPv4 inside IPv6, write 192.0.2.1"),
    (SourceAddress(4), "host", "'host' is not an address; allowed: node, an IPv4 address, or"),
    (SourceAddress(4), "2001:db8::1", "is IPv6; allowed: node, an IPv4 address, or"),
    (SourceAddress(6), "192.0.2.0/24", "is IPv4; allowed: node, an IPv6 address, or"),
    (SourceAddress(4), "192.0.2.1/24", "has host bits set; allowed: 192.0.2.0/24, or 192.0.2.1"),
    (SourceAddress(4), "10.0.0.0/7", "10.0.0.0/7 is too wide"),
    (SourceAddress(4), "10.0.0.0/33", "is not a prefix"),
    (SourceAddress(4), "10.0.0.0/", "is not a prefix"),
    (SourceAddress(4), "224.0.0.0/8", "is a multicast address"),
    (SourceAddress(6), "fe80::/96", "is link-local"),
    (Listen(), "9464", "is not ADDRESS:PORT"),
    (Listen(), ":9464", "'' is not an IPv4 address"),
    (Listen(), "::1:9464", "is not ADDRESS:PORT"),
    (Listen(), "[::g]:9464", "'::g' is not an IPv6 address"),
    (Listen(), "127.0.0.1:0", "0 is out of range; allowed: 1 to 65535"),
    (Listen(), 9464, "9464 is not text; put it in quotes"),
    (Duration(1, 5400), 0, "0 is out of range; allowed: seconds as a number, or with units"),
    (Duration(1, 5400), "2h", "'2h' is out of range"),
    (Duration(1, 5400), 5401, "90s, 10m, 3h, 1h30m; 1s to 1h30m"),
    (Duration(1, 5400), "", "'' is not a length of time"),
    (Duration(1, 5400), "5 m", "'5 m' is not a length of time"),
    (Duration(1, 5400), "1s1m", "'1s1m' is not a length of time"),
    (Duration(1, 5400), "-1s", "'-1s' is not a length of time"),
    (Duration(1, 5400), 1.5, "1.5 is not a length of time"),
    (Duration(1, 5400), True, "true is not a length of time"),
    (Duration(1, 5400), None, "null is not a length of time"),
    (Prefixes(), [], "an empty list has no address at all; allowed: a list of prefixes"),
    (Prefixes(), {}, "{} is not a list"),
    (Prefixes(), 5, "5 is not a list"),
    (Prefixes(), [5], "5 is not a prefix; allowed: a list of prefixes or addresses"),
    (Prefixes(), ["10.0.0.1/8"], "has host bits set; allowed: 10.0.0.0/8, or 10.0.0.1 alone"),
    (Prefixes(), ["10.0.0.0/33"], "'10.0.0.0/33' is not a prefix"),
    (Prefixes(), "any", "'any' is not a prefix"),
]


def named(value: object) -> str:
    """For a test's name, the same in every run."""
    return type(value).__name__ if isinstance(value, Kind) else str(value)


@pytest.mark.parametrize(("kind", "raw", "value"), GOOD, ids=named)
def test_right_values_are_read(kind: Kind, raw: object, value: object) -> None:
    """Plain data becomes a value; a value stays itself and goes back to plain data."""
    parsed = kind.parse(raw)
    assert parsed == value
    assert kind.parse(parsed) == value
    assert kind.parse(plain(parsed)) == value
    json.dumps(plain(parsed))


@pytest.mark.parametrize(("kind", "raw", "message"), BAD, ids=named)
def test_wrong_values_are_refused(kind: Kind, raw: object, message: str) -> None:
    """The message says what is wrong and what is allowed."""
    with pytest.raises(FieldError) as caught:
        kind.parse(raw)
    assert message.replace("\\\\", "\\") in str(caught.value)
    assert "allowed: " in str(caught.value)


def pydantic_refusal(value: dict[str, Any]) -> list[str]:
    """What pydantic finds wrong with a service, as problems."""
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(Service).validate_python(value)
    errors = [{**error} for error in caught.value.errors()]
    return [str(problem) for problem in problems_of(errors)]


class TestPydantic:
    """The same dataclasses as bodies of an HTTP API."""

    BODY: dict[str, Any] = {  # noqa: RUF012 - read only
        "name": "web",
        "vip": "203.0.113.10",
        "port": 80,
        "protocol": "udp",
        "backends": [
            {
                "address": "2001:db8::1",
                "weight": 2,
                "state": "active",
                "port": None,
                "local": True,
                "server_id": [17, 18],
            }
        ],
        "forwarding": "dsr",
        "table_size": 251,
        "flow_table": False,
        "flow_timeout": 90,
        "affinity": {"timeout": 600},
        "allow_from": ["198.51.100.0/24", "2001:db8:7::/48"],
        "health": {
            "type": "http",
            "interval": 0.5,
            "timeout": 0.25,
            "rise": 1,
            "fall": 5,
            "port": None,
            "path": "/health?full=1",
            "host": "web.example",
            "status": "200-299,404",
            "verify": False,
            "command": [],
            "on_all_failed": "closed",
            "on_down": "keep",
            "send": "",
            "expect": "",
            "query": ".",
            "grpc_service": "",
        },
        "scope": "all",
        "hash_by": "flow",
        "encap": "gue",
        "encap_port": 9886,
        "quic": {
            "server_ids": "quic-lb",
            "length": 2,
            "rotation": 5,
            "length_self_description": True,
        },
        "route_from": [{"sources": ["198.51.100.0/24"], "backends": ["2001:db8::1"]}],
    }

    def test_round_trip(self) -> None:
        """JSON to object to JSON; the same object as without pydantic."""
        adapter = TypeAdapter(Service)
        service = adapter.validate_python(self.BODY)
        assert service == parse_service(self.BODY)
        assert json.loads(adapter.dump_json(service)) == self.BODY
        assert adapter.validate_json(adapter.dump_json(service)) == service

    def test_round_trip_of_what_is_left_out(self) -> None:
        """No affinity, no list of sources and what is the default are null."""
        body = self.BODY | {"affinity": None, "allow_from": None, "flow_timeout": None}
        body["health"] = body["health"] | {"on_down": None}
        service = TypeAdapter(Service).validate_python(body)
        assert (service.affinity, service.allow_from, service.flow_timeout) == (None, None, None)
        assert json.loads(TypeAdapter(Service).dump_json(service)) == body

    def test_messages_are_the_same(self) -> None:
        """What is wrong reads as it does for a file."""
        body = {**self.BODY, "port": 0, "potr": 1, "backends": [{"address": "::"}], "vip": 1}
        del body["name"]
        assert sorted(pydantic_refusal(body)) == [
            (
                "backends[0].address: :: is the unspecified address; "
                "allowed: a unicast IPv4 or IPv6 address"
            ),
            "name: is missing",
            "port: 0 is out of range; allowed: 1 to 65535",
            "potr: unknown key",
            (
                "vip: 1 is not text; put it in quotes; allowed: a unicast IPv4 or IPv6 address, or "
                "a prefix of them such as 203.0.113.0/28"
            ),
        ]
        assert pydantic_refusal({**self.BODY, "backends": 5}) == ["backends: is not a list"]
        assert pydantic_refusal({**self.BODY, "backends": [5]}) == ["backends[0]: is not a mapping"]

    def test_schema_says_what_is_allowed(self) -> None:
        """OpenAPI readers see ranges, formats, defaults and descriptions."""
        schema = TypeAdapter(Service).json_schema()
        assert schema["required"] == ["name", "vip", "port"]
        assert schema["additionalProperties"] is False
        properties = schema["properties"]
        one = [
            {"type": "integer", "minimum": 1, "maximum": 65535},
            {"type": "string", "examples": ["8000-8999"]},
        ]
        assert properties["port"] == {
            "anyOf": [*one, {"type": "array", "items": {"anyOf": one}, "minItems": 1}],
            "description": (
                "Port that clients connect to; a range (8000-8999), a list of both, or any."
            ),
            "title": "Port",
        }
        assert properties["protocol"]["enum"] == ["tcp", "udp"]
        assert properties["table_size"]["default"] == 16381
        assert all(value["description"] for value in properties.values())
        assert "required" not in TypeAdapter(Config).json_schema()
