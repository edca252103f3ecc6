# SPDX-License-Identifier: Apache-2.0
"""A load balancer comes whole or not at all, and goes without a trace, however it goes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.lab.harness_balancer import (
    DEVICE,
    FLOW,
    SECOND,
    SMALL,
    WEB,
    add_second,
    assert_gone,
    device,
    ip,
    programs,
    state,
)

from towpath import LoadBalancer
from towpath.kernel.bpf import probe
from towpath.kernel.bpf.links import attach_xdp, xdp_mode, xdp_program_id
from towpath.kernel.bpf.object import BpfObject
from towpath.kernel.errors import KernelError
from towpath.kernel.net import clsact
from towpath.kernel.net.interfaces import device_index, set_forwarding
from towpath.model import Device

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def _device() -> Iterator[None]:
    with device():
        yield


def test_close_leaves_nothing() -> None:
    """No program, no setting, no pin; twice is once."""
    before = state()
    balancer = LoadBalancer(DEVICE, limits=SMALL)
    balancer.add_service("web", **WEB)
    assert xdp_mode(device_index(DEVICE)) == "native"
    assert (state()[f"{DEVICE} ipv4 forwarding"], state()[f"{DEVICE} ipv6 forwarding"]) == (
        "1",
        "0",
    )
    numbers = programs(balancer)
    assert len(numbers) == 3  # in XDP, for the hand-off and for health checks
    balancer.close()
    assert state() == before
    assert_gone(numbers)
    balancer.close()


def test_an_exception_in_the_block_leaves_nothing() -> None:
    """It gets through, too."""
    before = state()
    balancer = LoadBalancer(DEVICE, limits=SMALL)
    numbers = programs(balancer)
    with pytest.raises(ValueError, match="is not a flow"), balancer:
        balancer.trace("ipp")
    assert state() == before
    assert_gone(numbers)


def test_forwarding_that_was_on_stays_on() -> None:
    """Only what was switched is switched back."""
    set_forwarding(DEVICE, "ipv4", on=True)
    before = state()
    with LoadBalancer(DEVICE, limits=SMALL):
        pass
    assert state() == before
    assert before[f"{DEVICE} ipv4 forwarding"] != before[f"{DEVICE} ipv6 forwarding"]


def test_a_kernel_without_tcx_is_left_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """The classic filter that it gets instead outlives processes, so closing removes it."""
    monkeypatch.setattr(probe, "tcx", lambda: False)
    before = state()
    with LoadBalancer(DEVICE, limits=SMALL) as balancer:
        numbers = programs(balancer)
        assert clsact.attached_id(device_index(DEVICE)) in numbers
    assert state() == before
    assert_gone(numbers)


def test_generic_mode_is_asked_for_by_device() -> None:
    """A Device may stand in for its name."""
    with LoadBalancer(Device(DEVICE, "generic"), limits=SMALL) as balancer:
        balancer.add_service("web", **WEB)
        assert xdp_mode(device_index(DEVICE)) == "generic"
        assert balancer.trace(FLOW).verdict == "tx"


# ---- What can't be attached to ---------------------------------------------------------------


def test_a_device_that_is_not_there_is_told_with_those_that_are() -> None:
    """And nothing is loaded for the one that is."""
    before = state()
    with pytest.raises(KernelError, match=rf"no such device: tpno: there are: .*{DEVICE}"):
        LoadBalancer(DEVICE, "tpno", limits=SMALL)
    assert state() == before


def test_a_second_load_balancer_is_refused_and_the_first_works_on() -> None:
    """The message says which program is in the way, where and how."""
    with LoadBalancer(DEVICE, limits=SMALL) as first:
        first.add_service("web", **WEB)
        before = state()
        number = xdp_program_id(device_index(DEVICE))
        message = (
            rf"towpath_lb to {DEVICE} in native mode: .*program {number} is attached in native"
        )
        with pytest.raises(KernelError, match=message):
            LoadBalancer(DEVICE, limits=SMALL)
        assert state() == before
        assert first.trace(FLOW).verdict == "tx"


def test_a_second_device_that_refuses_takes_the_first_back() -> None:
    """All of the devices or none."""
    add_second()
    with BpfObject.packaged("lab_pass") as other:
        other.load()
        with attach_xdp(other.programs["pass"], device_index(SECOND)):
            before = state(DEVICE, SECOND)
            with pytest.raises(KernelError, match=f"to {SECOND} in native mode: .*busy"):
                LoadBalancer(DEVICE, SECOND, limits=SMALL)
            assert state(DEVICE, SECOND) == before


# ---- Devices that go -------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["close", "detach"])
def test_a_device_that_vanishes_is_no_trouble(end: str) -> None:
    """What can still be asked is answered, and the end is an end."""
    balancer = LoadBalancer(DEVICE, limits=SMALL)
    balancer.add_service("web", **WEB)
    numbers = programs(balancer)
    ip(f"link del {DEVICE}")
    assert [service.name for service in balancer.services()] == ["web"]
    balancer.set_backends("web", ["192.0.2.12"])
    assert balancer.counters().verdicts["tx"] == 0
    getattr(balancer, end)()
    assert_gone(numbers)


def test_the_other_device_is_restored_when_one_vanishes() -> None:
    """Every step of closing is taken, whatever became of those before."""
    add_second()
    before = state(DEVICE)
    with LoadBalancer(DEVICE, SECOND, limits=SMALL) as balancer:
        balancer.add_service("web", **WEB)
        ip(f"link del {SECOND}")
        assert balancer.trace(FLOW, device=DEVICE).verdict == "tx"
    assert state(DEVICE) == before


def test_several_devices_share_services() -> None:
    """One set of tables; a trace says which device it is about."""
    add_second()
    with LoadBalancer(DEVICE, SECOND, limits=SMALL) as balancer:
        balancer.add_service("web", **WEB)
        assert balancer.trace(FLOW, device=DEVICE).verdict == "tx"
        there = balancer.trace(FLOW, device=SECOND)
        assert (there.verdict, there.device, there.egress) == ("redirect", SECOND, DEVICE)
