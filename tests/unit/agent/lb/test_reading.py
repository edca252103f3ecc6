# SPDX-License-Identifier: Apache-2.0
"""Stored services are read as they were written, however many are alike."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.agent.samples import service

from towpath.agent.lb.reading import ServiceReader
from towpath.api.codec import build, plain, text
from towpath.model import Affinity, Backend, BackendState, Health, Protocol, Quic, Service
from towpath.model.health import CheckType
from towpath.model.kinds import Ports

WEB = service("web", "203.0.113.10", "192.0.2.1", "192.0.2.2")
OTHERS = (
    replace(WEB, name="six", vip=ip_address("2001:db8::10"), protocol=Protocol.UDP),
    replace(WEB, name="prefix", vip=ip_network("203.0.113.0/28")),
    replace(WEB, name="ports", port=Ports.of([(80, 81), (443, 443)])),
    replace(WEB, name="some", allow_from=(ip_network("198.51.100.0/24"),)),
    replace(WEB, name="kept", affinity=Affinity(60), flow_table=False, forwarding="snat"),
    replace(WEB, name="checked", health=Health(type=CheckType.TCP)),
    replace(WEB, name="none", backends=()),
    replace(
        WEB,
        name="ids",
        protocol=Protocol.UDP,
        quic=Quic(length=1),
        backends=(Backend(ip_address("192.0.2.1"), server_id=(7, 8)), *WEB.backends[1:]),
    ),
    replace(
        WEB,
        name="states",
        backends=tuple(
            Backend(ip_address(f"2001:db8::{at + 1}"), at, state, 8000 + at, local=at == 1)
            for at, state in enumerate(BackendState)
        ),
    ),
)


def test_all_come_back() -> None:
    """By one reader, in whatever order, and as the slow way reads them."""
    reader = ServiceReader()
    for each in (WEB, *OTHERS, *OTHERS, WEB):
        assert reader.read(text(each)) == each
        assert reader.read(text(each)) == build(Service, json.loads(text(each)))


@given(st.permutations([WEB, *OTHERS]), st.sampled_from(["scope", "table_size", "flow_timeout"]))
def test_what_another_version_wrote_is_read(services: list[Service], missing: str) -> None:
    """A field that it hadn't has its default, one that it had besides is left alone."""
    reader = ServiceReader()
    for each in services:
        data = plain(each) | {"later": [1]}
        del data[missing]
        assert reader.read(json.dumps(data)) == build(Service, data)


@pytest.mark.parametrize(("written", "read"), [(None, ()), (7, (7,)), ([8, 7], (7, 8))])
def test_ids_of_one_backend_are_read(written: Any, read: tuple[int, ...]) -> None:
    """None, one or several: before there were lists a number was written, or null."""
    data = plain(WEB)
    data["backends"][0]["server_id"] = written
    found = ServiceReader().read(json.dumps(data))
    assert [each.server_id for each in found.backends] == [read, ()]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("port", 0),
        ("vip", "203.0.113.300"),
        ("vip", "224.0.0.1"),
        ("name", "a b"),
        ("table_size", 100),
        ("flow_table", 1),
        ("forwarding", "nat"),
        ("backends", [{"address": "127.0.0.1"}]),
        ("backends", [{"address": "192.0.2.01"}]),
        ("backends", [{"address": "192.0.2.1", "weight": True}]),
        ("backends", [{"address": "192.0.2.1", "weight": 65536}]),
    ],
)
def test_what_is_wrong_is_refused(field: str, value: Any) -> None:
    """As the slow way refuses it; also after one that was right."""
    reader = ServiceReader()
    reader.read(text(WEB))
    data = plain(WEB) | {field: value}
    with pytest.raises(ValueError, match=r"\w") as slow:
        build(Service, data)
    with pytest.raises(ValueError, match=r"\w") as found:
        reader.read(json.dumps(data))
    if field != "vip":  # of a VIP also prefixes are allowed, which was no question here
        assert str(found.value) == str(slow.value)


def test_equal_addresses_are_one() -> None:
    """Services of several ports have the same backends, thousands of times."""
    reader = ServiceReader()
    one, other = (reader.read(text(replace(WEB, port=port))) for port in (80, 81))
    for here, there in zip(one.backends, other.backends, strict=True):
        assert here.address is there.address
