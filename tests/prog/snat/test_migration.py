# SPDX-License-Identifier: Apache-2.0
"""Translations that change while they are copied to other tables, at each point where they can."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.guests import examples
from tests.prog.lb.network import IN, NEAR
from tests.prog.lb.oracle import TX, XDP_DROP, XDP_PASS, XDP_TX
from tests.prog.lb.told import run_on
from tests.prog.snat.harness import (
    NARROW,
    NAT_SMALL,
    PORTS,
    SNAT,
    SOURCES,
    NatRig,
    answer,
    client_frame,
    established,
    nat_rigged,
    port_of,
    snat_service,
)
from tests.prog.snat.oracle import NatOutcome

from towpath.datapath import balancer, host
from towpath.datapath.migration.migration import Migration
from towpath.datapath.program.attachment import Attachment
from towpath.kernel.bpf.maps import Map

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.prog.lb.network import Network
    from tests.prog.lb.oracle import Outcome

    from towpath.datapath.program.program import LoadedProgram

pytestmark = pytest.mark.thorough
MANY = examples(60, 20)
READS = 4
"""Of both, in one copying."""
LARGER = replace(NAT_SMALL, nat_flows=1 << 16)
SMALLER = replace(NAT_SMALL, nat_flows=1 << 12)
FIRST, SECOND = NEAR[4][:2]


class Window:
    """A mapping that something happens beside, when its memory is about to be read."""

    def __init__(self, mapped: Any, happens: Callable[[], None]) -> None:
        self._mapped = mapped
        self._happens = happens

    @property
    def array(self) -> Any:
        """The memory."""
        self._happens()
        return self._mapped.array


@contextmanager
def beside(read: int, happens: Callable[[], None]) -> Iterator[None]:
    """Have something happen just before the old table is read, or its heads, for the nth time."""
    left = read
    mmap = Map.mmap

    def count() -> None:
        nonlocal left
        left -= 1
        if not left:
            happens()

    @contextmanager
    def watched(self: Map, *where: int, writable: bool = True) -> Iterator[Any]:
        with mmap(self, *where, writable=writable) as mapped:
            mine = self.name in {"nat_flows", "nat_heads"} and not writable
            yield Window(mapped, count) if mine else mapped

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Map, "mmap", watched)
        yield
    assert left <= 0


def halves(nat: NatRig) -> int:
    """Entries that the head of their set doesn't know of, from one side or the other."""
    refs = nat.balancer._program.rows("nat_flows")["way"]["ref"]
    heads = nat.balancer._program.rows("nat_heads")
    tags = [heads[side].copy().view(np.uint8).reshape(-1, 8) for side in ("forward", "reply")]
    return int(((refs != 0) & ((tags[0] == 0) | (tags[1] == 0))).sum())


def end(nat: NatRig, flow: Outcome) -> None:
    """Reset a connection and begin it anew, to whichever backend takes it."""
    assert isinstance(flow, NatOutcome)
    assert flow.flow is not None
    nat.check(answer(flow, flags="R"))
    nat.check(client_frame(sport=flow.flow.source_port))


def goes_both_ways(nat: NatRig, sport: int, backend: object = None) -> None:
    """A client's segment is sent on, and what comes back from where it went is translated."""
    out = nat.run(client_frame(sport=sport, flags="A"))
    assert out.retval == XDP_TX
    if backend is not None:
        assert out.data[30:34] == backend.packed  # type: ignore[attr-defined]
    back = nat.run(turned(out.data))
    assert back.retval == XDP_TX, f"what answers {sport} is nobody's"
    assert back.data[36:38] == sport.to_bytes(2, "big")


def turned(frame: bytes) -> bytes:
    """A TCP segment that answers one, its checksums as wrong as they then are."""
    return (
        frame[:12]
        + frame[12:22]
        + b"\x40"
        + frame[23:26]
        + frame[30:34]
        + frame[26:30]
        + frame[36:38]
        + frame[34:36]
        + frame[38:]
    )


def before_the_last_copy(
    patch: pytest.MonkeyPatch, happens: Callable[[LoadedProgram], None]
) -> None:
    """Have something happen when devices have the new program, which doesn't know all yet."""
    copied = Migration.translations
    calls: list[Migration] = []

    def copy(migration: Migration) -> int:
        calls.append(migration)
        if len(calls) == 2:
            happens(migration._new)
        return copied(migration)

    patch.setattr(Migration, "translations", copy)


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> Iterator[ExitStack]:
    """Load balancers of one place at a time, which are not kept from each other."""
    monkeypatch.setattr(balancer, "held", lambda _: nullcontext())
    with ExitStack() as lives:
        yield lives


@pytest.mark.parametrize("read", range(1, READS + 1))
@pytest.mark.parametrize("change", ["forgotten", "begun anew", "another's"])
def test_what_changes_between_two_reads(
    net: Network, pins: Path, two: ExitStack, read: int, change: str
) -> None:
    """Is copied whole or not at all, and works with the first packet after."""
    nat = two.enter_context(nat_rigged(net, pins=pins))
    nat.serve(snat_service(4, FIRST))
    flows = [established(nat, 4, 6, 1000 + n) for n in range(MANY)]

    def happens() -> None:
        if change == "forgotten":
            # A SYN on what has ended: forgotten, and there is no backend for it any more.
            nat.serve(snat_service(4))
        for each in flows[::2]:
            if change == "another's":
                nat.check(answer(each, flags="R"))
            else:
                end(nat, each)
        if change == "another's":
            nat.later(40)
            for n in range(MANY):
                established(nat, 4, 6, 30000 + n)

    with beside(read, happens):
        limits = LARGER if read % 2 else SMALLER
        heir = two.enter_context(nat_rigged(net, pins=pins, limits=limits))
    assert not heir.balancer._maps.adopted
    assert halves(heir) == 0
    heir.serve(snat_service(4, FIRST))
    for each in flows:
        assert isinstance(each, NatOutcome)
        assert each.flow is not None
        goes_both_ways(heir, each.flow.source_port)
    assert halves(heir) == 0


def test_a_flow_that_begins_anew_between_the_copies(
    net: Network, pins: Path, two: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Follows its last SYN: what was copied of it before is taken back."""
    nat = two.enter_context(nat_rigged(net, pins=pins))
    nat.serve(snat_service(4, FIRST))
    flows = [established(nat, 4, 6, 1000 + n) for n in range(MANY)]
    nat.serve(snat_service(4, FIRST, SECOND))
    moved: dict[int, Outcome] = {}

    def attached(*arguments: Any) -> Attachment:
        # The copy has been made, and the program of before is still on the device.
        for n, each in enumerate(flows):
            nat.check(answer(each, flags="R"))
            moved[1000 + n] = established(nat, 4, 6, 1000 + n)
        return Attachment(*arguments)

    monkeypatch.setattr(host, "Attachment", attached)
    heir = two.enter_context(nat_rigged(net, pins=pins, limits=LARGER))
    assert {each.backend for each in moved.values()} == {FIRST, SECOND}
    for sport, each in moved.items():
        goes_both_ways(heir, sport, each.backend)
        run = heir.run(client_frame(sport=sport, flags="A"))
        assert run.data[34:36] == port_of(each).to_bytes(2, "big")
    used = heir.balancer._program.rows("nat_flows")["way"]
    assert int((used["ref"] != 0).sum()) == MANY


def test_what_the_new_program_has_begun_stays(
    net: Network, pins: Path, two: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flow that ended in the old table, and was begun anew in the new one, isn't taken back."""
    nat = two.enter_context(nat_rigged(net, pins=pins))
    nat.serve(snat_service(4, FIRST))
    flows = [established(nat, 4, 6, 1000 + n) for n in range(MANY)]

    def happens(new: LoadedProgram) -> None:
        for n, each in enumerate(flows):
            # Both tables know the end; the old one a beginning, too, that nobody will go on with.
            end(nat, each)
            for made in (answer(each, flags="R"), client_frame(sport=1000 + n)):
                new.rows("flow_cpus")["tick"] = 0
                assert run_on(new, made, nat.devices[IN]).retval == XDP_TX

    before_the_last_copy(monkeypatch, happens)
    heir = two.enter_context(nat_rigged(net, pins=pins, limits=LARGER))
    for n in range(MANY):
        goes_both_ways(heir, 1000 + n)
    assert halves(heir) == 0


def test_an_answer_that_comes_too_early(
    net: Network, pins: Path, two: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before its flow is copied it is lost, as on the way: the kernel would reset the backend."""
    nat = two.enter_context(nat_rigged(net, pins=pins))
    nat.serve(snat_service(4, FIRST))
    begun: list[Outcome] = []

    def attached(*arguments: Any) -> Attachment:
        begun.extend(nat.expect(client_frame(sport=1000 + n), TX) for n in range(MANY))
        return Attachment(*arguments)

    def happens(new: LoadedProgram) -> None:
        runs = [run_on(new, answer(each), nat.devices[IN]) for each in begun]
        assert [each.retval for each in runs] == [XDP_DROP] * MANY

    monkeypatch.setattr(host, "Attachment", attached)
    before_the_last_copy(monkeypatch, happens)
    heir = two.enter_context(nat_rigged(net, pins=pins, limits=LARGER))
    assert heir.balancer.verdicts()["drop_nat_moving"] == MANY
    assert {heir.run(answer(each)).retval for each in begun} == {XDP_TX}
    nobodys = client_frame(vip=SOURCES[4], dport=SNAT.ports.first)
    assert heir.run(nobodys).retval == XDP_PASS


def test_a_port_that_is_taken_over_meanwhile(
    net: Network, pins: Path, two: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a flow whose time is over: no answer goes to the client of before."""
    nat = two.enter_context(nat_rigged(net, NARROW, pins=pins))
    nat.serve(snat_service(4, FIRST))
    for n in range(PORTS):
        nat.check(answer(established(nat, 4, 6, 1000 + n), flags="R"))
    nat.later(40)
    others: list[Outcome] = []

    def attached(*arguments: Any) -> Attachment:
        others.extend(established(nat, 4, 6, 2000 + n) for n in range(PORTS))
        return Attachment(*arguments)

    def happens(new: LoadedProgram) -> None:
        runs = [run_on(new, answer(each), nat.devices[IN]) for each in others]
        assert {each.retval for each in runs} == {XDP_DROP}

    monkeypatch.setattr(host, "Attachment", attached)
    before_the_last_copy(monkeypatch, happens)
    heir = two.enter_context(nat_rigged(net, NARROW, pins=pins, limits=LARGER))
    for n in range(PORTS):
        goes_both_ways(heir, 2000 + n)


def test_what_goes_on_finds_room_before_what_has_ended(
    net: Network, pins: Path, two: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a table that is too small for all, also for what comes while it is moved."""
    nat = two.enter_context(nat_rigged(net, pins=pins))
    nat.serve(snat_service(4, FIRST))
    for n in range(1500):
        nat.check(answer(established(nat, 4, 6, 1000 + n), flags="R"))
    early = [established(nat, 4, 6, 30000 + n) for n in range(MANY)]
    late: list[Outcome] = []

    def attached(*arguments: Any) -> Attachment:
        late.extend(established(nat, 4, 6, 31000 + n) for n in range(MANY))
        return Attachment(*arguments)

    monkeypatch.setattr(host, "Attachment", attached)
    small = replace(NAT_SMALL, nat_flows=1 << 10)
    heir = two.enter_context(nat_rigged(net, pins=pins, limits=small))
    assert {heir.run(answer(each, flags="A")).retval for each in early + late} == {XDP_TX}


@pytest.mark.parametrize("read", range(1, READS + 1))
def test_flows_look_as_far_as_their_entries_are(
    net: Network, pins: Path, two: ExitStack, read: int
) -> None:
    """Also those that begin between two reads, at an address and port that is not their first."""
    nat = two.enter_context(nat_rigged(net, NARROW, pins=pins))
    nat.serve(snat_service(4, FIRST))
    for n in range(PORTS // 2):
        established(nat, 4, 6, 1000 + n)

    def happens() -> None:
        for n in range(PORTS // 2, PORTS):
            established(nat, 4, 6, 1000 + n)

    with beside(read, happens):
        limits = SMALLER if read % 2 else LARGER
        heir = two.enter_context(nat_rigged(net, NARROW, pins=pins, limits=limits))
    assert max(nat.world.table.reach.values()) > 1
    for _ in range(2):
        for n in range(PORTS):
            goes_both_ways(heir, 1000 + n)
        (counted,) = heir.balancer.counters().services
        assert counted.flows == PORTS
