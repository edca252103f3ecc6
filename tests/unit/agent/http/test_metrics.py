# SPDX-License-Identifier: Apache-2.0
"""What the agent says of itself, as Prometheus reads it."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from itertools import chain
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.unit.api.test_codec import DOCUMENTS

from towpath.agent.bandwidth.metrics import bandwidth_metrics
from towpath.agent.cgroup import cgroup_metrics
from towpath.agent.http.exposition import Rendering
from towpath.agent.http.metrics import (
    agent_metrics,
    host_metrics,
    local_metrics,
    refused_metrics,
    unwrapped_metrics,
)
from towpath.agent.masquerade import masquerade_metrics
from towpath.agent.neigh import next_hop_metrics
from towpath.agent.socket.metrics import packet_metrics, socket_metrics
from towpath.agent.sources.kubernetes.report import metrics as source_metrics
from towpath.api.documents import NextHops, Refused, Status, UnwrappedCounters
from towpath.core.kubernetes.pools import Usage
from towpath.datapath.balancer import Followed
from towpath.datapath.lb.services import Place
from towpath.datapath.socket.counters import Reading
from towpath.documents import (
    Bandwidth,
    BandwidthAggregate,
    BandwidthDevice,
    MasqueradeCounters,
    SocketPackets,
)
from towpath.model.service import Protocol, ServiceKey

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client.core import Metric

    from towpath.agent.sources.kubernetes.source import Source

STATUS = next(each for each in DOCUMENTS if isinstance(each, Status))
NEXT_HOPS = next(each for each in DOCUMENTS if isinstance(each, NextHops))
FOLLOWED = Followed(programs=1, settings=2, checks=3, pins=4, resyncs=5)

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def text(families: Iterable[Metric]) -> str:
    """What a scrape gives."""
    return b"".join(Rendering(families).text()).decode()


VIP = ip_address("203.0.113.10")
SOCKETS = Reading(
    verdicts={"connect": {"balanced": 2}},
    places=(
        Place(
            ServiceKey(VIP, 80, Protocol.TCP), 0, ((ip_address("192.0.2.1"), 1),), translated=False
        ),
        Place(ServiceKey(VIP, 81, Protocol.TCP), 1, (), translated=False),
    ),
    names=('we"b', ""),
    of_service=("balanced", "refused"),
    services={"connect": np.array([[2, 0], [0, 5]]), "sendmsg": np.array([[0, 0], [0, 0]])},
    backends={"connect": np.array([3]), "sendmsg": np.array([4])},
)
PACKETS = SocketPackets(("tap1",), {"to_pod": {"restored": 21}}, 23, {"to_pod": 22}, 24, 64)
MASQUERADE = MasqueradeCounters({"from_pod": {"sent": 2}}, 3, {"from_pod": 4})


WEB = {"aggregate": "web", "kind": "pod"}
BANDWIDTH = Bandwidth(
    direct=True,
    charges="atomic",
    stamps_kept=("tcp", "udp"),
    devices=(BandwidthDevice("eth0", paces=True, why="", dropped=17),),
    aggregates=(
        BandwidthAggregate(
            name="web",
            kind="pod",
            origin="configuration",
            group=None,
            devices=("veth1",),
            egress=10_000_000,
            ingress=None,
            burst=None,
            packets=None,
            priority=0,
            egress_bytes=12,
            ingress_bytes=13,
            verdicts={"delayed": 11},
            stamps_converted=0,
            stamps_cleared=0,
            backlog_ms=14.0,
            delayed_ms=15.0,
            longest_ms=16.0,
            flows=1,
        ),
    ),
    room=16,
    unlimited={},
    troubles=(),
)


POOL = {"source": "kubernetes", "pool": "public"}
SERVICES = {"source": "kubernetes", "kind": "services"}
FOLLOWED_SOURCE = SimpleNamespace(
    reflectors=[
        SimpleNamespace(
            resource=SimpleNamespace(called="services", kind="Service"),
            synced=True,
            error=None,
            heard=1.0,
            lists=2,
        )
    ],
    cluster=SimpleNamespace(number=lambda _kind: 3, held=lambda: 4),
    lateness=SimpleNamespace(seconds=1.5, times=9, behind=0.25),
    withheld=["web"] * 5,
    unserved=["web"] * 6,
    pods=SimpleNamespace(
        reflectors=[],
        pods=SimpleNamespace(waiting=7, leaving=("default:web",) * 8),
        refusals=lambda: ["web"] * 3,
    ),
    pools=SimpleNamespace(
        reflectors=[],
        pools=SimpleNamespace(usage=lambda: [Usage("public", 16, 5)]),
        election=SimpleNamespace(leads=True),
        refusals=lambda: ["web"] * 2,
    ),
)


def every_metric() -> Iterable[Metric]:
    """What is not of a load balancer's packets."""
    return chain(
        host_metrics(STATUS.device_status, FOLLOWED._asdict()),
        next_hop_metrics(NEXT_HOPS),
        refused_metrics([Refused("br0", "EOPNOTSUPP", 6)]),
        unwrapped_metrics([UnwrappedCounters(ip_address("192.0.2.9"), 7, 8)]),
        local_metrics({"in": {"restored": 4, "bytes": 5, "begun": 6}}),
        source_metrics(cast("Source", FOLLOWED_SOURCE)),
        bandwidth_metrics(BANDWIDTH),
        masquerade_metrics(MASQUERADE, 7),
        cgroup_metrics(proven=True),
        socket_metrics(SOCKETS, 8),
        packet_metrics(PACKETS),
        agent_metrics(STATUS),
    )


def parsed(families: Iterable[Metric]) -> Samples:
    """Every sample by its name and labels, as Prometheus' own parser sees them."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text(families))
        for sample in family.samples
    }


@pytest.mark.parametrize(
    ("name", "labels", "value"),
    [
        ("towpath_device_attached", {"device": "eth0"}, 1),
        ("towpath_device_attached", {"device": "eth1"}, 0),
        ("towpath_device_native", {"device": "eth0"}, 1),
        ("towpath_device_native", {"device": "eth2"}, 0),
        ("towpath_refused_packets_total", {"device": "br0", "error": "EOPNOTSUPP"}, 6),
        ("towpath_local_packets_total", {"program": "in", "verdict": "restored"}, 4),
        ("towpath_local_bytes_total", {"program": "in"}, 5),
        ("towpath_source_synced", SERVICES, 1),
        ("towpath_source_objects", SERVICES, 3),
        ("towpath_source_lists_total", SERVICES, 2),
        ("towpath_source_held", {"source": "kubernetes"}, 4),
        ("towpath_source_delay_seconds_total", {"source": "kubernetes"}, 1.5),
        ("towpath_source_changes_total", {"source": "kubernetes"}, 9),
        ("towpath_source_behind_seconds", {"source": "kubernetes"}, 0.25),
        ("towpath_source_withheld", {"source": "kubernetes"}, 5),
        ("towpath_source_unserved", {"source": "kubernetes"}, 11),
        ("towpath_source_pool_addresses", POOL, 16),
        ("towpath_source_pool_free", POOL, 11),
        ("towpath_source_leads", {"source": "kubernetes"}, 1),
        ("towpath_source_pods_waiting", {"source": "kubernetes"}, 7),
        ("towpath_source_pods_leaving", {"source": "kubernetes"}, 8),
        ("towpath_repairs_total", {"what": "programs"}, 1),
        ("towpath_repairs_total", {"what": "settings"}, 2),
        ("towpath_repairs_total", {"what": "checks"}, 3),
        ("towpath_repairs_total", {"what": "pins"}, 4),
        ("towpath_resyncs_total", {}, 5),
        ("towpath_next_hops", {"state": "reachable"}, 1),
        ("towpath_destinations_unreached", {}, 1),
        ("towpath_bandwidth_packets_total", WEB | {"verdict": "delayed"}, 11),
        ("towpath_bandwidth_bytes_total", WEB | {"direction": "egress"}, 12),
        ("towpath_bandwidth_bytes_total", WEB | {"direction": "ingress"}, 13),
        ("towpath_bandwidth_delay_seconds_total", WEB, 0.015),
        ("towpath_bandwidth_longest_delay_seconds", WEB, 0.016),
        ("towpath_bandwidth_backlog_seconds", WEB, 0.014),
        ("towpath_bandwidth_limit_bits", WEB | {"direction": "egress"}, 10_000_000),
        ("towpath_bandwidth_device_paces", {"device": "eth0"}, 1),
        ("towpath_bandwidth_fq_dropped_total", {"device": "eth0"}, 17),
        ("towpath_masquerade_packets_total", {"program": "from_pod", "verdict": "sent"}, 2),
        ("towpath_masquerade_bytes_total", {"program": "from_pod"}, 4),
        ("towpath_masquerade_flows_begun_total", {}, 3),
        ("towpath_masquerade_flows", {}, 7),
        ("towpath_cgroup_proven", {}, 1),
        ("towpath_socket_calls_total", {"hook": "connect", "verdict": "balanced"}, 2),
        (
            "towpath_socket_service_calls_total",
            {"service": 'we"b', "hook": "connect", "verdict": "balanced"},
            2,
        ),
        (
            "towpath_socket_service_calls_total",
            {"service": "203.0.113.10:81/tcp", "hook": "connect", "verdict": "refused"},
            5,
        ),
        (
            "towpath_socket_backend_calls_total",
            {"service": 'we"b', "backend": "192.0.2.1", "hook": "connect"},
            3,
        ),
        (
            "towpath_socket_backend_calls_total",
            {"service": 'we"b', "backend": "192.0.2.1", "hook": "sendmsg"},
            4,
        ),
        ("towpath_socket_stale_ended_total", {}, 8),
        ("towpath_socket_packets_total", {"program": "to_pod", "verdict": "restored"}, 21),
        ("towpath_socket_packet_bytes_total", {"program": "to_pod"}, 22),
        ("towpath_socket_packet_flows_begun_total", {}, 23),
        ("towpath_socket_packet_flows", {}, 24),
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
    assert parsed(every_metric())[name, frozenset(labels.items())] == value


def test_there_is_nothing_else() -> None:
    """No interpreter's garbage collector, no other default of the library."""
    assert len(parsed(every_metric())) == 64


def test_an_accepted_file_is_not_alarming() -> None:
    """The metric to alert on goes back to 0."""
    status = replace(STATUS, file=replace(STATUS.file, refused=None))
    assert parsed(agent_metrics(status))["towpath_config_refused", frozenset()] == 0


def test_series_of_sockets_backends_can_be_left_out() -> None:
    """As those of packets' backends."""
    found = parsed(socket_metrics(SOCKETS, 8, backends=False))
    assert len(found) == 7
    assert not [name for name, _ in found if "backend" in name]
