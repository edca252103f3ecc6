# SPDX-License-Identifier: Apache-2.0
"""Decap's device goes, comes back, and gets other names and programs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.lab.harness_files import no_more_files
from tests.prog.decap.wire import ip

from towpath.datapath.decap.decap import Decap
from towpath.kernel.bpf import links
from towpath.kernel.bpf.bpffs import remove_pins
from towpath.kernel.bpf.links import attach_xdp, xdp_program_id
from towpath.kernel.bpf.object import BpfObject
from towpath.kernel.net.interfaces import device_index
from towpath.kernel.net.netns import in_netns, new_netns

if TYPE_CHECKING:
    from collections.abc import Iterator

DEVICE, PEER = "tpdca", "tpdcb"
ADDRESS = "192.0.2.11"
PINS = Path("/sys/fs/bpf/towpath-decap-follow")
OTHER = "tp-decap-other"


@pytest.fixture(autouse=True)
def _device() -> Iterator[None]:
    with new_netns():
        make()
        yield
    remove_pins(PINS)


def make(name: str = DEVICE, peer: str = PEER) -> None:
    """A device."""
    ip("link", "add", name, "type", "veth", "peer", "name", peer)


def on(name: str = DEVICE) -> int:
    """The program on a device."""
    return xdp_program_id(device_index(name))


@pytest.mark.parametrize("pins", [None, PINS])
def test_a_device_that_comes_back_is_attached_to_again(pins: Path | None) -> None:
    """With the same addresses and counters; what is pinned is the new link."""
    with Decap(DEVICE, [ADDRESS], pins=pins) as decap:
        assert decap.follow() == ""
        number = on()
        for _ in range(2):
            ip("link", "delete", DEVICE)
            assert decap.follow().startswith(f"no such device: {DEVICE}: there are: ")
            make()
            assert decap.follow() == ""
            assert on() == number
            assert (decap.device, decap.ifindex) == (DEVICE, device_index(DEVICE))
    if pins:
        assert on() == number
        with Decap.pinned(PINS) as again:
            assert again.device == DEVICE
            again.detach()
    assert on() == 0


def test_a_name_that_another_device_gets_counts() -> None:
    """Until then the one that was renamed keeps its program."""
    with Decap(DEVICE, [ADDRESS]) as decap:
        ip("link", "set", DEVICE, "name", "tpdcz")
        assert decap.follow().startswith(f"no such device: {DEVICE}: there are: ")
        assert on("tpdcz")
        make(peer="tpdcy")
        assert decap.follow() == ""
        assert on()
        assert not on("tpdcz")


def test_a_device_that_is_moved_elsewhere_is_let_go() -> None:
    """Others' packets come in by it now."""
    ip("netns", "add", OTHER)
    try:
        with Decap(DEVICE, [ADDRESS]) as decap:
            ip("link", "set", DEVICE, "netns", OTHER)
            assert decap.follow().startswith(f"no such device: {DEVICE}")
            with in_netns(OTHER):
                assert not on()
            ip("link", "delete", PEER)
            make()
            assert decap.follow() == ""
            assert on()
    finally:
        ip("netns", "delete", OTHER)


def test_what_somebody_detaches_is_put_back() -> None:
    """Unless somebody else has the place by then, which is told."""
    with Decap(DEVICE, [ADDRESS], pins=PINS) as decap, BpfObject.packaged("lab_pass") as other:
        other.load()
        number = on()
        with links.from_pin(PINS / "link"):
            pass  # which detaches at its end
        assert not on()
        assert decap.follow() == ""
        assert on() == number
        with links.from_pin(PINS / "link"):
            pass
        with attach_xdp(other.programs["pass"], device_index(DEVICE)):
            for _ in range(2):
                assert f"program {other.programs['pass'].id} is attached" in decap.follow()
        assert decap.follow() == ""
        assert on() == number
        decap.detach()


def test_what_can_not_be_asked_for_is_not_taken_for_detached() -> None:
    """It is told, and packets are unwrapped meanwhile."""
    with Decap(DEVICE, [ADDRESS]) as decap:
        number = on()
        with no_more_files():
            assert "Too many open files" in decap.follow()
        assert isinstance(decap._link, links.Link)
        assert decap._link.fd >= 0
        assert on() == number
        assert decap.follow() == ""


def test_who_only_looks_at_what_is_pinned_puts_nothing_back() -> None:
    """It has no program to do it with."""
    Decap(DEVICE, [ADDRESS], pins=PINS).close()
    with Decap.pinned(PINS) as decap:
        ip("link", "delete", DEVICE)
        assert decap.follow() == ""
        decap.detach()
