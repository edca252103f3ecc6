# SPDX-License-Identifier: Apache-2.0
"""A load balancer's counters as Prometheus reads them."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.unit.agent.http.test_metrics import parsed, text

from towpath.agent.health.registry import Record
from towpath.agent.health.target import Target
from towpath.agent.lb.metrics import Checks, DatapathMetrics, Flows
from towpath.core.health import Standing, State
from towpath.datapath.lb.services import Place
from towpath.datapath.observe.counters import Readings, Totals
from towpath.model import Backend, CheckType, Health, Protocol, Service

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.unit.agent.http.test_metrics import Samples

BACKENDS = (Backend(ip_address("2001:db8::1")), Backend(ip_address("2001:db8::2")))
HEALTH = Health(CheckType.TCP)
WEB = Service("web", ip_address("2001:db8::10"), 80, Protocol.UDP, BACKENDS, health=HEALTH)
# A backend that is leaving is in the kernel and in no service any more.
MAIL = Service("mail", ip_address("203.0.113.10"), 25, forwarding="snat")
PLACES = (
    Place(MAIL.key, 3, ((ip_address("192.0.2.9"), 0x10003),), translated=True),
    Place(
        WEB.key,
        1,
        tuple((each.address, 0x20001 + n) for n, each in enumerate(BACKENDS)),
        translated=False,
        routes=(((ip_network("2001:db8:5::/48"),), 3),),
    ),
)
LABELS = {"service": "web", "vip": "2001:db8::10", "port": "80", "protocol": "udp"}
CHECKED = LABELS | {"backend": "2001:db8::1"}
SNAT = {"service": "mail", "vip": "203.0.113.10", "port": "25", "protocol": "tcp"}


def column(*numbers: int) -> Any:
    """A counter by index."""
    return np.array(numbers, np.uint64)


def totals() -> Totals:
    """What the kernel has counted; each number occurs once."""
    dropped = np.zeros((4, 20), np.uint64)
    dropped[1, 0] = 11
    return Totals(
        verdicts={"tx": 2**63, "drop_mtu": 12},
        services={
            "packets": column(99, 1, 99, 21),
            "bytes": column(99, 2, 99, 22),
            "flows": column(99, 3, 99, 23),
            "drops": column(99, 4, 99, 24),
            "dropped": dropped,
        },
        replies={"packets": column(99, 25, 99, 26), "bytes": column(99, 27, 99, 28)},
        quic={"named": column(99, 0, 99, 0), "unknown": column(99, 0, 99, 37)},
        backends={"packets": column(99, 5, 31, 33), "bytes": column(99, 6, 32, 34)},
        backend_flows=column(99, 7, 35, 36),
        backend_drops={0x20001: {"drop_mtu": 9}, 0x30001: {"drop_mtu": 99}},
        reasons={0: "drop_no_backend", 1: "drop_mtu"},
        index_mask=0xFFFF,
    )


FLOWS = Flows(plain={0x20001: 8, 0x20002: 2, 0x10003: 99}, translated={0x10003: 6, 0x20001: 99})


def record(state: State = State.DOWN) -> Record:
    """What is known of the first backend."""
    target = Target.of(WEB, BACKENDS[0])
    return Record(target, Standing(state, 0.0), passed=13, failed=14, unmade=15)


def scraped(
    metrics: DatapathMetrics | None = None,
    services: tuple[Service, ...] = (WEB, MAIL),
    places: tuple[Place, ...] = PLACES,
    checked: Sequence[Record] = (record(),),
) -> Samples:
    """Every sample by its name and labels, as Prometheus' own parser sees them."""
    made = metrics or DatapathMetrics()
    checks = Checks(checked, 0.5)
    read = Readings(places, totals(), frozenset([0x20001]))
    return parsed(made.render(services, read, FLOWS, checks))


@pytest.mark.parametrize(
    ("name", "labels", "value"),
    [
        ("towpath_verdict_packets_total", {"reason": "tx"}, 2**63),
        ("towpath_service_packets_total", LABELS, 1),
        ("towpath_service_bytes_total", LABELS, 2),
        ("towpath_service_flows_total", LABELS, 3),
        ("towpath_service_drops_total", LABELS, 4),
        ("towpath_service_replies_total", SNAT, 26),
        ("towpath_service_reply_bytes_total", SNAT, 28),
        ("towpath_service_packets_total", SNAT, 21),
        ("towpath_service_active_flows", LABELS, 10),
        ("towpath_service_active_flows", SNAT, 6),
        ("towpath_service_dropped_packets_total", LABELS | {"reason": "drop_no_backend"}, 11),
        ("towpath_service_quic_packets_total", SNAT | {"said": "named"}, 0),
        ("towpath_service_quic_packets_total", SNAT | {"said": "unknown"}, 37),
        ("towpath_backend_packets_total", CHECKED, 5),
        ("towpath_backend_bytes_total", CHECKED, 6),
        ("towpath_backend_flows_total", CHECKED, 7),
        ("towpath_backend_active_flows", CHECKED, 8),
        ("towpath_backend_packets_total", SNAT | {"backend": "192.0.2.9"}, 33),
        ("towpath_backend_dropped_packets_total", CHECKED | {"reason": "drop_mtu"}, 9),
        ("towpath_check_delay_seconds", {}, 0.5),
        ("towpath_backend_reached", CHECKED, 0),
        ("towpath_backend_reached", SNAT | {"backend": "192.0.2.9"}, 1),
        ("towpath_backend_health", CHECKED, 0),
        ("towpath_backend_checks_total", CHECKED | {"result": "passed"}, 13),
        ("towpath_backend_checks_total", CHECKED | {"result": "failed"}, 14),
        ("towpath_backend_checks_total", CHECKED | {"result": "unmade"}, 15),
    ],
)
def test_each_number_has_its_name_and_labels(
    name: str, labels: dict[str, str], value: float
) -> None:
    """Names are an interface: dashboards and alerts hold on to them."""
    assert scraped()[name, frozenset(labels.items())] == value


def test_a_route_is_called_by_its_first_sources() -> None:
    """Of a service that has some, and no other."""
    sources = tuple(ip_network(f"10.{number}.0.0/16") for number in range(6))
    place = replace(PLACES[1], routes=((sources[5:], 3), (sources[:5], 1)))
    found = scraped(places=(PLACES[0], place))
    routes = {"10.5.0.0/16": 23, "10.0.0.0/16,10.1.0.0/16,10.2.0.0/16,10.3.0.0/16,+1": 3}
    name = "towpath_service_route_flows_total"
    expected = {
        (name, frozenset((LABELS | {"route": route}).items())): flows
        for route, flows in routes.items()
    }
    assert {key: value for key, value in found.items() if key[0] == name} == expected


def test_there_is_nothing_else() -> None:
    """Verdicts, seven of each service, two of ids, five of each backend, a route, drops, checks."""
    found = scraped()
    assert len(found) == 2 + 2 * 7 + 2 + 3 * 5 + 1 + 2 + 4 + 1
    assert 99 not in found.values()


def test_series_of_backends_can_be_left_out() -> None:
    """Those of services stay as they are."""
    without = scraped(DatapathMetrics(backends=False))
    assert without == {
        key: value for key, value in scraped().items() if not key[0].startswith("towpath_backend_")
    }


def test_what_is_not_in_the_kernel_is_left_out() -> None:
    """A service that could not be put into force has no counters."""
    assert {dict(labels).get("service") for _, labels in scraped(places=PLACES[1:])} == {
        None,
        "web",
    }


def test_labels_follow_what_changes() -> None:
    """A new name, a backend less, a service less: from one scrape to the next."""
    metrics = DatapathMetrics()
    before = scraped(metrics)
    renamed = replace(WEB, name="shop")
    fewer = replace(PLACES[1], handles=PLACES[1].handles[:1])
    after = scraped(metrics, (renamed, MAIL), (PLACES[0], fewer), ())
    assert before != after
    assert after == scraped(None, (renamed, MAIL), (PLACES[0], fewer), ())
    assert scraped(metrics, (MAIL,), PLACES[:1], ()) == scraped(None, (MAIL,), PLACES[:1], ())
    assert scraped(metrics) == before


@pytest.mark.parametrize("state", State)
def test_whether_a_backend_gets_flows(state: State) -> None:
    """One number to alert on."""
    checks = Checks([record(state)], 0)
    made = DatapathMetrics().render((WEB,), Readings(PLACES, totals()), FLOWS, checks)
    found = text(made)
    (line,) = [each for each in found.splitlines() if each.startswith("towpath_backend_health{")]
    assert line.rpartition(" ")[2] == ("1.0" if state in {"unknown", "up", "failing"} else "0.0")
