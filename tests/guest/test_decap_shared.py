# SPDX-License-Identifier: Apache-2.0
"""``towpath decap`` on a device that it shares: with the load balancer, a filter, or both."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from contextlib import closing, contextmanager
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import pytest
from scapy.layers.inet import UDP
from scapy.layers.l2 import Ether
from scapy.packet import Raw
from tests.guest.harness_guest import SMALL
from tests.guest.harness_xdp_tools import gives_up, load_taking_fragments, names
from tests.prog.decap.harness import ADDRESSES, CLIENTS, COMBINATIONS, TARGETS, inner, ip, outer
from tests.prog.decap.oracle import unwrap
from tests.prog.decap.wire import BACKEND, BALANCER, TIMEOUT, WIRE, wire
from tests.prog.decap.wire import ip as ip_command

from towpath import LoadBalancer
from towpath.datapath.decap.decap import Decap
from towpath.kernel.bpf import bpffs, links
from towpath.kernel.errors import KernelError
from towpath.kernel.net.interfaces import device_index
from towpath.kernel.net.netns import in_netns
from towpath.lab.waiting import wait_until
from towpath.model import Backend, Device, Protocol, Service

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TOWPATH = [sys.executable, "-m", "towpath", "decap"]
SHARED = ["--attach", "dispatcher", "--address", TARGETS[4], "-a", TARGETS[6]]
PINS = bpffs.ROOT / "tpdc"
SERVICE = "203.0.113.77"  # what the load balancer on the backend is for
PORT = 80


@pytest.fixture(autouse=True)
def _ends() -> Iterator[None]:
    """Both namespaces for each test, in which nothing is left."""
    with wire():
        try:
            yield
            with in_netns(BACKEND):
                assert links.xdp_program_id(device_index(WIRE)) == 0
            assert not list((bpffs.ROOT / "xdp").iterdir())
        finally:
            # What a test that fails leaves is none of the next one's.
            bpffs.remove_pins(PINS)
            bpffs.remove_pins(bpffs.ROOT / "xdp")


def called() -> list[str]:
    """What the dispatcher on the backend's device calls."""
    with in_netns(BACKEND):
        return names(WIRE)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command in the backend's namespace to its end."""
    with in_netns(BACKEND):
        return subprocess.run(
            [*TOWPATH, *arguments], capture_output=True, text=True, check=False, timeout=TIMEOUT
        )


def load_filter() -> None:
    """Have xdp-filter on the backend's device, which lets all packets pass."""
    with in_netns(BACKEND):
        subprocess.run(["xdp-filter", "load", WIRE, "--mode", "native"], check=True)


def unload_filter() -> None:
    """Take it away."""
    with in_netns(BACKEND):
        subprocess.run(["xdp-filter", "unload", WIRE], check=True)


def unload_all() -> None:
    """Take all programs away."""
    with in_netns(BACKEND):
        subprocess.run(["xdp-loader", "unload", WIRE, "--all"], check=True)


@contextmanager
def balancing(priority: int | None = None) -> Iterator[LoadBalancer]:
    """A load balancer on the backend's own device."""
    wished = Device(WIRE, "native", "dispatcher", priority)
    service = Service(
        "web",
        ip_address(SERVICE),
        PORT,
        Protocol.UDP,
        (Backend(ip_address(CLIENTS[4])),),
        table_size=251,
    )
    with in_netns(BACKEND), LoadBalancer(wished, limits=SMALL) as balancer:
        balancer.apply([service])
        yield balancer


class Frames:
    """Frames that are sent to the backend, and what its kernel gets to see of them."""

    def __init__(self) -> None:
        with in_netns(BALANCER):
            self._out = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
            self._out.bind((WIRE, 0))
        with in_netns(BACKEND):
            self._in = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
            self._in.bind((WIRE, 0))
            self.mac = self._in.getsockname()[4].hex(":")
        self._in.settimeout(TIMEOUT)

    def through(self, frame: bytes) -> bytes:
        """Send one; what has the same link header and comes out first."""
        self._out.send(frame)
        while True:
            seen, where = self._in.recvfrom(65536)
            if where[2] != socket.PACKET_OUTGOING and seen[:12] == frame[:12]:
                return seen

    def send(self, frame: bytes) -> None:
        """Send one that nobody is to see."""
        self._out.send(frame)

    def check(self, payload: bytes) -> None:
        """Packets in tunnels of all kinds come out as the oracle has it, byte by byte."""
        for outside, inside in COMBINATIONS:
            packet = bytes(inner(inside, payload=payload))
            frame = bytes(self.ether() / outer(outside, inside) / Raw(packet))
            assert self.through(frame) == unwrap(frame, ADDRESSES).frame

    def ether(self) -> Ether:
        """A link header that nothing else on this wire has."""
        return Ether(src="02:00:00:00:00:01", dst=self.mac)

    def close(self) -> None:
        """Close the sockets."""
        self._out.close()
        self._in.close()


def shown() -> dict[str, Any]:
    """What --show prints as JSON."""
    found: dict[str, Any] = json.loads(run("--show", "--pin", str(PINS), "-o", "json").stdout)
    return found


def test_beside_a_filter_and_the_balancer() -> None:
    """Each does its own: what is balanced isn't unwrapped, what is unwrapped isn't balanced."""
    load_filter()
    with balancing() as balancer, closing(Frames()) as frames:
        made = run(WIRE, *SHARED, "--pin", str(PINS))
        assert (made.returncode, made.stdout) == (0, "")
        assert made.stderr.endswith(f"in native mode, by a dispatcher, pinned in {PINS}\n")
        assert called() == ["xdpfilt_alw_all", "towpath", "towpath_decap"]
        frames.check(b"towpath")
        asked = ip(4, CLIENTS[4], SERVICE) / UDP(sport=4000, dport=PORT) / Raw(b"asked")
        within = bytes(frames.ether() / outer(4, 4) / asked)
        assert frames.through(within) == bytes(frames.ether() / asked)
        assert balancer.service_counters("web").packets == 0
        before = balancer.counters().verdicts
        frames.send(bytes(frames.ether() / asked))
        wait_until(
            lambda: balancer.service_counters("web").packets == 1, seconds=10, what="the packet"
        )
        moved = {
            name: count - before[name]
            for name, count in balancer.counters().verdicts.items()
            if count != before[name] and not name.startswith("pass")
        }
        assert sum(moved.values()) == 1
        verdicts = shown()["verdicts"]
        assert verdicts["unwrapped"] == len(COMBINATIONS) + 1
        assert not any(n for name, n in verdicts.items() if name.startswith("drop"))
        assert run("--detach", "--pin", str(PINS)).returncode == 0
        assert called() == ["xdpfilt_alw_all", "towpath"]
        assert not PINS.exists()
    unload_filter()


def test_frames_in_fragments(tmp_path: Path) -> None:
    """Beside another that takes them: of whatever size, byte by byte."""
    for where in (BALANCER, BACKEND):
        ip_command("-n", where, "link", "set", WIRE, "mtu", "9000")
    with in_netns(BACKEND):
        load_taking_fragments(WIRE, tmp_path)
        with (
            Decap(WIRE, TARGETS.values(), "native", attach="dispatcher", priority=60) as decap,
            closing(Frames()) as frames,
        ):
            assert names(WIRE) == ["takes_all", "towpath_decap"]
            for size in (7, 3500, 8900):
                frames.check(bytes(at % 251 for at in range(size)))
            assert decap.counters().verdicts["unwrapped"] == 3 * len(COMBINATIONS)
    unload_all()


def test_killed_taken_away_and_ended() -> None:
    """What a killed one has left does nothing, and goes; what others take away comes back."""
    with closing(Frames()) as frames:
        killed = running()
        killed.kill()
        killed.communicate(timeout=TIMEOUT)
        assert called() == ["towpath_decap"]
        frame = bytes(frames.ether() / outer(4, 4) / inner(4))
        # The kernel empties its place a moment later.
        wait_until(lambda: frames.through(frame) == frame, seconds=10, what="it to be empty")
        again = running()
        assert called() == ["towpath_decap"]
        frames.check(b"towpath")
        unload_all()
        with in_netns(BACKEND):
            index = device_index(WIRE)
            wait_until(lambda: links.xdp_program_id(index) != 0, seconds=60, what="it to be back")
        frames.check(b"towpath")
        again.send_signal(signal.SIGTERM)
        output, errors = again.communicate(timeout=TIMEOUT)
        assert (again.returncode, errors) == (0, "")
        assert json.loads(output)["verdicts"]["unwrapped"] == 2 * len(COMBINATIONS)


def running() -> subprocess.Popen[str]:
    """The command, which says that it unwraps, until it is told to end."""
    with in_netns(BACKEND):
        process = subprocess.Popen(
            [*TOWPATH, WIRE, *SHARED, "-o", "json"],
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
    assert process.stderr is not None
    assert process.stderr.readline().endswith("in native mode, by a dispatcher\n")
    return process


def test_others_come_and_go() -> None:
    """A filter that is loaded afterwards finds it there, or is refused by the kernel."""
    with closing(Frames()) as frames:
        assert run(WIRE, *SHARED, "--priority", "90", "--pin", str(PINS)).returncode == 0
        if not gives_up():
            load_filter()
            assert called() == ["xdpfilt_alw_all", "towpath_decap"]
        frames.check(b"towpath")
        if not gives_up():
            unload_filter()
        frames.check(b"towpath")
        assert shown()["verdicts"]["unwrapped"] == 2 * len(COMBINATIONS)
        assert run("--detach", "--pin", str(PINS)).returncode == 0


@pytest.mark.thorough
def test_what_cannot_be_done_is_told() -> None:
    """In one line, with what is allowed; what is there stays."""
    with balancing(60):
        refused = run(WIRE, *SHARED)
        assert refused.returncode == 1
        assert "towpath_decap (priority 50) would be called before towpath" in refused.stderr
        assert "allowed: the same priority" in refused.stderr
        assert called() == ["towpath"]
        assert run(WIRE, *SHARED, "--mode", "generic").stderr.endswith("runs in native mode\n")
        assert "is attached in native mode" in run(WIRE, "-a", TARGETS[4]).stderr
    with in_netns(BACKEND), Decap(WIRE, TARGETS.values()):
        with (
            pytest.raises(KernelError, match=r"\(towpath decap --attach dispatcher\)"),
            balancing(),
        ):
            pass
        refused = run(WIRE, *SHARED)
        assert refused.returncode == 1
        assert "let it share the hook too (towpath decap --attach dispatcher)" in refused.stderr
