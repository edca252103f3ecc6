# SPDX-License-Identifier: Apache-2.0
"""A load balancer that outlives its script, and the next script that takes it over."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

import pytest
from tests.lab.harness_balancer import (
    DEVICE,
    FLOW,
    PINS,
    SECOND,
    SMALL,
    WEB,
    add_second,
    assert_gone,
    device,
    ip,
    programs,
    script,
    state,
)

from towpath import LoadBalancer
from towpath.datapath.errors import CapacityError
from towpath.kernel.bpf import probe
from towpath.kernel.bpf.bpffs import remove_pins
from towpath.kernel.bpf.links import attach_xdp, xdp_program_id
from towpath.kernel.bpf.object import BpfObject
from towpath.kernel.errors import KernelError
from towpath.kernel.net.interfaces import device_index
from towpath.model import Source

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from towpath.documents import Trace
    from towpath.model import ServiceKey

HOLDS = f"""
import signal
from pathlib import Path
from tests.lab.harness_balancer import SMALL, WEB
from towpath import LoadBalancer
balancer = LoadBalancer("{DEVICE}", limits=SMALL, pins=Path("{PINS}"))
balancer.add_service("web", **WEB)
print("ready", flush=True)
signal.pause()
"""


@pytest.fixture(autouse=True)
def _device() -> Iterator[None]:
    with device():
        yield
    remove_pins(PINS)


@pytest.fixture(params=[True, False], ids=["tcx", "filter"])
def _either_tc(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if not request.param:
        monkeypatch.setattr(probe, "tcx", lambda: False)


def pinned(*devices: str) -> LoadBalancer:
    """A load balancer with the pins of all tests here."""
    return LoadBalancer(*(devices or (DEVICE,)), limits=SMALL, pins=PINS)


def unnamed(trace: Trace) -> tuple[Trace, ServiceKey | None]:
    """A trace with what its service is for in place of the name, which the kernel doesn't know."""
    return replace(trace, service=None), trace.service.key if trace.service else None


@pytest.mark.usefixtures("_either_tc")
def test_closing_leaves_it_at_work_and_detaching_takes_it_all() -> None:
    """Also by another object than the one that attached."""
    before = state()
    with pinned() as balancer:
        balancer.add_service("web", **WEB)
        numbers = programs(balancer)
        during = state()
    assert state() == during
    assert xdp_program_id(device_index(DEVICE)) in numbers
    heir = pinned()
    assert heir.trace(FLOW).verdict == "tx"
    assert_gone(numbers)
    numbers_of_heir = programs(heir)
    heir.detach()
    # Forwarding, too, which was on when the second one came.
    assert state() == before
    assert_gone(numbers_of_heir)
    heir.close()


@pytest.mark.usefixtures("_either_tc")
def test_detaching_what_one_has_attached_restores_everything() -> None:
    """Forwarding included."""
    before = state()
    with pinned() as balancer:
        numbers = programs(balancer)
        balancer.detach()
        assert state() == before
    assert state() == before
    assert_gone(numbers)


def test_a_process_that_is_killed_is_taken_over() -> None:
    """Services, backends, chosen slots and counters are as they were; names aren't known."""
    with script(HOLDS) as running:
        number = xdp_program_id(device_index(DEVICE))
        running.kill()
        running.wait()
    assert xdp_program_id(device_index(DEVICE)) == number
    with pinned() as heir:
        (service,) = heir.services()
        assert service.name == "tcp-203.0.113.10-80"
        assert [str(backend.address) for backend in service.backends] == WEB["backends"]
        before = unnamed(heir.trace(FLOW))
        heir.add_service("web", **WEB)
        assert [each.name for each in heir.services()] == ["web"]
        assert unnamed(heir.trace(FLOW)) == before
        assert xdp_program_id(device_index(DEVICE)) != number


def test_what_was_taken_over_can_be_changed_by_the_name_it_got() -> None:
    """Services of both families."""
    with pinned() as first:
        first.add_service("web", **WEB)
        first.add_service("dns", vip="2001:db8:53::1", port=53, protocol="udp", table_size=251)
    with pinned() as heir:
        names = ["tcp-203.0.113.10-80", "udp-2001:db8:53::1-53"]
        assert [service.name for service in heir.services()] == names
        heir.set_backend(names[1], "2001:db8::11")
        heir.remove_service(names[0])
        assert [service.name for service in heir.services()] == names[1:]
        heir.detach()


def test_pins_of_a_living_process_are_refused() -> None:
    """Two that write the same tables would spoil them; the first isn't disturbed."""
    with script(HOLDS) as running:
        before = state()
        number = xdp_program_id(device_index(DEVICE))
        with pytest.raises(KernelError, match=rf"lock {PINS}: .*process {running.pid} has it"):
            pinned()
        assert state() == before
        assert xdp_program_id(device_index(DEVICE)) == number


def test_other_limits_are_taken_over_and_too_small_ones_refused() -> None:
    """The refusal says what to raise, and what was there stays."""
    with pinned() as balancer:
        balancer.add_service("web", **WEB)
        before = unnamed(balancer.trace(FLOW))
    with LoadBalancer(DEVICE, limits=replace(SMALL, services=9, flows=2048), pins=PINS) as heir:
        assert unnamed(heir.trace(FLOW)) == before
        heir.add_service("dns", vip="203.0.113.11", port=53, table_size=251)
    there = state()
    with pytest.raises(CapacityError, match=r"2 needed, 1 at most; raise limits\.services"):
        LoadBalancer(DEVICE, limits=replace(SMALL, services=1), pins=PINS)
    assert state() == there
    with pinned() as heir:
        assert unnamed(heir.trace(FLOW)) == before
        heir.detach()


def test_a_device_that_is_no_longer_named_is_let_go() -> None:
    """And one that is new is attached to."""
    add_second()
    before = state(DEVICE, SECOND)
    with pinned(DEVICE) as balancer:
        balancer.add_service("web", **WEB)
    with pinned(SECOND) as heir:
        assert not xdp_program_id(device_index(DEVICE))
        assert xdp_program_id(device_index(SECOND)) in programs(heir)
        assert [path.name for path in sorted((PINS / "links").iterdir())] == [
            f"tc-{device_index(SECOND)}",
            f"xdp-{device_index(SECOND)}",
        ]
        heir.detach()
    assert state(SECOND) == {name: before[name] for name in state(SECOND)}


@pytest.mark.usefixtures("_either_tc")
def test_a_device_that_was_made_again_is_attached_to_again() -> None:
    """Links of the one that vanished are of no use, and no harm."""
    with pinned() as balancer:
        balancer.add_service("web", **WEB)
    ip(f"link del {DEVICE}")
    add_second()
    ip(f"link set {SECOND} down\nlink set {SECOND} name {DEVICE}\nlink set {DEVICE} up")
    with pinned() as heir:
        assert xdp_program_id(device_index(DEVICE)) in programs(heir)
        assert len(list((PINS / "links").iterdir())) == 2
        assert heir.trace(FLOW).service is not None
        heir.detach()


# ---- Failures --------------------------------------------------------------------------------


@pytest.fixture
def _busy() -> Iterator[None]:
    """Another program is on the second device."""
    add_second()
    with BpfObject.packaged("lab_pass") as other:
        other.load()
        with attach_xdp(other.programs["pass"], device_index(SECOND)):
            yield


@pytest.mark.usefixtures("_busy")
def test_failing_to_attach_leaves_no_pins() -> None:
    """Neither tables nor the link on the first device."""
    before = state(DEVICE, SECOND)
    with pytest.raises(KernelError, match=f"to {SECOND} in native mode"):
        pinned(DEVICE, SECOND)
    assert state(DEVICE, SECOND) == before
    assert not PINS.exists()


@pytest.mark.usefixtures("_busy")
def test_failing_to_take_over_leaves_what_was_there() -> None:
    """The load balancer of before works on, with the settings of before."""
    with pinned() as balancer:
        balancer.add_service("web", **WEB)
        source = balancer.trace(FLOW).outer_source
    before = state(DEVICE, SECOND)
    del before[f"{DEVICE} xdp"]
    with pytest.raises(KernelError, match=f"to {SECOND} in native mode"):
        LoadBalancer(
            DEVICE, SECOND, limits=SMALL, pins=PINS, source=Source(IPv4Address("192.0.2.77"))
        )
    after = state(DEVICE, SECOND)
    assert after.pop(f"{DEVICE} xdp")
    assert after == before
    with pinned() as heir:
        assert heir.trace(FLOW).outer_source == source
        heir.detach()


def test_pins_that_are_not_on_a_bpffs_are_refused(tmp_path: Path) -> None:
    """What was there stays: no file of anybody's is removed."""
    before = state()
    (tmp_path / "mine").write_text("keep")
    with pytest.raises(KernelError, match="is not on a BPF file system"):
        LoadBalancer(DEVICE, limits=SMALL, pins=tmp_path)
    with pytest.raises(KernelError, match="is not on a BPF file system"):
        LoadBalancer(DEVICE, limits=SMALL, pins=tmp_path / "new")
    assert state() == before
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
