# SPDX-License-Identifier: Apache-2.0
"""The benchmark times what it says, leaves nothing behind, and notices when it does not."""

from __future__ import annotations

import gc
import json
import os
import socket
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from towpath.bench import SCENARIOS, BenchError, Scenario, Stimulus, Wrapper, measure
from towpath.bench.frames import GATEWAY_MAC, check_encapsulated, frame
from towpath.bench.loadbalancer import Rig, rig
from towpath.bench.network import attached_program
from towpath.bench.scenarios import BACKENDS, SERVICES, Outcome
from towpath.bench.wrapper import Action
from towpath.cli.main import cli
from towpath.kernel.bpf import probe

if TYPE_CHECKING:
    from collections.abc import Iterator

    from towpath.documents import ServiceCounters

BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}
HIT = BY_NAME["tcp-v4-lru-hit"]
HASHED = BY_NAME["tcp-v4-ch"]
PASSED = BY_NAME["pass-v4-no-vip"]
LOOPBACK = 1

# test_degrade.py has what these kernels are told.
pytestmark = [
    pytest.mark.thorough,
    pytest.mark.skipif(
        not probe.test_run_context(), reason="this kernel's test runs take no context"
    ),
]


@pytest.fixture(scope="module")
def wrapper() -> Iterator[Wrapper]:
    """One wrapper for all tests."""
    with Wrapper() as made:
        yield made


@pytest.fixture(scope="module")
def load_balancer() -> Iterator[Rig]:
    """One load balancer for all tests, which runs of the real program change only by counting."""
    with rig() as made:
        yield made


def counted(load_balancer: Rig, scenario: Scenario) -> ServiceCounters:
    """What the scenario's service has counted."""
    return load_balancer._balancer.counters().service(scenario.flow.key)


def served(counters: ServiceCounters) -> dict[object, int]:
    """Packets by backend."""
    return {each.address: each.packets for each in counters.backends}


def encapsulated(load_balancer: Rig, scenario: Scenario) -> tuple[bytes, bytearray]:
    """The scenario's frame, and what the program makes of it."""
    stimulus = scenario.stimulus(load_balancer.ifindex)
    return stimulus.frame, bytearray(stimulus.once(load_balancer.program).data)


# ---- The wrapper ---------------------------------------------------------------------------------


def test_doing_nothing_takes_nanoseconds(wrapper: Wrapper) -> None:
    """The floor is some nanoseconds a packet, whether flows vary or not."""
    for scenario in (HIT, BY_NAME["tcp-v6-lru-diverse"]):
        stimulus = scenario.stimulus(LOOPBACK)
        taken = wrapper.time(wrapper.floor, stimulus, Action.TX, batches=100, untimed=10)
        assert 0.1 < taken < 1000


def test_another_verdict_is_an_error(wrapper: Wrapper) -> None:
    """A program that decides otherwise than expected isn't timed."""
    with pytest.raises(BenchError, match="bench_floor: 64 of 64 packets were not XDP_PASS"):
        wrapper.time(wrapper.floor, HIT.stimulus(LOOPBACK), Action.PASS, batches=2)


def test_a_source_beyond_the_frame_is_an_error(wrapper: Wrapper) -> None:
    """A frame too short for the address that is to vary in it is noticed."""
    stimulus = Stimulus(HIT.stimulus(LOOPBACK).frame[:40], 38, 0, LOOPBACK)
    with pytest.raises(BenchError, match="could not be put back"):
        wrapper.time(wrapper.floor, stimulus, Action.TX, batches=1)


def test_each_packet_comes_in_as_the_first(load_balancer: Rig) -> None:
    """All packets of a run are the flow's own: its backend, and no other, has one more for each."""
    load_balancer.warm_up(HIT)
    before = counted(load_balancer, HIT)
    load_balancer.time(HIT)
    after = counted(load_balancer, HIT)
    assert after.packets - before.packets == load_balancer._packets
    length = len(frame(HIT.flow)) - 14
    assert after.bytes - before.bytes == length * load_balancer._packets
    grown = {
        address: packets - served(before)[address]
        for address, packets in served(after).items()
        if packets != served(before)[address]
    }
    assert list(grown.values()) == [load_balancer._packets]


def test_flows_vary(load_balancer: Rig) -> None:
    """4096 flows in turn reach every backend."""
    scenario = BY_NAME["tcp-v4-ch-diverse"]
    before = served(counted(load_balancer, scenario))
    load_balancer.time(scenario)
    after = served(counted(load_balancer, scenario))
    assert sum(after[address] > before[address] for address in after) == BACKENDS


# ---- The scenarios -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BY_NAME)
def test_packets_come_out_as_the_scenario_says(load_balancer: Rig, name: str) -> None:
    """Each scenario's packet has its verdict and its tunnel."""
    load_balancer.check(BY_NAME[name])


def test_every_scenario_but_those_that_pass_is_for_a_service() -> None:
    """The services are exactly those that scenarios send packets to."""
    wanted = {each.flow.key for each in SCENARIOS if each.outcome is not Outcome.PASSED}
    assert {service.key for service in SERVICES} == wanted


def test_a_wrong_verdict_is_told(load_balancer: Rig) -> None:
    """A packet that passes where it should be sent on stops the benchmark."""
    with pytest.raises(BenchError, match="wrong: the packet is XDP_PASS, not XDP_TX"):
        load_balancer.check(replace(PASSED, name="wrong", outcome=Outcome.HASHED))


def test_a_wrong_way_is_told(load_balancer: Rig) -> None:
    """Packets that the flow table answers aren't timed as hashed ones."""
    load_balancer.warm_up(HIT)
    with pytest.raises(BenchError, match="of 72192 packets 0 were of flows"):
        load_balancer.time(replace(HIT, name="wrong", outcome=Outcome.HASHED))


@pytest.mark.parametrize(
    ("at", "said"),
    [
        (0, "the frame goes to"),
        (13, "the frame goes to"),
        (17, "length"),
        (23, "protocol"),
        (24, "checksum"),
        (30, "is no backend"),
        (40, "the packet inside"),
        (-1, "the packet inside"),
    ],
)
def test_a_wrong_byte_is_told(load_balancer: Rig, at: int, said: str) -> None:
    """Link, outer header and inner packet are all looked at."""
    sent, got = encapsulated(load_balancer, HIT)
    backends = {backend.address for backend in SERVICES[0].backends}
    check_encapsulated(sent, bytes(got), backends)
    got[at] ^= 0x81
    with pytest.raises(BenchError, match=said):
        check_encapsulated(sent, bytes(got), backends)


def test_frames_come_back_to_the_gateway(load_balancer: Rig) -> None:
    """The next hop is the gateway, which is also where frames come from."""
    sent, got = encapsulated(load_balancer, BY_NAME["tcp-v6-lru-hit"])
    assert sent[6:12] == got[:6] == GATEWAY_MAC


def test_a_device_without_a_program_is_told() -> None:
    """There is nothing to time on the loopback device."""
    with pytest.raises(BenchError, match="no XDP program is attached to lo"):
        attached_program(LOOPBACK)


# ---- The whole -----------------------------------------------------------------------------------


def test_nothing_is_left() -> None:
    """Devices, CPU affinity and open files are as they were."""

    def surroundings() -> object:
        gc.collect()  # what tests before have let go of, and not closed, goes at any moment
        files = sorted(Path("/proc/self/fd").iterdir())
        return socket.if_nameindex(), os.sched_getaffinity(0), files

    measure([PASSED], runs=1)  # imports and caches open files of their own
    before = surroundings()
    report = measure([HIT, HASHED], runs=3)
    assert surroundings() == before
    assert [(each.name, each.runs) for each in report.scenarios] == [
        ("tcp-v4-lru-hit", 3),
        ("tcp-v4-ch", 3),
    ]
    for each in report.scenarios:
        assert 0 < report.floor_ns < each.min_ns <= each.p50_ns <= each.max_ns


def test_json() -> None:
    """The command prints what programs read."""
    arguments = ["bench", "lb", "--json", "--runs", "2", "--scenario", "pass-v4-no-vip"]
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    report = json.loads(result.stdout)
    assert list(report) == ["kernel", "floor_ns", "scenarios"]
    assert report["kernel"] == os.uname().release
    (only,) = report["scenarios"]
    assert list(only) == ["name", "p50_ns", "min_ns", "max_ns", "runs"]
    assert (only["name"], only["runs"]) == ("pass-v4-no-vip", 2)


def test_table() -> None:
    """People get a table, the scenarios as rows and the floor beneath."""
    arguments = ["bench", "lb", "--runs", "1", "--scenario", "pass-v6-no-vip"]
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert "pass-v6-no-vip" in result.stdout
    assert "Floor:" in result.stdout


def test_unknown_scenario() -> None:
    """A name that there is not is wrong usage, and the names are listed."""
    result = CliRunner().invoke(cli, ["bench", "lb", "--scenario", "tcp-v5"])
    assert result.exit_code == 2
    assert "tcp-v4-lru-hit" in result.output
