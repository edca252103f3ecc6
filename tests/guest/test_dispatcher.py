# SPDX-License-Identifier: Apache-2.0
"""Towpath and the programs of xdp-tools on one device, by libxdp's own protocol."""

from __future__ import annotations

import signal
import subprocess
from contextlib import contextmanager
from subprocess import DEVNULL
from typing import TYPE_CHECKING

import pytest
from tests.guest.harness_guest import (
    PORT,
    SMALL,
    VIPS,
    ask,
    ask_by_datagram,
    network,
    passing,
    run,
    services,
)
from tests.guest.harness_xdp_tools import gives_up, names
from tests.lab.harness_agent import DEVICE as AGENTS_DEVICE
from tests.lab.harness_agent import PEER, WEB, Agent, device
from tests.lab.harness_stream import passing as taking
from tests.lab.harness_stream import streaming
from tests.read_pcapng import read

from towpath import Capture, LoadBalancer
from towpath.api.client import Client
from towpath.kernel.bpf import bpffs, links
from towpath.kernel.bpf.object import BpfObject
from towpath.kernel.errors import KernelError
from towpath.kernel.net.interfaces import device_index
from towpath.kernel.net.netns import in_netns
from towpath.lab import namespaces
from towpath.lab.topology import BALANCER, DEVICE, ROUTER
from towpath.lab.waiting import wait_until
from towpath.model import Device

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from towpath.lab import Topology

LOST_SECONDS = 2.0


@pytest.fixture(scope="module")
def topology() -> Iterator[Topology]:
    """One backend, whose kernel unwraps."""
    with network() as topology, passing(topology.balancer.port):
        yield topology


@pytest.fixture(autouse=True)
def _free(topology: Topology) -> Iterator[None]:
    """Whatever a test has left on the load balancer's device goes."""
    del topology
    yield
    if called():
        run(BALANCER, ["xdp-loader", "unload", DEVICE, "--all"])
    bpffs.remove_pins(bpffs.ROOT / "xdp-filter")


@pytest.fixture
def filtered(topology: Topology) -> None:
    """With xdp-filter, which xdp-tools have loaded, on the load balancer's device."""
    del topology
    run(BALANCER, ["xdp-filter", "load", DEVICE, "--mode", "native"])


@contextmanager
def sharing(topology: Topology, priority: int | None = None) -> Iterator[LoadBalancer]:
    """A load balancer in the dispatcher of its device."""
    wished = Device(DEVICE, "native", "dispatcher", priority)
    with in_netns(BALANCER), LoadBalancer(wished, limits=SMALL) as balancer:
        balancer.apply(services(topology))
        yield balancer


def succeeds(*command: str) -> bool:
    """Whether a command does what it is told, on the load balancer's node."""
    return not namespaces.run(BALANCER, command, stdout=DEVNULL, stderr=DEVNULL).returncode


def called() -> list[str]:
    """What the dispatcher on the load balancer's device calls, as xdp-loader has it."""
    with in_netns(BALANCER):
        return names(DEVICE)


def test_beside_a_filter(topology: Topology, filtered: None) -> None:
    """It was there before, sees packets before, and goes without Towpath."""
    del filtered
    assert called() == ["xdpfilt_alw_all"]
    with sharing(topology) as balancer:
        assert called() == ["xdpfilt_alw_all", "towpath"]
        (status,) = balancer.devices()
        assert (status.mode, status.attach, status.trouble) == ("native", "dispatcher", None)
        # The filter takes no frames in fragments, and so nobody gets any.
        assert status.fragments is False
        wider = ("ip", "link", "set", topology.balancer.port, "mtu", "9000")
        assert namespaces.run(ROUTER, wider, stdout=DEVNULL, stderr=DEVNULL).returncode
        for vip in VIPS:
            ask(vip, 10_000)
            ask_by_datagram(vip)
        run(BALANCER, ["xdp-filter", "port", str(PORT), "--mode", "dst", "--proto", "udp"])
        before = balancer.counters()
        for vip in VIPS:
            ask(vip, 10_000)
            with pytest.raises(TimeoutError):
                ask_by_datagram(vip, seconds=LOST_SECONDS)
        assert balancer.counters() != before
        assert succeeds("xdp-filter", "unload", DEVICE) != gives_up()
        assert called() == [*(["xdpfilt_alw_all"] if gives_up() else []), "towpath"]
        balancer.follow()
        assert not balancer.devices()[0].trouble
        for vip in VIPS:
            ask(vip, 10_000)
            if not gives_up():
                ask_by_datagram(vip)
    assert called() == (["xdpfilt_alw_all"] if gives_up() else [])
    assert len(list((bpffs.ROOT / "xdp").iterdir())) == len(called())


def test_a_filter_comes_afterwards(topology: Topology) -> None:
    """Its dispatcher takes Towpath along, or is refused by the kernel and nothing changes."""
    with sharing(topology, priority=5) as balancer:
        assert succeeds("xdp-filter", "load", DEVICE, "--mode", "native") != gives_up()
        assert called() == ["towpath", *([] if gives_up() else ["xdpfilt_alw_all"])]
        for vip in VIPS:
            ask(vip, 10_000)
        balancer.follow()
        assert not balancer.devices()[0].trouble


def test_what_takes_it_away_is_undone(topology: Topology, filtered: None) -> None:
    """All programs are taken off; Towpath's comes back, others' don't."""
    del filtered
    with sharing(topology) as balancer:
        run(BALANCER, ["xdp-loader", "unload", DEVICE, "--all"])
        balancer.follow()
        assert called() == ["towpath"]
        for vip in VIPS:
            ask(vip, 10_000)


def test_a_capture_begins_and_ends(topology: Topology, filtered: None) -> None:
    """Beside another; the dispatcher stays the one that it is, and what went out is recorded."""
    del filtered
    with sharing(topology) as balancer, in_netns(BALANCER):
        there = links.xdp_program_id(device_index(DEVICE))
        with balancer.record(Capture(expression="tcp", direction="both")) as capture:
            assert called() == ["xdpfilt_alw_all", "towpath"]
            for vip in VIPS:
                ask(vip, 10_000)
            assert balancer.follow() == ()
            capture.stop()
            section = read(b"".join(map(bytes, capture.chunks())))
        assert {packet.inbound for packet in section.packets} == {True, False}
        assert {packet.interface.name for packet in section.packets} == {
            f"{DEVICE}-in",
            f"{DEVICE}-out",
        }
        for vip in VIPS:
            ask(vip, 10_000)
        assert balancer.follow() == ()
        assert links.xdp_program_id(device_index(DEVICE)) == there


def test_who_watches_sees_packets(topology: Topology, tmp_path: Path) -> None:
    """Xdpdump on the device, which attaches itself to the dispatcher."""
    file = tmp_path / "seen.pcap"
    command = ["xdpdump", "-i", DEVICE, "--use-pcap", "-w", str(file)]
    with sharing(topology):
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as watching:
            said = watching.stderr
            assert said is not None
            wait_until(lambda: "listening" in said.readline(), seconds=60, what="it")
            for vip in VIPS:
                ask(vip, 10_000)
            watching.send_signal(signal.SIGINT)
            watching.communicate(timeout=60)
        assert file.stat().st_size > 10_000
        assert called() == ["towpath"]
        ask(VIPS[0], 10_000)


def test_a_program_alone_is_named(topology: Topology) -> None:
    """Towpath doesn't attach, and says who is there."""
    with in_netns(BALANCER), BpfObject.packaged("lab_pass") as other:
        other.load()
        with links.attach_xdp(other.programs["pass"], device_index(DEVICE), "native"):
            number = other.programs["pass"].id
            with (
                pytest.raises(KernelError, match=rf"with program pass \(id {number}\): .* xdp off"),
                sharing(topology),
            ):
                pass
            assert links.xdp_program_id(device_index(DEVICE)) == number


@pytest.mark.thorough
def test_an_agent_is_killed_and_exchanged(tmp_path: Path) -> None:
    """Beside a filter: no packet is lost, and in the end all of it goes."""
    devices = [{"name": AGENTS_DEVICE, "attach": "dispatcher", "priority": 20}]
    with device():
        subprocess.run(["xdp-filter", "load", AGENTS_DEVICE], check=True)
        there = ["xdpfilt_alw_all", "towpath"]
        agent = Agent(tmp_path, {"devices": devices, "services": [WEB]})
        agent.start()
        with taking(PEER), streaming(PEER, str(WEB["vip"])) as stream:
            agent.kill()
            assert names(AGENTS_DEVICE) == there
            agent.start("--detach-on-exit")
            with Client(agent.socket) as client:
                (status,) = client.status().device_status
                assert (status.attach, status.trouble) == ("dispatcher", None)
                trace = client.trace("198.51.100.7:40000 -> 203.0.113.10:80")
                assert trace.verdict in {"tx", "redirect", "handoff"}
            seen = stream.report()
            assert (seen["lost"], seen["twice"], seen["moved"]) == (0, 0, {})
        assert agent.end() == 0
        assert names(AGENTS_DEVICE) == ["xdpfilt_alw_all"]
        subprocess.run(["xdp-filter", "unload", AGENTS_DEVICE], check=True)
    assert not list((bpffs.ROOT / "xdp").iterdir())
