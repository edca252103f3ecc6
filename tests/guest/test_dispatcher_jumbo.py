# SPDX-License-Identifier: Apache-2.0
"""Frames in fragments on a device that Towpath shares with the programs of xdp-tools."""

from __future__ import annotations

import subprocess
from contextlib import contextmanager
from subprocess import DEVNULL
from typing import TYPE_CHECKING

import pytest
from tests.guest.harness_guest import SMALL, VIPS, ask, network, passing, run, services
from tests.guest.harness_xdp_tools import load_taking_fragments, names
from tests.lab.harness_jumbo import widen_links
from tests.read_pcapng import read

from towpath import Capture, LoadBalancer
from towpath.kernel.bpf import bpffs
from towpath.kernel.net.netns import in_netns
from towpath.lab.topology import BALANCER, DEVICE
from towpath.model import Device

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from towpath.lab import Topology

LARGE = 4000  # bytes of a frame that no page has room for, beside what surrounds it


@pytest.fixture(scope="module")
def topology() -> Iterator[Topology]:
    """One backend, whose kernel unwraps, and links with an MTU of 9000."""
    with network() as topology, passing(topology.balancer.port):
        widen_links(topology)
        yield topology


@contextmanager
def sharing(topology: Topology) -> Iterator[LoadBalancer]:
    """A load balancer in the dispatcher of its device."""
    wished = Device(DEVICE, "native", "dispatcher")
    with in_netns(BALANCER), LoadBalancer(wished, limits=SMALL) as balancer:
        balancer.apply(services(topology))
        (status,) = balancer.devices()
        assert (status.mode, status.fragments, status.trouble) == ("native", True, None)
        yield balancer


def asked(balancer: LoadBalancer) -> None:
    """Streams of large packets get through, every byte of them."""
    for vip in VIPS:
        ask(vip, 200_000)
        seen = balancer.service_counters(f"tcp{vip.version}")
        # What acknowledges the answer is small.
        assert (seen.drops, seen.bytes // seen.packets > LARGE) == (0, True), seen


def test_beside_one_that_takes_them(topology: Topology, tmp_path: Path) -> None:
    """Large packets are balanced, and recorded; the other's mark is kept, and goes with it."""
    with in_netns(BALANCER):
        load_taking_fragments(DEVICE, tmp_path)
    with sharing(topology) as balancer:
        assert names(DEVICE) == ["takes_all", "towpath"]
        asked(balancer)
        with balancer.record(Capture(expression=f"greater {LARGE}")) as capture:
            ask(VIPS[0], 200_000)
            capture.stop()
            section = read(b"".join(map(bytes, capture.chunks())))
        assert section.packets
        assert all(packet.length >= LARGE for packet in section.packets)
        asked(balancer)
    with in_netns(BALANCER):
        assert names(DEVICE) == ["takes_all"]
    run(BALANCER, ["xdp-loader", "unload", DEVICE, "--all"])
    assert not list((bpffs.ROOT / "xdp").iterdir())


def test_one_that_takes_none_stays_outside(topology: Topology) -> None:
    """Its dispatcher is refused by the device, and nothing changes."""
    with sharing(topology) as balancer:
        command = ["xdp-filter", "load", DEVICE, "--mode", "native"]
        done = subprocess.run(command, stdout=DEVNULL, stderr=DEVNULL, check=False)
        assert done.returncode
        assert names(DEVICE) == ["towpath"]
        balancer.follow()
        assert balancer.devices()[0].fragments
        asked(balancer)
    bpffs.remove_pins(bpffs.ROOT / "xdp-filter")
    assert not list((bpffs.ROOT / "xdp").iterdir())
