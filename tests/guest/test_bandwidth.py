# SPDX-License-Identifier: Apache-2.0
"""Pods paced by fq, which only guests' kernels have: real traffic against a limit.

Rates are of a guest's own clock, on CPUs that others use as well: what is too much is a fault in
any run, what is too little in all of them.
"""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest

from towpath.agent.bandwidth.part import refused_bbr
from towpath.bench.bandwidth import latency_of
from towpath.bench.bandwidth_traffic import (
    Bulk,
    Sink,
    achieved,
    each_achieved,
    tcp_on_wire,
    traffic,
)
from towpath.bench.bandwidth_ways import DIRECT, TBF, limited
from towpath.bench.bandwidth_world import POD_DEVICE, PORT_OF_STAMPS, REMOTE, world
from towpath.datapath.bandwidth.fq import FqKeeper, limits
from towpath.datapath.bandwidth.node import Node, detach
from towpath.datapath.bandwidth.report import report
from towpath.datapath.bandwidth.survival import survival
from towpath.kernel.bpf import bpffs, probe
from towpath.kernel.bpf.notes import Notes
from towpath.kernel.bpf.programs import ProgramType
from towpath.kernel.net import qdiscs
from towpath.kernel.net.interfaces import device_index, set_forwarding
from towpath.kernel.net.netns import in_netns, new_netns
from towpath.model.bandwidth import Pod, Section

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from towpath.bench.bandwidth_world import World


RATE = 20_000_000
KEPT = 5_000_000  # an emulated guest beside others has time for no more
RUNS = 5
SECONDS, WARM = 3.0, 2.0
WITHIN = 0.02
OPTIONS = limits([(RATE, 100_000_000)])
INSIDE = "pod0"
_SO_TXTIME = 61
_SO_RCVBUFFORCE = 33
_SET_TSTAMP = 192  # BPF_FUNC_skb_set_tstamp


@pytest.fixture
def here() -> Iterator[World]:
    """A pod, its node, a remote."""
    with world() as made:
        yield made


@pytest.fixture
def pins() -> Iterator[Path]:
    """Where what outlives a process is kept."""
    directory = bpffs.ROOT / "towpath-bandwidth-test"
    yield directory
    bpffs.remove_pins(directory)


def sh(*commands: str) -> None:
    """Run commands of ip and tc."""
    for command in commands:
        subprocess.run(command.split(), check=True)


# ---- Rates ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("bulk", [Bulk(), Bulk(offered=1.2)], ids=["tcp", "udp"])
def test_a_limit_is_kept(here: World, bulk: Bulk) -> None:
    """What arrives is the limit; fq drops nothing by itself."""
    errors: list[float] = []
    with ExitStack() as undo:
        sink = Sink(here.remote, undo)
        pod = Pod("pod", device="vpod", egress=KEPT)
        section = Section(devices=("eth0",), pods=(pod,), direct=True, aggregates=8)
        with Node(section, None) as node, traffic(here, bulk, KEPT):
            for _ in range(RUNS):
                errors.append(achieved(sink, bulk, SECONDS, WARM) / KEPT - 1)
                if abs(errors[-1]) <= WITHIN:
                    break
            found = report(node)
            node.detach()
    (device,) = found.devices
    assert (device.paces, device.dropped) == (True, 0)
    assert max(errors) <= WITHIN, errors
    assert min(map(abs, errors)) <= WITHIN, errors


def test_what_is_below_the_limit_loses_nothing(here: World) -> None:
    """Datagrams at half of it."""
    with ExitStack() as undo:
        sink = Sink(here.remote, undo)
        with limited(here, DIRECT, RATE) as limit, traffic(here, Bulk(offered=0.5), RATE):
            achieved(sink, Bulk(offered=0.5), SECONDS, 0)
            found = limit.aggregate
    assert found
    assert {name: n for name, n in found.verdicts.items() if "drop" in name and n} == {}


def test_a_small_request_doesnt_wait_behind_bulk(here: World) -> None:
    """As it does where there is one queue for all."""
    with ExitStack() as undo:
        Sink(here.remote, undo)
        mine = latency_of(here, DIRECT, RATE, Bulk(2), SECONDS)
        other = latency_of(here, TBF, RATE, Bulk(2), SECONDS)
    assert mine.p50 < other.p50 / 2


def test_a_pod_behind_netkit(here: World) -> None:
    """Its packets go past the stack as well, and are paced."""
    there = f"/proc/{os.getpid()}/fd/{here.pod}"
    sh(f"ip link del {POD_DEVICE}")
    made = subprocess.run(
        ["ip", "link", "add", POD_DEVICE, "type", "netkit"], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip("this kernel has no netkit")
    # The other end has the name that the kernel gives it.
    sh(
        f"ip link set nk0 name {INSIDE} netns {there}",
        f"ip addr add 10.1.0.1/24 dev {POD_DEVICE}",
        f"ip link set {POD_DEVICE} up",
    )
    set_forwarding(POD_DEVICE, "ipv4", on=True)
    with in_netns(here.pod):
        sh(
            f"ip addr add 10.1.0.2/24 dev {INSIDE}",
            f"ip link set {INSIDE} up",
            f"ip route add default via 10.1.0.1 dev {INSIDE}",
        )
    with ExitStack() as undo:
        sink = Sink(here.remote, undo)
        limit = undo.enter_context(limited(here, DIRECT, RATE))
        undo.enter_context(traffic(here, Bulk(), RATE))
        errors = [achieved(sink, Bulk(), SECONDS, WARM) / RATE - 1 for _ in range(2)]
        found = limit.aggregate
    assert found
    assert found.verdicts["delayed"]
    # The kernel asks for routers by itself.
    assert found.verdicts["routed"] > 100 * found.verdicts["tagged"]
    assert max(errors) <= WITHIN, errors


# ---- Stamps of pods ------------------------------------------------------------------------------


@contextmanager
def stamping(netns: int, clock: int) -> Iterator[socket.socket]:
    """A pod's socket whose datagrams say when they depart."""
    with in_netns(netns):
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with made:
        made.setsockopt(socket.SOL_SOCKET, _SO_TXTIME, struct.pack("=iI", clock, 0))
        made.connect((REMOTE, PORT_OF_STAMPS))
        yield made


@pytest.mark.parametrize("clock", [time.CLOCK_TAI, time.CLOCK_MONOTONIC])
def test_stamps_of_any_clock_arrive(here: World, clock: int) -> None:
    """Fq alone takes one of CLOCK_TAI for far ahead, and drops the packet."""
    with ExitStack() as undo:
        with in_netns(here.remote):
            sink = undo.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        sink.bind((REMOTE, PORT_OF_STAMPS))
        sink.settimeout(60)
        limit = undo.enter_context(limited(here, DIRECT, RATE))
        pod = undo.enter_context(stamping(here.pod, clock))
        for number in range(5):
            at = struct.pack("=Q", time.clock_gettime_ns(clock) + 100_000_000)
            pod.sendmsg([bytes([number])], [(socket.SOL_SOCKET, _SO_TXTIME, at)])
        assert [sink.recv(10)[0] for _ in range(5)] == [0, 1, 2, 3, 4]
        found = limit.aggregate
    assert found
    tai = clock == time.CLOCK_TAI and survival().udp
    assert found.stamps_converted == (5 if tai else 0)
    assert found.verdicts["delayed"] >= (5 if survival().udp else 0)


SHIFTED = """
import socket, struct, sys, time
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
    made.setsockopt(socket.SOL_SOCKET, 61, struct.pack("=iI", time.CLOCK_MONOTONIC, 0))
    at = struct.pack("=Q", time.monotonic_ns() + 100_000_000)
    seconds, host, port = sys.argv[1:]
    made.sendmsg([seconds.encode()], [(socket.SOL_SOCKET, 61, at)], 0, (host, int(port)))
"""


def test_a_stamp_of_a_time_namespace_is_taken_as_it_is(here: World) -> None:
    """The kernel shifts no stamp: its packet is late by as much as the pod's clock is ahead."""
    with ExitStack() as undo:
        with in_netns(here.remote):
            sink = undo.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        sink.bind((REMOTE, PORT_OF_STAMPS))
        sink.settimeout(60)
        limit = undo.enter_context(limited(here, DIRECT, RATE))
        with in_netns(here.pod):
            for seconds in ("5", "1"):
                shifted = ["unshare", "--time", "--monotonic", seconds, sys.executable]
                words = ["-c", SHIFTED, seconds, REMOTE, str(PORT_OF_STAMPS)]
                subprocess.run([*shifted, *words], check=True)
        found = limit.aggregate
        assert found
        if survival().udp:
            assert found.verdicts["drop_stamp"] == 1  # 2 s at most
            assert 100 < found.longest_ms <= 1100  # its own clock says 100
        else:
            assert sink.recv(10) == b"5"
            assert found.longest_ms == 0
        assert sink.recv(10) == b"1"


def test_bbr_is_refused_where_nobody_would_pace_it() -> None:
    """By a packet that was sent and looked at, and not by the kernel's version."""
    kept = survival().tcp
    assert bool(refused_bbr(Section(devices=("eth0",), direct=True), "on")) == (not kept)
    assert refused_bbr(Section(devices=("eth0",)), "on") == ""
    # Both came with Linux 5.18.
    assert kept == probe.helper(_SET_TSTAMP, ProgramType.SCHED_CLS)


# ---- fq ------------------------------------------------------------------------------------------


def kinds(device: str) -> list[tuple[str, bool]]:
    """A device's qdiscs, and whether the kernel has put them there by itself."""
    return [(each.kind, not each.handle) for each in qdiscs.qdiscs(device_index(device))]


def test_fq_takes_the_place_of_what_only_queues_and_gives_it_back() -> None:
    """A default, one with options, mq's queues."""
    with new_netns():
        sh(
            "ip link add va type veth peer name vb",
            "ip link add vm numtxqueues 2 type dummy",
            "ip link set va up",
            "ip link set vb up",
            "ip link set vm up",
            "tc qdisc replace dev vm root handle 8: mq",
            "tc qdisc replace dev vb root handle 9: pfifo limit 77",
        )
        before = {name: qdiscs.qdiscs(device_index(name)) for name in ("va", "vb", "vm")}
        keeper = FqKeeper(Notes(None))
        assert [keeper.keep(device_index(name), OPTIONS) for name in before] == ["", "", ""]
        assert kinds("va") == kinds("vb") == [("fq", False)]
        assert sorted(kinds("vm")) == [("fq", False), ("fq", False), ("mq", False)]
        (fq,) = qdiscs.qdiscs(device_index("va"))
        assert qdiscs.FqOptions.of(fq) == OPTIONS
        keeper.keep(device_index("va"), qdiscs.FqOptions(500, 400))
        (fq,) = qdiscs.qdiscs(device_index("va"))
        assert qdiscs.FqOptions.of(fq) == (500, 400)
        keeper.restore_all()
        assert not keeper.noted
        for name, each in before.items():
            found = qdiscs.qdiscs(device_index(name))
            told = [sorted((q.parent, q.kind, q.options) for q in some) for some in (each, found)]
            assert told[0] == told[1]


def test_fq_that_is_taken_away_is_noticed() -> None:
    """What the kernel then has by itself is replaced, what somebody has put there isn't."""
    with new_netns():
        sh("ip link add va type veth peer name vb", "ip link set va up")
        index, keeper = device_index("va"), FqKeeper(Notes(None))
        assert keeper.keep(index, OPTIONS) == ""
        sh("tc qdisc del dev va root")
        assert keeper.keep(index, OPTIONS) == ""
        assert kinds("va") == [("fq", False)]
        sh("tc qdisc replace dev va root pfifo")
        assert "somebody has put pfifo" in keeper.keep(index, OPTIONS)
        keeper.restore_all()
        assert kinds("va") == [("pfifo", False)]


def test_a_qdisc_with_a_purpose_is_left_alone() -> None:
    """The device is policed."""
    with new_netns():
        sh(
            "ip link add va type veth peer name vb",
            "ip link set va up",
            "tc qdisc replace dev va root tbf rate 1gbit burst 100kb latency 10ms",
        )
        with Node(Section(devices=("va",), aggregates=8), None) as node:
            assert not node.troubles
            (note,) = node.notes
            assert "its qdisc is tbf, which is left alone" in note
            assert kinds("va") == [("tbf", False)]
            node.detach()
        assert kinds("va") == [("tbf", False)]


# ---- Changes under load --------------------------------------------------------------------------

BELOW = 0.25
"""Of the limit, what the numbered datagrams are that share it with TCP: within their fair share."""
OVER = 1.5
"""Times the limit, in half a second, that flows which overtake others may have: its absence would
be twenty times as much."""
HOLDER = """
import itertools, sys
from pathlib import Path
from towpath.datapath.bandwidth.node import Node, detach
from towpath.model.bandwidth import Pod, Section
def section(rate):
    pod = Pod("pod", device="vpod", egress=rate)
    return Section(devices=("eth0",), pods=(pod,), direct=True, aggregates=8)
with Node(section(int(sys.argv[2])), Path(sys.argv[1])) as node:
    for line in itertools.chain([""], sys.stdin):
        if line:
            node.replace(section(int(line)))
        print("done", flush=True)
"""


@contextmanager
def holder(pins: Path, rate: int) -> Iterator[subprocess.Popen[str]]:
    """A process that has the pod limited, and takes other limits, a line each."""
    command = [sys.executable, "-c", HOLDER, str(pins), str(rate)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == "done\n"
            yield process
        finally:
            process.kill()


def numbered(here: World, stop: threading.Event, rate: int) -> int:
    """Send numbered datagrams of a pod's, of so many bits a second; how many."""
    with in_netns(here.pod):
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    number = 0
    with made:
        made.connect((REMOTE, PORT_OF_STAMPS))
        while not stop.wait(8 * 1042 / rate):
            made.send(number.to_bytes(4, "big") + bytes(996))
            number += 1
    return number


def test_limits_hold_while_they_change_and_who_set_them_is_killed(here: World, pins: Path) -> None:
    """No datagram within its flow's share is lost, and at no time more than the limit arrives."""
    stop = threading.Event()
    most: list[tuple[int, float]] = []
    with ExitStack() as undo:
        undo.callback(detach, pins)
        sink = Sink(here.remote, undo)
        with in_netns(here.remote):
            remote = undo.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        # Whatever the host allows: it is read at the end.
        remote.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 1 << 26)
        remote.bind((REMOTE, PORT_OF_STAMPS))
        pool = undo.enter_context(ThreadPoolExecutor(1))

        def look(limit: int) -> None:
            """See what arrives by TCP while the limit is at most this."""
            most.append((limit, tcp_on_wire(sum(each_achieved(sink, 0.5, 0)))))

        with holder(pins, RATE) as process, traffic(here, Bulk(2), RATE):
            undo.callback(stop.set)
            sent = pool.submit(numbered, here, stop, round(BELOW * RATE / 2))
            assert process.stdin
            assert process.stdout
            for rate in (RATE, 2 * RATE, RATE // 2, RATE):
                print(rate, file=process.stdin, flush=True)
                assert process.stdout.readline() == "done\n"
                look(2 * RATE)
            look(RATE)
            process.kill()
            process.wait()
            look(RATE)
            with holder(pins, RATE):
                look(RATE)
            look(RATE)
            stop.set()
            count = sent.result()
        remote.settimeout(5)
        arrived = [int.from_bytes(remote.recv(2000)[:4], "big") for _ in range(count)]
    assert sorted(arrived) == list(range(count))
    assert count
    assert [(limit, rate) for limit, rate in most if rate > OVER * limit] == []
    assert most[-1][1] > RATE / 4, most  # there is traffic that could be too much
