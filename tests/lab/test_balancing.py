# SPDX-License-Identifier: Apache-2.0
"""What can be asked of a load balancer means the same in the script's process and of an agent.

Every example runs against a LoadBalancer and against a Client of a real agent, both on a real
device in a namespace of its own, and knows them as `Balancing` only.
"""

from __future__ import annotations

import shutil
import socket
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether
from tests.lab.harness_agent import Agent
from tests.lab.harness_balancer import DEVICE, FLOW, PEER, VIP, WEB, device
from tests.read_pcapng import read

import towpath
from towpath import Backend, BackendState, Capture, Client, Limits, LoadBalancer, Service
from towpath.documents import ServiceName
from towpath.lab.waiting import wait_until
from towpath.model import parse_service

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from towpath import Balancing

BACKENDS = ip_address("192.0.2.11"), ip_address("192.0.2.12")
LIMITS = {
    "services": 8,
    "backends": 32,
    "flows": 1024,
    "clients": 1024,
    "sources": 500,
    "table_slots": 8192,
}
"""Of both: what doesn't fit doesn't fit either of them."""
OTHER = Service("other", VIP + 1, 80, backends=(Backend(BACKENDS[0]),), table_size=251)


@contextmanager
def a_load_balancer(_: Path) -> Iterator[Balancing]:
    """In this process."""
    with LoadBalancer(DEVICE, limits=Limits(**LIMITS)) as balancer:
        yield balancer


@contextmanager
def a_client(directory: Path) -> Iterator[Balancing]:
    """Of an agent that has nothing but what it is told through its API."""
    state = {"directory": str(directory / "state"), "pins": "/sys/fs/bpf/tpbalancing"}
    agent = Agent(
        directory, {"devices": [DEVICE], "limits": LIMITS, "services": [], "state": state}
    )
    agent.start()
    try:
        with Client(agent.socket) as client:
            yield client
    finally:
        agent.kill()
        shutil.rmtree(state["pins"])


@pytest.fixture(scope="module", params=[a_load_balancer, a_client])
def shared(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Balancing]:
    """One for all examples."""
    with device(), request.param(tmp_path_factory.mktemp("agent")) as balancer:
        yield balancer


@pytest.fixture
def balancer(shared: Balancing) -> Balancing:
    """With one service, as every example begins."""
    shared.apply([parse_service({"name": "web", **WEB})], prune=True, force=True)
    return shared


@contextmanager
def unchanged(balancer: Balancing) -> Iterator[None]:
    """Fail if the services differ after the block."""
    before = balancer.services()
    yield
    assert balancer.services() == before


def frame(flow: str) -> bytes:
    """A packet of a connection that goes on."""
    ends = towpath.FlowTuple.parse(flow)
    ports = TCP(sport=ends.source_port, dport=ends.destination_port, flags="A")
    return bytes(Ether() / IP(src=str(ends.source), dst=str(ends.destination)) / ports)


def send(*frames: bytes) -> None:
    """Have frames come in on the load balancer's device."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
        wire.bind((PEER, 0))
        for each in frames:
            wire.send(each)


def flow(number: int) -> str:
    """One of many flows to the service."""
    return f"198.51.100.7:{number} -> {VIP}:80 tcp"


# ---- Services --------------------------------------------------------------------------------


def test_services_by_name(balancer: Balancing) -> None:
    """All, one, and its backends."""
    (web,) = balancer.services()
    assert web == balancer.service("web") == parse_service({"name": "web", **WEB})
    assert balancer.backends("web") == web.backends


def test_a_service_is_added_and_replaced(balancer: Balancing) -> None:
    """From plain values, or as an object; what becomes of it is told alike."""
    made = balancer.add_service(
        "other", vip=str(OTHER.vip), port=80, backends=["192.0.2.11"], table_size=251
    )
    assert made == balancer.service("other") == OTHER
    plan = balancer.put_service(replace(OTHER, backends=(Backend(BACKENDS[0], 2),)))
    (change,) = plan.changes
    assert (change.action, change.service) == ("change", ServiceName.of(OTHER))
    assert change.backends_reweighted == (BACKENDS[0],)
    assert (plan.moved, plan.empty) == (0, False)
    assert balancer.put_service(balancer.service("other")).empty


def test_a_service_is_removed(balancer: Balancing) -> None:
    """With its backends."""
    plan = balancer.remove_service("web")
    (change,) = plan.of("remove")
    assert (change.service.name, change.backends_removed) == ("web", BACKENDS)
    assert (change.moved, plan.moved) == (1, 1)
    assert plan.steps > 0
    assert balancer.services() == ()


def test_apply_adds_and_prunes_on_request(balancer: Balancing) -> None:
    """And plan says so before."""
    web = balancer.service("web")
    planned = balancer.plan([OTHER])
    assert planned == balancer.apply([OTHER])
    assert {each.name for each in balancer.services()} == {"web", "other"}
    planned = balancer.plan([OTHER], prune=True)
    assert balancer.service("web") == web
    assert planned == balancer.apply([OTHER], prune=True)
    assert [each.action for each in planned.changes] == ["remove"]
    assert balancer.services() == (OTHER,)
    assert balancer.plan([OTHER], prune=True).empty


# ---- Backends --------------------------------------------------------------------------------


def test_backends_are_set(balancer: Balancing) -> None:
    """One, in what is given of it, or all."""
    balancer.set_backend("web", BACKENDS[0], 3)
    balancer.set_backend("web", str(BACKENDS[0]), state="draining")
    balancer.set_backend("web", "192.0.2.13")
    assert balancer.backends("web") == (
        Backend(BACKENDS[0], 3, BackendState.DRAINING),
        Backend(BACKENDS[1]),
        Backend(ip_address("192.0.2.13")),
    )
    balancer.set_backends("web", [Backend(BACKENDS[1], 2), {"address": "192.0.2.14", "weight": 5}])
    assert balancer.backends("web") == (
        Backend(BACKENDS[1], 2),
        Backend(ip_address("192.0.2.14"), 5),
    )


def test_a_backend_of_its_own_port(balancer: Balancing) -> None:
    """Is refused where nothing is translated."""
    with unchanged(balancer), pytest.raises(towpath.ConfigError, match="does not change ports"):
        balancer.set_backend("web", BACKENDS[0], port=8080)
    balancer.set_backend("web", BACKENDS[0], port=0)
    assert balancer.service("web").backend(BACKENDS[0]).port is None


@pytest.mark.parametrize("force", [False, True])
def test_a_backend_without_flows_goes(balancer: Balancing, force: bool) -> None:  # noqa: FBT001
    """Soon at the latest, and no service has it any more."""
    plan = balancer.remove_backend("web", "192.0.2.11", force=force)
    (change,) = plan.changes
    assert change.backends_removed == BACKENDS[:1]
    assert change.backends_leaving == (() if force else BACKENDS[:1])
    assert balancer.backends("web") == (Backend(BACKENDS[1]),)
    wait_until(
        lambda: [each.address for each in balancer.backend_status("web")] == [BACKENDS[1]],
        seconds=10,
        what="the backend to go",
    )


def test_a_backend_with_flows_leaves(balancer: Balancing) -> None:
    """It keeps them and gets no others until it is removed by force."""
    numbers = range(20000, 20032)
    send(*(frame(flow(number)) for number in numbers))
    wait_until(
        lambda: sum(each.flows for each in balancer.backend_status("web")) == len(numbers),
        seconds=10,
        what="the flows",
    )
    before = {each.address: each.flows for each in balancer.backend_status("web")}
    assert min(before.values()) > 0
    plan = balancer.remove_backend("web", BACKENDS[0])
    assert plan.changes[0].backends_leaving == BACKENDS[:1]
    assert balancer.backends("web") == (Backend(BACKENDS[1]),)
    found = {each.address: each for each in balancer.backend_status("web")}
    assert {address: each.flows for address, each in found.items()} == before
    assert [each.leaving for each in found.values()].count(True) == 1
    assert found[BACKENDS[0]].leaving
    assert found[BACKENDS[0]].since
    assert found[BACKENDS[0]].until
    held = [number for number in numbers if balancer.trace(flow(number)).backend == BACKENDS[0]]
    assert len(held) == before[BACKENDS[0]]
    assert {balancer.trace(flow(number)).backend for number in range(30000, 30020)} == {BACKENDS[1]}
    balancer.remove_backend("web", BACKENDS[0], force=True)
    assert [each.address for each in balancer.backend_status("web")] == [BACKENDS[1]]
    assert {balancer.trace(flow(number)).backend for number in held} == {BACKENDS[1]}


def test_a_backend_that_is_leaving_comes_back(balancer: Balancing) -> None:
    """As one that was never away."""
    numbers = range(21000, 21032)
    send(*(frame(flow(number)) for number in numbers))
    wait_until(lambda: balancer.count_flows(service="web").total >= 32, seconds=10, what="flows")
    balancer.remove_backend("web", BACKENDS[0])
    plan = balancer.set_backend("web", BACKENDS[0])
    assert plan.changes[0].backends_added == BACKENDS[:1]
    assert set(balancer.backends("web")) == {Backend(address) for address in BACKENDS}
    assert not any(each.leaving for each in balancer.backend_status("web"))


# ---- What undoes itself ----------------------------------------------------------------------


def test_temporary_services(balancer: Balancing) -> None:
    """Others that are added meanwhile stay."""
    before = balancer.service("web")
    with balancer.temporary(OTHER, replace(before, table_size=257)) as plan:
        assert [each.action for each in plan.changes] == ["change", "add"]
        balancer.put_service(replace(OTHER, name="more", vip=VIP + 2))
    assert {each.name for each in balancer.services()} == {"web", "more"}
    assert balancer.service("web") == before


def test_a_drained_backend(balancer: Balancing) -> None:
    """Its state is as before, unless it was changed in the block."""
    with balancer.drained("web", "192.0.2.11") as plan:
        assert plan.changes[0].backends_restated == BACKENDS[:1]
        assert balancer.service("web").backend("192.0.2.11").state is BackendState.DRAINING
    assert balancer.service("web").backend("192.0.2.11").state is BackendState.ACTIVE
    with balancer.drained("web", "192.0.2.11"):
        balancer.set_backend("web", "192.0.2.11", state="quarantined")
    assert balancer.service("web").backend("192.0.2.11").state is BackendState.QUARANTINED
    with balancer.drained("web", "192.0.2.12"):
        balancer.remove_backend("web", "192.0.2.12", force=True)
    assert [each.address for each in balancer.backends("web")] == [BACKENDS[0]]


# ---- What happens ----------------------------------------------------------------------------


def test_counters(balancer: Balancing) -> None:
    """Of all, of a service, of a backend, by CPU."""
    balancer.put_service(replace(OTHER, name="counted", vip=VIP + 9))
    one = f"198.51.100.7:5 -> {VIP + 9}:80 tcp"
    send(*[frame(one)] * 3)
    wait_until(
        lambda: balancer.service_counters("counted").packets == 3, seconds=10, what="packets"
    )
    every = balancer.counters(per_cpu=True)
    counted = every.service("counted")
    assert counted == every.service(counted.service.key) == balancer.service_counters("counted")
    assert (counted.packets, counted.flows, counted.active, counted.drops) == (3, 1, 1, 0)
    assert counted.backend("192.0.2.11").packets == 3
    assert counted.backend("192.0.2.11").active == 1
    assert every.service("web").cpus == ()
    assert sum(every.verdicts.values()) == sum(sum(each.verdicts.values()) for each in every.cpus)
    by_cpu = balancer.service_counters("counted", per_cpu=True).cpus
    assert len(by_cpu) == len(every.cpus)
    assert sum(each.packets for each in by_cpu) == 3
    assert balancer.counters().cpus == ()


def test_flows(balancer: Balancing) -> None:
    """Listed and counted, by what is asked for."""
    balancer.put_service(replace(OTHER, name="seen", vip=VIP + 8))
    send(*(frame(f"198.51.100.{n}:7 -> {VIP + 8}:80 tcp") for n in range(1, 6)))
    wait_until(lambda: balancer.count_flows(service="seen").total == 5, seconds=10, what="flows")
    found = list(balancer.flows(service="seen"))
    assert {str(each.client) for each in found} == {f"198.51.100.{n}" for n in range(1, 6)}
    assert {(each.service, each.client_port, each.backend) for each in found} == {
        ("seen", 7, BACKENDS[0])
    }
    assert len(list(balancer.flows(service="seen", limit=2))) == 2
    (one,) = balancer.flows(vip=str(VIP + 8), client="198.51.100.4/31", max_idle=60, limit=1)
    assert str(one.client) in {"198.51.100.4", "198.51.100.5"}
    (counted,) = balancer.count_flows(service="seen", backend="192.0.2.11").backends
    assert (counted.service, counted.backend, counted.flows) == ("seen", BACKENDS[0], 5)
    assert balancer.count_flows(vip=VIP + 7).total == 0
    assert balancer.count_flows(translated="192.0.2.1:10533").total == 0


def test_trace(balancer: Balancing) -> None:
    """Each decision, by the service's name."""
    traced = balancer.trace(FLOW)
    assert (traced.flow, traced.device) == (FLOW, DEVICE)
    assert traced.service == ServiceName.of(balancer.service("web"))
    assert traced.backend in BACKENDS
    assert (traced.forwarding, traced.encapsulation, traced.verdict) == ("dsr", "ipip", "tx")
    assert traced == balancer.trace(towpath.FlowTuple.parse(FLOW), device=DEVICE)
    assert balancer.trace(f"{FLOW} size 1500").verdict == "tx_too_big"
    nobody = balancer.trace(f"198.51.100.7:1 -> {VIP + 99}:80")
    assert (nobody.verdict, nobody.service, nobody.backend) == ("pass_no_vip", None, None)


def test_a_capture_that_ends_by_itself(balancer: Balancing, tmp_path: Path) -> None:
    """Saved as a file."""
    with balancer.record(Capture(packets=2)) as capture:
        send(frame(flow(1)), frame(flow(2)), frame(flow(3)))
        size = capture.save(tmp_path / "capture.pcapng")
    assert size == (tmp_path / "capture.pcapng").stat().st_size
    section = read((tmp_path / "capture.pcapng").read_bytes())
    assert len({packet.packet_id for packet in section.packets}) == 2


def test_a_capture_that_is_stopped(balancer: Balancing) -> None:
    """Its pieces come until it is, and are whole blocks of pcapng."""
    with balancer.record({"services": ["web"], "direction": "in"}) as capture:
        pieces = iter(capture)
        first = next(pieces)
        capture.stop()
        assert (first + b"".join(pieces))[:4] == b"\n\r\r\n"


# ---- Errors ----------------------------------------------------------------------------------

MISSING: list[Callable[[Balancing], object]] = [
    lambda b: b.service("dns"),
    lambda b: b.remove_service("dns"),
    lambda b: b.backends("dns"),
    lambda b: b.set_backends("dns", []),
    lambda b: b.set_backend("dns", "192.0.2.11"),
    lambda b: b.remove_backend("dns", "192.0.2.11"),
    lambda b: b.remove_backend("web", "192.0.2.99"),
    lambda b: b.remove_backend("web", "192.0.2.99", force=True),
    lambda b: b.drained("web", "192.0.2.99").__enter__(),
    lambda b: b.backend_status("dns"),
    lambda b: b.service_counters("dns"),
    lambda b: b.count_flows(service="dns"),
    lambda b: list(b.flows(service="dns")),
]


@pytest.mark.parametrize("asking", MISSING)
def test_what_is_not_there(balancer: Balancing, asking: Callable[[Balancing], object]) -> None:
    """It is told as a sentence, with what there is."""
    with unchanged(balancer), pytest.raises(towpath.NotFoundError) as caught:
        asking(balancer)
    assert isinstance(caught.value, KeyError)
    assert isinstance(caught.value, towpath.Error)
    assert "'dns'; there are: web" in str(caught.value) or "192.0.2.99; it has: 192.0.2.11, 1" in (
        str(caught.value)
    )
    assert str(caught.value)[0] not in "'\""


WRONG: list[Callable[[Balancing], object]] = [
    lambda b: b.add_service("web", vip="203.0.113.999", port=80),
    lambda b: b.add_service("web", **WEB, colour="red"),  # type: ignore[call-arg]
    lambda b: b.put_service(replace(b.service("web"), port=70000)),
    lambda b: b.apply([replace(b.service("web"), name="not a name")]),
    lambda b: b.apply([b.service("web")] * 2),
    lambda b: b.plan([b.service("web")] * 2),
    lambda b: b.set_backends("web", ["192.0.2.11", "nonsense"]),
    lambda b: b.set_backend("web", "nonsense"),
    lambda b: b.set_backend("web", "192.0.2.11", 65536),
    lambda b: b.set_backend("web", "192.0.2.11", state="ill"),
    lambda b: b.remove_backend("web", "nonsense"),
    lambda b: b.drained("web", "nonsense").__enter__(),
    lambda b: b.trace("nonsense"),
    lambda b: b.trace(f"[2001:db8::1]:1 -> {VIP}:80"),
    lambda b: b.count_flows(client="nonsense"),
    lambda b: b.count_flows(max_idle=-1),
    lambda b: list(b.flows(translated="nonsense")),
    lambda b: b.record({"snaplen": 0}),
]


@pytest.mark.parametrize("asking", WRONG)
def test_what_is_not_allowed(balancer: Balancing, asking: Callable[[Balancing], object]) -> None:
    """Field and reason are told."""
    with unchanged(balancer), pytest.raises(towpath.ConfigError) as caught:
        asking(balancer)
    assert isinstance(caught.value, ValueError)
    assert caught.value.problems
    assert all(each.field for each in caught.value.problems)


def many(number: int) -> list[Service]:
    """More than there is room for."""
    return [replace(OTHER, name=f"s{n}", vip=VIP + 20 + n) for n in range(number)]


CONTRADICTING: list[tuple[Callable[[Balancing], object], str]] = [
    (lambda b: b.add_service("web2", **WEB), "of service 'web2' .* service 'web'"),
    (lambda b: b.apply(many(9)), "services: .* needed, 8 at most"),
    (lambda b: b.apply(many(9), prune=True), "services: 9 needed, 8 at most"),
    (lambda b: b.trace(FLOW, device="lo"), f"not on device lo; on: {DEVICE}"),
    (lambda b: b.record({"services": ["dns"]}), "dns"),
]


@pytest.mark.parametrize(("asking", "message"), CONTRADICTING)
def test_what_contradicts_or_does_not_fit(
    balancer: Balancing, asking: Callable[[Balancing], object], message: str
) -> None:
    """Nothing is changed then."""
    with unchanged(balancer), pytest.raises(towpath.ConflictError, match=message):
        asking(balancer)


def test_nothing_of_a_group_is_kept_that_fails(balancer: Balancing) -> None:
    """A temporary service that is refused takes the others along."""
    twin: Any = replace(balancer.service("web"), name="twin")
    with (
        unchanged(balancer),
        pytest.raises(towpath.ConflictError),
        balancer.temporary(OTHER, twin),
    ):
        pytest.fail("the block was entered")
