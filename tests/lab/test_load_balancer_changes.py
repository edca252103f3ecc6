# SPDX-License-Identifier: Apache-2.0
"""What can be asked of a load balancer: done, or refused and nothing changed; and undone."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING, Any

import pytest
from tests.lab.harness_balancer import DEVICE, FLOW, VIP, WEB, device, state, unchanged

from towpath import LoadBalancer
from towpath.datapath.errors import DatapathError
from towpath.errors import ConflictError, NotFoundError
from towpath.model import (
    Backend,
    BackendState,
    ConfigError,
    Device,
    Limits,
    Service,
    Source,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

OTHER_VIP = IPv4Address("203.0.113.11")


@pytest.fixture(scope="module", autouse=True)
def _device() -> Iterator[None]:
    with device():
        yield


@pytest.fixture(scope="module")
def shared() -> Iterator[LoadBalancer]:
    """One for all tests here, without limits that they could meet."""
    limits = Limits(services=64, backends=256, flows=1024, table_slots=100_000)
    with LoadBalancer(DEVICE, limits=limits) as balancer:
        yield balancer


@pytest.fixture
def balancer(shared: LoadBalancer) -> LoadBalancer:
    """With one service, as every test begins."""
    shared.apply([], prune=True)
    shared.add_service("web", **WEB)
    return shared


# ---- Values that aren't allowed --------------------------------------------------------------

WRONG_SERVICES: list[tuple[dict[str, Any], str]] = [
    ({"vip": "203.0.113.999"}, "vip: .* is not an address"),
    ({"vip": "224.0.0.1"}, "vip: .* multicast"),
    ({"port": 0}, "port: 0 is out of range; allowed: 1 to 65535"),
    ({"port": "http"}, "port: 'http' is neither a port nor a range"),
    ({"protocol": "sctp"}, "protocol: "),
    ({"table_size": 252}, "table_size: "),
    ({"backends": ["192.0.2.11", "192.0.2.11"]}, r"backends\[1\].* is listed twice"),
    ({"backends": [{"address": "192.0.2.11", "weight": -1}]}, r"backends\[0\]\.weight: "),
    ({"vip": "2001:db8::10"}, "is IPv4 but the vip 2001:db8::10 is IPv6"),
    ({"backends": "192.0.2.11"}, "backends: .* is not a list"),
    ({"colour": "red"}, "colour: unknown key"),
    ({"backends": [f"10.0.{i // 256}.{i % 256}" for i in range(1, 260)]}, "too few for 259"),
]


@pytest.mark.parametrize(("fields", "message"), WRONG_SERVICES)
def test_a_wrong_service_is_refused(
    balancer: LoadBalancer, fields: dict[str, Any], message: str
) -> None:
    """Field and what is allowed are told."""
    with unchanged(balancer), pytest.raises(ConfigError, match=message):
        balancer.add_service("web", **(WEB | fields))


def test_a_service_of_another_name_does_not_get_a_vip_that_is_taken(
    balancer: LoadBalancer,
) -> None:
    """A name that stands there already is replaced, a VIP isn't."""
    with unchanged(balancer), pytest.raises(ConflictError, match="is taken by"):
        balancer.add_service("web2", **WEB)
    balancer.add_service("web", **(WEB | {"port": 81}))
    assert [service.port for service in balancer.services()] == [81]


def test_a_health_check_is_refused(balancer: LoadBalancer) -> None:
    """Nobody would carry it out."""
    before = balancer.services()
    with pytest.raises(ConfigError, match="health: service web has a check, which only towpath"):
        balancer.add_service("web", **WEB, health="tcp")
    assert balancer.services() == before


def test_wrong_backends_are_refused(balancer: LoadBalancer) -> None:
    """By each of the ways to give them."""
    wrong: list[Callable[[], object]] = [
        lambda: balancer.set_backends("web", ["192.0.2.11", "nonsense"]),
        lambda: balancer.set_backend("web", "nonsense"),
        lambda: balancer.set_backend("web", "192.0.2.11", 65536),
        lambda: balancer.put_service(replace(balancer.service("web"), port=70000)),
        lambda: balancer.apply([replace(balancer.service("web"), name="not a name")]),
        lambda: balancer.plan([balancer.service("web")] * 2),
    ]
    for refused in wrong:
        with unchanged(balancer), pytest.raises(ConfigError, match="allowed"):
            refused()


def test_what_is_not_there_is_not_found(balancer: LoadBalancer) -> None:
    """That says what there is."""
    missing: list[Callable[[], object]] = [
        lambda: balancer.service("dns"),
        lambda: balancer.remove_service("dns"),
        lambda: balancer.set_backends("dns", []),
        lambda: balancer.remove_backend("web", "192.0.2.99"),
        lambda: balancer.drained("web", "192.0.2.99").__enter__(),
    ]
    for refused in missing:
        with (
            unchanged(balancer),
            pytest.raises(NotFoundError, match=r"no service 'dns'|192\.0\.2\.99"),
        ):
            refused()


def test_a_wrong_flow_or_device_is_told(balancer: LoadBalancer) -> None:
    """Before anything is run."""
    with pytest.raises(ValueError, match="one family"):
        balancer.trace(f"[2001:db8::1]:1 -> {VIP}:80")
    with pytest.raises(DatapathError, match=f"not on device lo; on: {DEVICE}"):
        balancer.trace(FLOW, device="lo")


@pytest.mark.parametrize(
    ("devices", "options", "message"),
    [
        ([], {}, "devices: is empty; allowed: one device or more"),
        ([DEVICE, DEVICE], {}, rf"devices\[1\]: {DEVICE} is listed twice"),
        (["a/b"], {}, r"devices\[0\]\.name: 'a/b' can't be a device's name"),
        ([Device(DEVICE, "fast")], {}, r"devices\[0\]\.mode: "),  # type: ignore[arg-type]
        ([DEVICE], {"limits": Limits(services=0)}, r"limits\.services: 0 is out of range"),
        ([DEVICE], {"source": Source(IPv6Address("::1"))}, r"source\.ipv4: "),  # type: ignore[arg-type]
    ],
)
def test_a_wrong_beginning_is_refused(
    devices: list[str | Device], options: dict[str, Any], message: str
) -> None:
    """Before anything is loaded."""
    before = state()
    with pytest.raises(ConfigError, match=message):
        LoadBalancer(*devices, **options)
    assert state() == before


def test_text_means_what_it_means_in_a_file(balancer: LoadBalancer) -> None:
    """An address may be written in any way."""
    balancer.add_service("v6", vip="2001:db8::10", port=80, backends=["2001:DB8:0::11"])
    balancer.set_backend("v6", "2001:0db8::0011", 7)
    assert balancer.service("v6").backends == (Backend(IPv6Address("2001:db8::11"), 7),)
    with balancer.drained("v6", "2001:db8:0:0::11"):
        assert balancer.service("v6").backends[0].state is BackendState.DRAINING
    assert balancer.service("v6").backends[0].state is BackendState.ACTIVE
    assert [each.flows for each in balancer.backend_status("v6")] == [0]
    balancer.remove_backend("v6", "2001:DB8::11")
    assert balancer.service("v6").backends == ()


# ---- What undoes itself ----------------------------------------------------------------------


class SurpriseError(Exception):
    """Something that goes wrong in a block."""


def test_temporary_services_go_with_the_block(balancer: LoadBalancer) -> None:
    """By an exception too; what else was changed in the block stays."""
    mine = Service("mine", OTHER_VIP, 80, table_size=251)
    web = replace(balancer.service("web"), port=8080)
    before = balancer.service("web")
    for how in (None, SurpriseError):
        try:
            with balancer.temporary(mine, web) as plan:
                assert [each.action for each in plan.changes] == ["change", "add"]
                assert {service.port for service in balancer.services()} >= {80, 8080}
                balancer.add_service("other", vip="203.0.113.12", port=80, table_size=251)
                if how:
                    raise how
        except SurpriseError:
            pass
        assert {service.name for service in balancer.services()} == {"web", "other"}
        assert balancer.service("web") == before


def test_a_temporary_service_that_is_refused_changes_nothing(balancer: LoadBalancer) -> None:
    """Nor do those that came with it."""
    mine = Service("mine", OTHER_VIP, 80, table_size=251)
    twin = replace(balancer.service("web"), name="twin")
    with unchanged(balancer), pytest.raises(ConflictError), balancer.temporary(mine, twin):
        pytest.fail("the block was entered")


def test_a_drained_backend_is_as_it_was_after_an_exception(
    balancer: LoadBalancer,
) -> None:
    """Its weight was never touched."""
    balancer.set_backend("web", "192.0.2.11", 9)

    def fail() -> None:
        with balancer.drained("web", "192.0.2.11"):
            drained = Backend(ip_address("192.0.2.11"), 9, BackendState.DRAINING)
            assert drained in balancer.service("web").backends
            raise SurpriseError

    with pytest.raises(SurpriseError):
        fail()
    assert Backend(ip_address("192.0.2.11"), 9) in balancer.service("web").backends


def test_a_drained_backend_that_is_removed_stays_away(balancer: LoadBalancer) -> None:
    """Draining is how one removes a backend; so do other changes of it last."""
    with balancer.drained("web", "192.0.2.11"):
        balancer.remove_backend("web", "192.0.2.11")
    assert balancer.service("web").backends == (Backend(ip_address("192.0.2.12")),)
    with balancer.drained("web", "192.0.2.12"):
        balancer.set_backend("web", "192.0.2.12", 3)
    assert balancer.service("web").backends == (Backend(ip_address("192.0.2.12"), 3),)
    with balancer.drained("web", "192.0.2.12"):
        balancer.remove_service("web")
    assert balancer.services() == ()
