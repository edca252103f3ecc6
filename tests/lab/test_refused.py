# SPDX-License-Identifier: Apache-2.0
"""What the kernel refuses of what XDP has sent is counted, and found before where that can be."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from tests.lab import harness_egress as egress
from tests.lab.harness_egress import (
    BACKEND,
    NEAR_BACKEND,
    SMALL,
    received,
    taking,
    wire,
)
from tests.lab.harness_handoff import (
    BALANCER,
    CARRIED,
    NEAR,
    PORT,
    VIPS,
    WIRE,
    client,
    frame,
    until,
)

from towpath.datapath.balancer import Balancer
from towpath.datapath.program import egress as ways
from towpath.datapath.program.egress import AnyFrameEgress, Egress
from towpath.datapath.program.trial import Trial
from towpath.documents import Refused
from towpath.kernel.net.interfaces import device_index
from towpath.kernel.net.netns import in_netns
from towpath.kernel.net.xdp_features import all_xdp_features
from towpath.model import Backend, Device, Protocol, Service

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from tests.lab.harness_egress import Address, Peer

SENT = 40


def balancing(
    backend: Address, *devices: str, how: type[Egress] = Egress
) -> AbstractContextManager[Balancer]:
    """The load balancer with one service; to be entered in its namespace."""
    wishes = [Device(name, "native") for name in (NEAR, *devices)]
    balancer = Balancer(wishes, limits=SMALL, egress=how)
    balancer.apply(
        [Service("web", VIPS[4], PORT, Protocol.UDP, (Backend(backend),), table_size=251)]
    )
    return balancer


def send(balancer: Balancer, verdict: str, times: int = SENT) -> None:
    """Send packets, and wait until they are counted."""
    before = balancer.counters().verdicts[verdict]
    with client() as sender:
        for number in range(times):
            sender.send(frame(4, 2000 + number))
    until(lambda: balancer.counters().verdicts[verdict] - before == times, verdict)


@pytest.fixture
def network() -> Iterator[None]:
    """The clients' wire, whose far end takes frames."""
    with wire(), in_netns(BALANCER):
        yield


@pytest.mark.usefixtures("network")
def test_frames_that_cannot_be_queued() -> None:
    """By device and error; nothing else is counted among them."""
    with egress.bridge(), balancing(BACKEND[4], how=AnyFrameEgress) as balancer:
        assert balancer.counters().refused == ()
        send(balancer, "redirect")
        assert balancer.counters().refused == (Refused(egress.OUT, "EOPNOTSUPP", SENT),)
        assert balancer.counters(0).refused is None


@pytest.mark.usefixtures("network")
def test_frames_that_the_driver_does_not_take() -> None:
    """They were queued, in bulk, before it says so."""
    with egress.tap(), balancing(BACKEND[4], how=AnyFrameEgress) as balancer:
        # Nobody reads what comes out of the tap: its queue has room for as many as `tx_queue_len`.
        send(balancer, "redirect", 1500)
        until(lambda: bool(balancer.counters().refused), "the first that is refused")
        (refused,) = balancer.counters().refused or ()
        assert (refused.device, refused.error) == (egress.OUT, "queue full")
        assert 0 < refused.packets <= 1500


@pytest.mark.usefixtures("network")
def test_what_changes_is_found_by_the_next_look(caplog: pytest.LogCaptureFixture) -> None:
    """From then on the kernel sends, and the warning is given once."""
    with egress.veth("nothing"), balancing(BACKEND[4]) as balancer:
        with taking(egress.BACKENDS, WIRE, "program"):
            balancer.refresh_devices()
            send(balancer, "redirect")
            assert balancer.counters().refused == ()
        send(balancer, "redirect")
        (refused,) = balancer.counters().refused or ()
        assert (refused.device, refused.packets) == (egress.OUT, SENT)
        for _ in range(3):
            balancer.refresh_devices()
        assert sum("refuses packets" in each.message for each in caplog.records) == 1
        with received(egress.BACKENDS, WIRE) as read:
            send(balancer, "handoff")
            for _ in range(SENT):
                read(CARRIED[4])
        assert balancer.counters().refused == (refused,)


@pytest.mark.usefixtures("network")
def test_counts_go_on_with_the_tables(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Which outlive the process."""
    del tmp_path_factory
    pins = egress.PINS
    service = Service("web", VIPS[4], PORT, Protocol.UDP, (Backend(BACKEND[4]),), table_size=251)
    with egress.bridge():
        for turn in (1, 2):
            device = Device(NEAR, "native")
            balancer = Balancer([device], limits=SMALL, pins=pins, egress=AnyFrameEgress)
            balancer.apply([service])
            send(balancer, "redirect")
            assert balancer.counters().refused == (Refused(egress.OUT, "EOPNOTSUPP", turn * SENT),)
            if turn == 1:
                balancer.close()
        balancer.detach()


# ---- Kernels that don't tell what drivers can ----------------------------------------------------


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """As before 6.3: devices are tried."""
    if all_xdp_features() is not None:
        monkeypatch.setattr(ways, "all_xdp_features", lambda: None)


@pytest.mark.usefixtures("network", "silent")
@pytest.mark.parametrize("peer", ["nothing", "program"])
def test_balanced_devices_are_tried(peer: Peer) -> None:
    """What their drivers take leaves by XDP, the rest by the kernel; a trial is no packet."""
    verdict = {"nothing": "handoff", "program": "redirect"}[peer]
    with egress.veth(peer), balancing(BACKEND[4], egress.OUT) as balancer:
        with received(egress.BACKENDS, WIRE) as read:
            send(balancer, verdict)
            for _ in range(SENT):
                read(CARRIED[4])
        assert balancer.counters().refused == ()
        assert sum(each.packets for each in balancer.counters().services) == SENT


@pytest.mark.usefixtures("network", "silent")
def test_a_device_that_refuses_is_tried_again_but_not_all_the_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After a minute at the earliest: a trial makes a device."""
    tried: list[int] = []
    takes_frames = Trial.takes_frames

    def noted(self: Trial, index: int) -> bool:
        tried.append(index)
        return takes_frames(self, index)

    monkeypatch.setattr(Trial, "takes_frames", noted)
    with egress.veth("nothing"), balancing(BACKEND[4], egress.OUT) as balancer:
        index = device_index(egress.OUT)
        with taking(egress.BACKENDS, WIRE, "program"):
            balancer.refresh_devices()
            send(balancer, "redirect")
        tried.clear()
        send(balancer, "redirect")
        (refused,) = balancer.counters().refused or ()
        assert (refused.device, refused.packets) == (egress.OUT, SENT)
        for _ in range(2):
            balancer.follow()
        assert tried == []
        later = time.monotonic() + ways._AGAIN_SECONDS
        monkeypatch.setattr(ways, "time", SimpleNamespace(monotonic=lambda: later))
        send(balancer, "redirect")
        for _ in range(2):
            balancer.follow()
        assert tried == [index]
        send(balancer, "handoff")


@pytest.mark.usefixtures("silent")
@pytest.mark.parametrize("peer", ["nothing", "program"])
def test_a_veth_is_tried_for_what_goes_back(peer: Peer) -> None:
    """By the same trial: a redirect to itself."""
    verdict = {"nothing": "handoff", "program": "tx"}[peer]
    with wire(peer), in_netns(BALANCER), balancing(NEAR_BACKEND[4]) as balancer:
        with received(NEAR, WIRE) as read:
            send(balancer, verdict)
            for _ in range(SENT):
                read(CARRIED[4])
        balancer.refresh_devices()
        send(balancer, verdict)


@pytest.mark.usefixtures("network", "silent")
def test_other_devices_are_left_to_the_kernel() -> None:
    """Nobody knows what they would take."""
    with egress.veth("program"), balancing(BACKEND[4]) as balancer:
        send(balancer, "handoff")


@pytest.mark.usefixtures("network", "silent")
def test_without_a_way_to_try_the_kernel_sends(monkeypatch: pytest.MonkeyPatch) -> None:
    """In doubt, always."""
    monkeypatch.setattr("towpath.datapath.program.trial._TUN", "/nonexistent")
    with egress.veth("program"), balancing(BACKEND[4], egress.OUT) as balancer:
        send(balancer, "handoff")
