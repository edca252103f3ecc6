# SPDX-License-Identifier: Apache-2.0
"""What is to be limited: of the configuration, of a source, and set since."""

from __future__ import annotations

from ipaddress import ip_address

from towpath.datapath.bandwidth.beside import Needs, spared, told
from towpath.datapath.bandwidth.places import Located
from towpath.datapath.bandwidth.wanted import Aggregate, wanted
from towpath.kernel.net.shapers import Shaped
from towpath.model.bandwidth import Group, Pod, Section, Sourced

FIRST, SECOND = map(ip_address, ("10.244.0.5", "10.244.0.6"))
WEB = Pod("default:web", addresses=(FIRST,), egress=10_000_000, group="default:-all")
DB = Pod("default:db", addresses=(SECOND,), ingress=5_000_000)
ALL = Group("default:-all", egress=50_000_000)
SOURCED = Sourced("kubernetes", (WEB, DB), (ALL,))


def by_name(*given: Pod, sourced: Sourced = SOURCED, room: int = 16) -> dict[str, Aggregate]:
    """Aggregates of a configuration with some pods, and of a source."""
    found = wanted(Section(("eth0",), given, aggregates=room), {}, sourced)
    return {each.name: each for each in found.aggregates}


def test_a_sources_limits() -> None:
    """Groups first; their origin is the source."""
    found = by_name(Pod("own", device="veth1", egress=1_000_000))
    assert list(found) == ["default:-all", "own", "default:web", "default:db"]
    assert {each.origin for each in found.values()} == {"configuration", "kubernetes"}
    assert found["default:web"].group == "default:-all"
    assert found["default:web"].sourced
    assert not found["own"].sourced


def test_the_configuration_stands_before() -> None:
    """By name and by address; what that leaves out is told."""
    same = Pod("default:db", device="veth1", egress=1_000_000)
    there = Pod("mine", addresses=(FIRST,), egress=1_000_000)
    found = wanted(Section(("eth0",), (same, there)), {}, SOURCED)
    names = [each.name for each in found.aggregates]
    assert names == ["default:-all", "default:db", "mine"]
    assert set(found.left_out) == {"default:web", "default:db"}


def test_there_is_no_room_for_all() -> None:
    """As many as fit are limited; a pod without its group by itself."""
    found = wanted(Section(("eth0",), (), aggregates=2), {}, SOURCED)
    assert [each.name for each in found.aggregates] == ["default:-all", "default:web"]
    assert found.left_out == {"default:db": "there is no room for it: bandwidth.aggregates is 2"}


def test_a_change_of_a_sources_pod() -> None:
    """Holds while the pod is there; then it is no device's."""
    changes = {"default:web": {"egress": 1_000_000}, "veth9": {"egress": 2_000_000}}
    section = Section(("eth0",))
    found = {each.name: each for each in wanted(section, changes, SOURCED).aggregates}
    assert found["default:web"].limit.egress == 1_000_000
    assert found["default:web"].origin == "kubernetes, changed"
    without = [each.name for each in wanted(section, changes).aggregates]
    assert without == ["veth9"]


def test_beside_who_shapes_already() -> None:
    """Its limit holds, a group's as well, and no other; programs are where they are needed."""
    aggregates = list(by_name().values())
    located = Located({3: "default:web", 4: "default:db"}, {}, {})
    shaped = {3: Shaped(ingress="tbf of 1000 bit/s"), 4: Shaped(egress="htb")}
    found = {each.name: each for each in spared(aggregates, located, shaped)}
    assert (found["default:web"].limit.egress, found["default:web"].group) == (None, "default:-all")
    assert found["default:db"].limit.ingress is None
    needs = Needs(found.values(), located, shaped)
    assert (needs.tag(3), needs.receive(3)) == (True, True)
    assert (needs.tag(4), needs.receive(4)) == (False, False)
    first, second = told(located, shaped, {3: "veth3", 4: "veth4"})
    assert "default:web: its device veth3 is shaped already, what it sends by tbf" in first
    assert "default:db: its device veth4 is shaped already, what it receives by htb" in second
