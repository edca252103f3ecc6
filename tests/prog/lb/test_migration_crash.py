# SPDX-License-Identifier: Apache-2.0
"""A process that is killed at any line of an upgrade: packets go on, and the next one finishes.

The next one may be of the new version or of the old. Nothing of what was half done is left.
"""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from tests.guests import examples
from tests.prog.lb.frames import VIPS, flows, frame
from tests.prog.lb.harness import SMALL, Rig, pin_directories, rigged, service
from tests.prog.lb.harness_layout import version
from tests.prog.lb.network import IN, NEAR, OUT, Network
from tests.prog.lb.oracle import TX
from tests.prog.lb.test_crash import in_child

from towpath.datapath import balancer, host
from towpath.datapath.balancer import Balancer
from towpath.datapath.maps import pins as pins_module
from towpath.datapath.migration import migration
from towpath.datapath.program import attachment, egress, forwarding, program, switches, tags
from towpath.datapath.program.egress import AnyFrameEgress
from towpath.kernel.bpf import bpffs, notes, probe
from towpath.kernel.bpf.links import xdp_program_id
from towpath.kernel.bpf.programs import Program
from towpath.model import Backend, Device
from towpath.model.kinds import Ports

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import FrameType

pytestmark = pytest.mark.thorough

MODULES = (
    attachment,
    balancer,
    bpffs,
    egress,
    forwarding,
    host,
    migration,
    notes,
    pins_module,
    program,
    switches,
    tags,
)
FILES = {each.__file__ for each in MODULES}
DEVICES = (IN, OUT)
KILLS = examples(18, 3)
MANY = examples(40, 10)
SPREAD = Ports.of([(8000, 8009)])
Line = tuple[str, int]


class Heirs:
    """Load balancers of one place, in turn of one version and of another."""

    def __init__(self, net: Network, where: Path, lives: ExitStack) -> None:
        self.net, self.where, self.lives = net, where, lives
        self.rig = self.enter("records")
        self.last = "records"

    def enter(self, name: str) -> Rig:
        """Let a load balancer of a version take over."""
        with ExitStack() as made_by:
            if name != "this":
                made_by.enter_context(version(name))
            return self.lives.enter_context(rigged(self.net, pins=self.where))


@pytest.fixture
def line(net: Network, pins: Path) -> Iterator[Heirs]:
    """The first of them, whose flows are not where Maglev would send them."""
    with ExitStack() as lives:
        made = Heirs(net, pins, lives)
        first = made.rig
        first.serve(*services(1, 1, 1))
        pass_through(first, frames())
        first.serve(*services(0, 1, 9))
        yield made


def services(*weights: int) -> tuple[Any, ...]:
    """One of each family, and one with many ports."""
    return tuple(
        service(
            VIPS[family] + number,
            *(Backend(a, w) for a, w in zip(NEAR[family], weights, strict=False)),
            port=port,
            table_size=251,
        )
        for family, number, port in ((4, 0, 80), (6, 0, 80), (4, 1, SPREAD))
    )


def frames() -> list[bytes]:
    """Flows of all of them."""
    spread = (frame(4, vip=VIPS[4] + 1, dport=8000 + n, sport=n + 1) for n in range(9))
    return [*flows(MANY), *flows(MANY, 6), *spread]


def pass_through(rig: Rig, made: list[bytes]) -> None:
    """Run frames as the oracle says, whatever version the program is of."""
    for each in made:
        judged, run = rig.world.judge(each, rig.devices[IN]), rig.run(each)
        assert (run.retval, run.data) == (judged.action, judged.frame)
        rig.world.remember(judged)


def lines_until_done(where: Path, name: str) -> list[Line]:
    """Every line that a take-over comes by, in the order of the first time, in another process."""
    reader, writer = os.pipe()

    def follow() -> None:
        seen: dict[Line, None] = {}

        def trace(frame: FrameType, event: str, _: object) -> Any:
            if frame.f_code.co_filename not in FILES:
                return None
            if event == "line":
                seen[frame.f_code.co_filename, frame.f_lineno] = None
            return trace

        take_over(where, name, trace)
        os.write(writer, "\n".join(f"{file}:{number}" for file, number in seen).encode())

    child = in_child(follow)
    os.close(writer)
    with os.fdopen(reader) as told:
        lines = [tuple(each.rsplit(":", 1)) for each in told.read().splitlines()]
    assert os.waitpid(child, 0) == (child, 0)
    return [(str(file), int(number)) for file, number in lines]


def take_over(where: Path, name: str, trace: Callable[..., Any]) -> None:
    """Do what an upgraded process does first, and end without a word."""
    with ExitStack() as made_by:
        if name != "this":
            made_by.enter_context(version(name))
        sys.settrace(trace)
        on = [Device(each) for each in DEVICES]
        Balancer(on, limits=SMALL, pins=where, egress=AnyFrameEgress)
        sys.settrace(None)


def die_at(where: Path, name: str, last: Line) -> None:
    """Be killed when a take-over comes to a line."""

    def trace(frame: FrameType, event: str, _: object) -> Any:
        if frame.f_code.co_filename not in FILES:
            return None
        if event == "line" and (frame.f_code.co_filename, frame.f_lineno) == last:
            os._exit(0)
        return trace

    child = in_child(lambda: take_over(where, name, trace))
    assert os.waitpid(child, 0) == (child, 0)


def assert_goes_on(rig: Rig) -> None:
    """Whichever program is on a device now: it does with every flow what it did before."""
    if not probe.test_run_context():
        return  # a program that is only found by its number can't be told the device
    for name in DEVICES:
        index = rig.devices[name]
        with Program.from_id(xdp_program_id(index)) as attached:
            for each in frames():
                judged = rig.world.judge(each, index)
                context = (0, len(each), 0, index, 0, 0)
                packed = b"".join(word.to_bytes(4, "little") for word in context)
                run = attached.test_run(each, ctx=packed)
                assert (run.retval, run.data) == (judged.action, judged.frame)


def test_death_at_any_line(pins: Path, line: Heirs) -> None:
    """Each time at another of the lines that come by, from the first to the last."""
    world, names = line.rig.world, ("this", "records")
    line.rig.balancer.close()
    by_target = {name: lines_until_done(pins, name) for name in names}
    assert all(len(lines) > 150 for lines in by_target.values())
    current = 1  # the last to take over was "records"
    for kill in range(KILLS):
        target = 1 - current
        lines = by_target[names[target]]
        die_at(pins, names[target], lines[len(lines) * (2 * kill + 1) // (2 * KILLS)])
        assert_goes_on(line.rig)
        # Every third time the new version is given up for the old one.
        heir_is = current if kill % 3 == 2 else target
        heir = line.enter(names[heir_is])
        heir.world.remembered = world.remembered
        heir.told(heir.balancer.observed())
        assert pin_directories(pins) == ["links", "maps"]
        pass_through(heir, frames())
        heir.balancer.close()
        line.rig, current = heir, heir_is
    last = line.enter("this")
    last.world.remembered = world.remembered
    last.told(last.balancer.observed())
    last.serve(*services(5, 0, 1))
    for each in frames():
        assert not last.expect(each, TX).fresh


@pytest.mark.parametrize("step", ["beside", "renamed", "both"])
def test_each_state_that_pins_can_be_left_in(pins: Path, line: Heirs, step: str) -> None:
    """Complete beside the old, the old one renamed, and both renamed: the flows are all there."""
    world = line.rig.world
    line.rig.balancer.close()
    where = {
        "beside": ("pins", "succeed", 1),
        "renamed": ("pins", "succeed", 3),
        "both": ("pins", "succeed", 4),
    }[step]
    first = pins_module_line(where[1]) + where[2]
    die_at(pins, "this", (pins_module.__file__, first))
    left = {
        "beside": ["links", "maps", "maps-next"],
        "renamed": ["links", "maps-next", "maps-old"],
        "both": ["links", "maps", "maps-old"],
    }
    assert pin_directories(pins) == left[step]
    assert_goes_on(line.rig)
    heir = line.enter("this")
    heir.world.remembered = world.remembered
    heir.told(heir.balancer.observed())
    assert pin_directories(pins) == ["links", "maps"]
    heir.serve(*services(5, 0, 1))
    for each in frames():
        assert not heir.expect(each, TX).fresh


def pins_module_line(function: str) -> int:
    """The line of a function's docstring."""
    code = getattr(pins_module, function).__code__
    return int(code.co_firstlineno) + 1


def test_limits_apart_from_versions(net: Network, pins: Path, line: Heirs) -> None:
    """After a death the next one may want yet another size: what is there is taken from either."""
    world = line.rig.world
    line.rig.balancer.close()
    first = pins_module_line("succeed") + 1
    die_at(pins, "this", (pins_module.__file__, first))
    larger = replace(SMALL, flows=SMALL.flows * 2, services=99)
    with rigged(net, pins=pins, limits=larger) as heir:
        heir.world.remembered = world.remembered
        heir.told(heir.balancer.observed())
        assert pin_directories(pins) == ["links", "maps"]
        for each in frames():
            assert not heir.expect(each, TX).fresh
