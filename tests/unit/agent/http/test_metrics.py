# SPDX-License-Identifier: Apache-2.0
"""Counters as Prometheus reads them."""

from __future__ import annotations

import socket
from dataclasses import replace
from ipaddress import ip_address
from itertools import chain
from typing import TYPE_CHECKING
from urllib.request import urlopen

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from tests.unit.api.test_codec import DOCUMENTS, NAME

from towpath.agent.errors import AgentError
from towpath.agent.http.metrics import (
    agent_metrics,
    datapath_metrics,
    host_metrics,
    registry,
    served,
)
from towpath.api.documents import Check, Counters, Status
from towpath.core.health import State
from towpath.datapath.balancer import Followed

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client import CollectorRegistry

COUNTERS = next(each for each in DOCUMENTS if isinstance(each, Counters))
CHECKS = [each for each in DOCUMENTS if isinstance(each, Check)]
STATUS = next(each for each in DOCUMENTS if isinstance(each, Status))
FOLLOWED = Followed(programs=1, settings=2, checks=3, pins=4, resyncs=5)
LABELS = {"service": "web", "vip": "2001:db8::10", "port": "80", "protocol": "udp"}
CHECKED = LABELS | {"backend": "192.0.2.1"}


def made(status: Status = STATUS, checks: Iterable[Check] = CHECKS) -> CollectorRegistry:
    """A registry as an agent with a load balancer has it."""
    return registry(
        lambda: chain(
            datapath_metrics(COUNTERS, checks),
            host_metrics(status.device_status, FOLLOWED._asdict()),
            agent_metrics(status),
        )
    )


def scraped(status: Status = STATUS) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample by its name and labels, as Prometheus' own parser sees them."""
    text = generate_latest(made(status=status)).decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.mark.parametrize(
    ("name", "labels", "value"),
    [
        ("towpath_verdict_packets_total", {"reason": "tx"}, 2**63),
        ("towpath_device_attached", {"device": "eth0"}, 1),
        ("towpath_device_attached", {"device": "eth1"}, 0),
        ("towpath_repairs_total", {"what": "programs"}, 1),
        ("towpath_repairs_total", {"what": "settings"}, 2),
        ("towpath_repairs_total", {"what": "checks"}, 3),
        ("towpath_repairs_total", {"what": "pins"}, 4),
        ("towpath_resyncs_total", {}, 5),
        ("towpath_service_packets_total", LABELS, 1),
        ("towpath_service_bytes_total", LABELS, 2),
        ("towpath_service_flows_total", LABELS, 3),
        ("towpath_service_drops_total", LABELS, 4),
        ("towpath_service_active_flows", LABELS, 10),
        ("towpath_service_dropped_packets_total", LABELS | {"reason": "drop_no_backend"}, 11),
        ("towpath_backend_flows_total", LABELS | {"backend": "192.0.2.1"}, 7),
        ("towpath_backend_active_flows", LABELS | {"backend": "192.0.2.1"}, 8),
        (
            "towpath_backend_dropped_packets_total",
            LABELS | {"backend": "192.0.2.1", "reason": "drop_mtu"},
            9,
        ),
        ("towpath_backend_packets_total", LABELS | {"backend": "192.0.2.1"}, 5),
        ("towpath_backend_bytes_total", LABELS | {"backend": "192.0.2.1"}, 6),
        ("towpath_backend_health", LABELS | {"backend": "192.0.2.1"}, 0),
        ("towpath_backend_checks_total", CHECKED | {"result": "passed"}, 1),
        ("towpath_backend_checks_total", CHECKED | {"result": "failed"}, 2),
        ("towpath_backend_checks_total", CHECKED | {"result": "unmade"}, 3),
        ("towpath_agent_info", {"version": "1"}, 1),
        ("towpath_used", {"limit": "services"}, 1),
        ("towpath_limit", {"limit": "services"}, 2),
        ("towpath_config_refused", {}, 1),
        ("towpath_agent_resident_bytes", {}, 3),
    ],
)
def test_each_number_has_its_name_and_labels(
    name: str, labels: dict[str, str], value: float
) -> None:
    """Names are an interface: dashboards and alerts hold on to them."""
    assert scraped()[name, frozenset(labels.items())] == value


def test_there_is_nothing_else() -> None:
    """No interpreter's garbage collector, no other default of the library."""
    assert len(scraped()) == 30


def test_an_accepted_file_is_not_alarming() -> None:
    """The metric to alert on goes back to 0."""
    status = replace(STATUS, file=replace(STATUS.file, refused=None))
    assert scraped(status)["towpath_config_refused", frozenset()] == 0


@pytest.mark.parametrize("state", State)
def test_whether_a_backend_gets_flows(state: State) -> None:
    """One number to alert on."""
    check = replace(CHECKS[0], state=state)
    text = generate_latest(made(checks=[check])).decode()
    (line,) = [each for each in text.splitlines() if each.startswith("towpath_backend_health{")]
    assert line.rpartition(" ")[2] == ("1.0" if state in {"unknown", "up", "failing"} else "0.0")


def test_counters_are_read_at_every_scrape_and_not_before() -> None:
    """Nothing is kept in between."""
    reads = []

    def read() -> Counters:
        reads.append(NAME)
        return COUNTERS

    found = registry(lambda: datapath_metrics(read(), CHECKS))
    assert reads == []
    generate_latest(found)
    generate_latest(found)
    assert len(reads) == 2


def test_they_are_served_on_an_address_of_their_own() -> None:
    """Until the block ends, when the port is free again."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    address = ip_address("127.0.0.1"), port
    for _ in range(2):
        with (
            served(address, made()),
            urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer,
        ):
            assert b'towpath_verdict_packets_total{reason="tx"}' in answer.read()


def test_a_port_that_is_taken_is_said() -> None:
    """With the setting it comes from."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        message = f"metrics.listen: can't listen on 127.0.0.1 port {port}: Address already in use"
        with (
            pytest.raises(AgentError, match=message),
            served((ip_address("127.0.0.1"), port), made()),
        ):
            pass
