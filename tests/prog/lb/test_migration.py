# SPDX-License-Identifier: Apache-2.0
"""Tables of another version, or of other limits, become this one's, and no flow notices."""

from __future__ import annotations

from contextlib import ExitStack, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from tests.guests import examples
from tests.prog.lb.frames import VIPS, flows, frame, made_for
from tests.prog.lb.harness import SMALL, Rig, pin_directories, rigged, service
from tests.prog.lb.harness_layout import VERSIONS, version
from tests.prog.lb.network import IN, NEAR, NO_ROUTE, Network
from tests.prog.lb.oracle import NO_BACKEND, NO_VIP, TX, XDP_TX
from tests.prog.lb.told import run_on

from towpath.datapath import balancer, host
from towpath.datapath.errors import CapacityError
from towpath.datapath.maps.pinned import READ
from towpath.datapath.migration import migration
from towpath.datapath.migration.migration import Migration
from towpath.datapath.program.attachment import Attachment
from towpath.kernel.bpf.object import BpfObject
from towpath.kernel.errors import LayoutError
from towpath.model import Backend, Limits, Protocol
from towpath.model.kinds import Ports

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path

    from towpath.documents import Counters, ServiceCounters
    from towpath.model import Service, ServiceKey

MANY = examples(300, 60)
LIMITS = {
    "more flows": replace(SMALL, flows=SMALL.flows * 8),
    "fewer flows": replace(SMALL, flows=1 << 14),
    "more of everything": Limits(
        services=300, backends=999, flows=1 << 19, table_slots=1 << 19, port_pages=99
    ),
    "less of everything": Limits(
        services=9, backends=30, flows=1 << 13, table_slots=1 << 14, port_pages=9
    ),
}
SOME = Ports.of([(8000, 8009), (9000, 9000)])
PORTS = (8000, 8005, 9000)


def frames() -> list[bytes]:
    """Of every kind of service, so many that sets have several flows."""
    return [
        *flows(MANY),
        *flows(MANY, 4, 17),
        *flows(MANY, 6),
        *(frame(4, vip=VIPS[4] + 1, dport=port, sport=sport) for port in PORTS for sport in (1, 2)),
        *(frame(4, vip=VIPS[4] + 2, sport=sport) for sport in range(1, 20)),
    ]


def fill(rig: Rig) -> None:
    """Give it services with a past: flows that are not where Maglev would send them now."""
    udp = Protocol.UDP
    first = (
        service(VIPS[4], *NEAR[4][:4]),
        service(VIPS[4], *NEAR[6][:3], protocol=udp),
        service(VIPS[6], *NEAR[6][:3]),
        service(VIPS[4] + 1, *NEAR[4][:2], port=SOME),
        service(VIPS[4] + 2, *NEAR[4][:2], flow_table=False),
        service(VIPS[4] + 3),
        service(VIPS[4] + 4, NO_ROUTE[4]),
    )
    rig.serve(*first)
    send(rig, frames())
    a, b, *_ = NEAR[4]
    second = (
        service(VIPS[4], Backend(a, 0), Backend(b, 7), *NEAR[4][3:6], table_size=509),
        service(VIPS[4], *NEAR[6][1:5], protocol=udp, flow_timeout=77),
        service(VIPS[6], Backend(NEAR[6][0], 5), *NEAR[6][1:3]),
        service(VIPS[4] + 1, Backend(a, 0), b, port=SOME),
        *first[4:],
    )
    rig.serve(*second)
    send(rig, frames())
    send(rig, [made_for(second[5]), made_for(second[6]), frame(4, vip=VIPS[4] + 9)])


def send(rig: Rig, made: list[bytes]) -> None:
    """Run frames through it as its oracle says, whose counters are another version's."""
    for each in made:
        judged, run = rig.world.judge(each, rig.devices[IN]), rig.run(each)
        assert (run.retval, run.data) == (judged.action, judged.frame)
        rig.world.remember(judged)


def succeeded(rig: Rig, before: Rig) -> None:
    """Let a rig's oracle know what the one before remembers."""
    rig.world.remembered = before.world.remembered
    rig.told(rig.balancer.observed())


def described(rig: Rig) -> dict[ServiceKey, Service]:
    """What the load balancer says that it has, whatever it is called and in whatever order."""
    return {
        each.key: replace(each, name="", backends=tuple(sorted(each.backends, key=str)))
        for each in rig.balancer.observed()
    }


def other(name: str) -> tuple[AbstractContextManager[None], Limits]:
    """How the load balancer of before was made."""
    if name in VERSIONS:
        return version(name), SMALL
    return nullcontext(), LIMITS.get(name, SMALL)


@pytest.mark.parametrize("name", [*VERSIONS, *LIMITS])
@pytest.mark.parametrize("back", [False, True], ids=["to", "from"])
def test_nothing_is_lost(net: Network, pins: Path, name: str, *, back: bool) -> None:
    """Services, backends, weights, slots, flows and counters, to the other one and from it."""
    made, limits = other(name)
    mine = nullcontext(), SMALL
    first, second = (mine, (made, limits)) if back else ((made, limits), mine)
    with first[0], rigged(net, pins=pins, limits=first[1]) as rig:
        fill(rig)
        observed = described(rig)
        counted = rig.balancer.counters()
        entries = len(rig.balancer.flow_table.entries())
    with second[0], rigged(net, pins=pins, limits=second[1]) as heir:
        assert not heir.balancer._maps.adopted
        succeeded(heir, rig)
        assert described(heir) == observed
        found = heir.balancer.counters()
        assert {k: v for k, v in found.verdicts.items() if v} == {
            k: v for k, v in counted.verdicts.items() if v
        }
        assert by_key(found) == by_key(counted)
        assert len(heir.balancer.flow_table.entries()) >= entries
        assert pin_directories(pins) == ["links", "maps"]
        remembered = len(heir.world.remembered)
        if back:
            send(heir, frames())
        else:
            for each in frames():
                heir.expect(each, TX)
        assert len(heir.world.remembered) == remembered
        if not back:
            heir.expect(made_for(service(VIPS[4] + 3)), NO_BACKEND)
            heir.expect(frame(4, vip=VIPS[4] + 9), NO_VIP)
            # It can be changed, too: nothing of the new tables is taken twice.
            fill(heir)


@pytest.mark.thorough
def test_the_flows_that_were_seen_last_find_room(net: Network, pins: Path) -> None:
    """In a table that is too small for all; those without go by Maglev."""
    count = 3000
    with rigged(net, pins=pins) as rig:
        rig.serve(service(VIPS[4], *NEAR[4][:3]))
        made = list(flows(count))
        send(rig, made)
        ways = rig.balancer._program.rows("flows")["way"]
        # The second half long ago.
        old = (ways["ref"] != 0) & (ways["sport"].astype(int) >= 1024 + count // 2)
        ways["seen"][old] -= 999
    small = replace(SMALL, flows=2048)
    with rigged(net, pins=pins, limits=small) as heir:
        succeeded(heir, rig)
        ports = heir.balancer.flow_table.entries().client_ports
        assert 1500 < len(ports) <= 2048
        young = (ports < 1024 + count // 2).sum()
        assert young > 0.9 * (count // 2)
        for each in made:
            judged, run = heir.world.judge(each, heir.devices[IN]), heir.run(each)
            assert (run.retval, run.data) == (judged.action, judged.frame)


@pytest.mark.thorough
def test_what_comes_meanwhile_comes_along(
    net: Network, pins: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flows that begin while there are two programs, with either; no count is lost."""
    early, late, both = (list(flows(MANY, start=1000 * n)) for n in (1, 2, 3))
    monkeypatch.setattr(balancer, "held", lambda _: nullcontext())
    after = Migration.after
    with ExitStack() as lives:
        with version("records"):
            rig = lives.enter_context(rigged(net, pins=pins))
        rig.serve(service(VIPS[4], *NEAR[4][:3]))
        send(rig, frames()[:MANY])

        def attached(*arguments: Any) -> Attachment:
            # The copy has been made, and the program of before is still on the device.
            send(rig, early + both)
            return Attachment(*arguments)

        def finished(migration: Migration) -> int:
            for each in late + both:
                migration._new.rows("flow_cpus")["tick"] = 0
                assert run_on(migration._new, each, rig.devices[IN]).retval == XDP_TX
                rig.world.remember(rig.world.judge(each, rig.devices[IN]))
            return after(migration)

        monkeypatch.setattr(host, "Attachment", attached)
        monkeypatch.setattr(Migration, "after", finished)
        limits = replace(SMALL, flows=SMALL.flows * 2)
        heir = lives.enter_context(rigged(net, pins=pins, limits=limits))
        succeeded(heir, rig)
        sent = MANY + len(early) + len(late) + 2 * len(both)
        assert heir.balancer.counters().verdicts["tx"] == sent
        assert len(heir.balancer.flow_table.entries()) == 4 * MANY
        heir.serve(service(VIPS[4], *NEAR[4][:3], Backend(NEAR[4][3], 99)))
        for each in frames()[:MANY] + early + late + both:
            assert not heir.expect(each, TX).fresh


@pytest.mark.thorough
def test_what_does_not_fit_is_refused(net: Network, pins: Path) -> None:
    """With the limit to raise; the load balancer of before goes on as it was."""
    with rigged(net, pins=pins) as rig:
        fill(rig)
    before = pinned(pins)
    for limits, setting in (
        (replace(SMALL, services=6), "services"),
        (replace(SMALL, backends=9), "backends"),
        (replace(SMALL, table_slots=2000), "table_slots"),
    ):
        with (
            pytest.raises(CapacityError, match=f"raise limits.{setting} and restart"),
            rigged(net, pins=pins, limits=limits),
        ):
            pass
        assert pinned(pins) == before
    with rigged(net, pins=pins) as heir:
        assert heir.balancer._maps.adopted
        succeeded(heir, rig)
        for each in frames():
            assert not heir.expect(each, TX).fresh or each[33] == 12


def pinned(pins: Path) -> dict[str, int]:
    """What is pinned, and the numbers of what."""
    return {
        str(path.relative_to(pins)): path.stat().st_ino
        for path in sorted(pins.rglob("*"))
        if path.is_file()
    }


def by_key(counters: Counters) -> dict[ServiceKey, ServiceCounters]:
    """Counters of services by what they are for: their names aren't in the kernel."""
    return {
        each.service.key: replace(each, service=replace(each.service, name="any"))
        for each in counters.services
    }


@pytest.mark.thorough
def test_a_table_that_is_missing_is_made(net: Network, pins: Path) -> None:
    """As in a version that didn't have it yet."""
    with rigged(net, pins=pins) as rig:
        fill(rig)
        counted, observed = rig.balancer.counters(), described(rig)
    for name in ("backend_drops", "backend_flows", "flow_cpus", "vlan_devices"):
        (pins / "maps" / name).unlink()
    with rigged(net, pins=pins) as heir:
        succeeded(heir, rig)
        assert described(heir) == observed
        for each in heir.balancer.counters().services:
            assert each.packets == counted.service(each.service.key).packets
            assert {b.flows for b in each.backends} <= {0}
        for made in frames():
            heir.expect(made, TX)


@pytest.mark.thorough
def test_what_can_not_be_read_is_refused(net: Network, pins: Path) -> None:
    """Without the table there is nothing to go by."""
    with rigged(net, pins=pins) as rig:
        fill(rig)
    (pins / "maps" / "services").unlink()
    before = pinned(pins)
    with (
        pytest.raises(LayoutError, match=r"can't read.*detach.*services is missing"),
        rigged(net, pins=pins),
    ):
        pass
    assert pinned(pins) == before


@pytest.mark.thorough
def test_every_table_has_its_way() -> None:
    """A map that comes to the program has to be thought of here."""
    with BpfObject.packaged("lb") as made:
        ways = (
            migration.PLANNED,
            migration.FLOWS,
            migration.CLIENTS,
            migration.COUNTERS,
            migration.MACHINE,
            migration.PASSING,
        )
        assert frozenset.union(*ways) == set(made.map_names)
        assert sum(map(len, ways)) == len(made.map_names)
        assert set(made.map_names) >= READ


# ---- What a dead process has left ----------------------------------------------------------------


def leave_pin(path: Path) -> None:
    """Pin something of no use."""
    with BpfObject.packaged("clock") as made:
        made.load()
        made.programs["jiffies"].pin(path)


@pytest.mark.thorough
def test_half_built_directories_are_removed(net: Network, pins: Path) -> None:
    """Of processes that have other numbers, too."""
    with rigged(net, pins=pins) as rig:
        fill(rig)
    for name in ("maps-new-1", "maps-next-new-99999"):
        (pins / name).mkdir()
        leave_pin(pins / name / "vips")
    with rigged(net, pins=pins) as heir:
        succeeded(heir, rig)
        assert pin_directories(pins) == ["links", "maps"]
        for each in flows(MANY):
            assert not heir.expect(each, TX).fresh
