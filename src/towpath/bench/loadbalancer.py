# SPDX-License-Identifier: Apache-2.0
"""The load balancer, timed scenario by scenario.

What is timed is the packaged program with the default limits, on a device in a namespace of its
own, its tables filled as the agent fills them. Before a scenario is timed, its packet must come
out as it should; while it is timed, the counters must say that the packets went the way that the
scenario is named after.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from towpath.bench.cpu import on_one_cpu
from towpath.bench.errors import BenchError
from towpath.bench.frames import (
    Between,
    check_encapsulated,
    check_in_new_frame,
    check_translated,
    reply_to,
)
from towpath.bench.network import DEVICE, SNAT, SOURCE, attached_program, bench_network
from towpath.bench.report import Report, Timing
from towpath.bench.scenarios import SCENARIOS, SERVICES, Outcome, Scenario
from towpath.bench.wrapper import Action, Stimulus, Wrapper
from towpath.datapath.balancer import Balancer
from towpath.datapath.program.egress import AnyFrameEgress
from towpath.model.settings import Device, Limits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from towpath.datapath.recorder.capture import Recording
    from towpath.kernel.bpf.programs import Program
    from towpath.model.capture import Capture

RUNS = 21
_WARM_UPS = 50
_STRAY = 0.01  # share of packets: another scenario's flows displace a few known ones


def measure(
    scenarios: Iterable[Scenario] = SCENARIOS,
    *,
    runs: int = RUNS,
    progress: Callable[[int], None] | None = None,
) -> Report:
    """Time ``scenarios``; ``progress`` is told which round of ``runs`` begins, from 0.

    In each round every scenario has its turn, and the floor before it: what disturbs the machine
    for a while disturbs a few runs of each, which the median doesn't see. Nothing is left behind.
    BenchError: the program doesn't do what a scenario says. KernelError: the namespace or the
    load balancer can't be made.
    """
    samples: dict[Scenario, list[float]] = {scenario: [] for scenario in scenarios}
    floors: list[float] = []
    with on_one_cpu(), rig() as bench:
        for scenario in samples:
            bench.warm_up(scenario)
        for turn in range(runs):
            if progress:
                progress(turn)
            for scenario, taken in samples.items():
                floors.append(bench.floor(scenario))
                taken.append(bench.time(scenario))
    timings = tuple(Timing.of(scenario.name, taken) for scenario, taken in samples.items())
    return Report(os.uname().release, Timing.of("floor", floors).p50_ns, timings)


@dataclass(frozen=True, slots=True)
class Length:
    """How many batches of 32 packets a run has. The untimed ones come first: they fill caches."""

    timed: int = 2000
    """Some milliseconds."""
    untimed: int = 256
    """Twice round the 4096 flows of a diverse scenario."""


class Rig:
    """A load balancer with every scenario's service, and the wrapper to time it with."""

    def __init__(
        self, ifindex: int, balancer: Balancer, program: Program, wrapper: Wrapper, length: Length
    ) -> None:
        self.ifindex = ifindex
        self.program = program
        self.wrapper = wrapper
        self._balancer = balancer
        self._length = length
        self._services = {each.key: each for each in SERVICES}

    def record(self, capture: Capture) -> Recording:
        """Begin a capture."""
        return self._balancer.record(capture)

    def check(self, scenario: Scenario) -> None:
        """Send one packet. BenchError: it doesn't come out as the scenario says."""
        stimulus = self.stimulus(scenario)
        got = stimulus.once(self.program)
        expected = _action(scenario)
        if got.retval != expected:
            raise BenchError(
                f"{scenario.name}: the packet is XDP_{Action(got.retval).name}, "
                f"not XDP_{expected.name}"
            )
        if expected is Action.PASS:
            if got.data != stimulus.frame:
                raise BenchError(f"{scenario.name}: the packet passes, but not as it came")
            return
        try:
            self._check_sent(scenario, stimulus, got.data)
        except BenchError as error:
            raise BenchError(f"{scenario.name}: {error}") from error

    def stimulus(self, scenario: Scenario) -> Stimulus:
        """The scenario's packets. What a backend answers depends on what it was sent."""
        sent = scenario.stimulus(self.ifindex)
        if not scenario.reply:
            return sent
        return replace(sent, frame=reply_to(sent.once(self.program).data))

    def _check_sent(self, scenario: Scenario, stimulus: Stimulus, got: bytes) -> None:
        service = self._services[scenario.flow.key]
        backends = {backend.address for backend in service.backends}
        if service.forwarding == "l2":
            check_in_new_frame(stimulus.frame, got)
        elif scenario.reply:
            flow = scenario.flow
            check_translated(stimulus.frame, got, {flow.destination}, {flow.source})
        elif scenario.snat:
            check_translated(stimulus.frame, got, SNAT.ipv4, backends)
        else:
            check_encapsulated(stimulus.frame, got, backends, _BETWEEN.get(service.encap))

    def warm_up(self, scenario: Scenario) -> None:
        """Check the scenario, then send its packets until they all go its way."""
        self.check(scenario)
        if scenario.full:
            self._fill(scenario)
        for _ in range(_WARM_UPS):
            before = self._fresh(scenario)
            self._time(self.program, scenario, _action(scenario))
            fresh = self._fresh(scenario) - before
            if self._goes_its_way(scenario, fresh):
                return
        raise self._astray(scenario, fresh)

    def time(self, scenario: Scenario) -> float:
        """Return nanoseconds per packet, the mean of a run."""
        before = self._fresh(scenario)
        taken = self._time(self.program, scenario, _action(scenario))
        fresh = self._fresh(scenario) - before
        if not self._goes_its_way(scenario, fresh):
            raise self._astray(scenario, fresh)
        return taken

    def floor(self, scenario: Scenario) -> float:
        """The same of a program that does nothing."""
        return self._time(self.wrapper.floor, scenario, Action.TX)

    def _fill(self, scenario: Scenario) -> None:
        """Send as many flows as there is room for."""
        batches = Limits().nat_flows // self.wrapper.batch
        stimulus = self.stimulus(scenario)
        self.wrapper.time(self.program, stimulus, _action(scenario), batches=batches)

    def _time(self, program: Program, scenario: Scenario, expected: Action) -> float:
        if scenario.anew:
            self._forget_translations()
        stimulus = self.stimulus(scenario)
        timed, untimed = self._length.timed, self._length.untimed
        return self.wrapper.time(program, stimulus, expected, batches=timed, untimed=untimed)

    def _forget_translations(self) -> None:
        self._balancer.forget_translations()

    @property
    def _packets(self) -> int:
        return (self._length.timed + self._length.untimed) * self.wrapper.batch

    def _fresh(self, scenario: Scenario) -> int:
        """Return how many of the service's packets the flow table had no flow for so far."""
        counters = self._balancer.counters().services
        return sum(each.flows for each in counters if each.service.key == scenario.flow.key)

    def _goes_its_way(self, scenario: Scenario, fresh: int) -> bool:
        meant = self._packets if scenario.outcome is Outcome.HASHED else 0
        return abs(fresh - meant) <= _STRAY * self._packets

    def _astray(self, scenario: Scenario, fresh: int) -> BenchError:
        return BenchError(
            f"{scenario.name}: of {self._packets} packets {fresh} were of flows that the flow "
            f"table didn't have; meant is that {scenario.outcome.value}"
        )


_BETWEEN = {
    "gre": Between(47, 4),
    "fou": Between(17, 8),
    "gue": Between(17, 8),
    "gue0": Between(17, 12),
}


@contextmanager
def rig(length: Length | None = None) -> Iterator[Rig]:
    """Run the block with a load balancer in a network namespace of its own."""
    with (
        bench_network() as ifindex,
        Balancer([Device(DEVICE)], source=SOURCE, snat=SNAT, egress=AnyFrameEgress) as balancer,
        Wrapper() as wrapper,
    ):
        balancer.apply(SERVICES)
        with attached_program(ifindex) as program:
            yield Rig(ifindex, balancer, program, wrapper, length or Length())


def _action(scenario: Scenario) -> Action:
    return Action.PASS if scenario.outcome is Outcome.PASSED else Action.TX
