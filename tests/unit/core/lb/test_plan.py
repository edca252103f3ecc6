# SPDX-License-Identifier: Apache-2.0
"""Plans, carried out on a model of the datapath that refuses every wrong order."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.core.model_datapath import Datapath

from towpath.core.lb import steps
from towpath.core.lb.options import FIELDS, Options
from towpath.core.lb.plan import Change, Transition, backends_gone, plan
from towpath.documents import ServiceName
from towpath.model import Affinity, Backend, BackendState, Protocol, Service, ServiceKey
from towpath.model.kinds import Ports

if TYPE_CHECKING:
    import random

    from towpath.model import Address

VIPS = [ip_address(text) for text in ("203.0.113.10", "203.0.113.11", "2001:db8::10")]
PORTS = [80, 443, Ports.of([(80, 90)]), Ports.of([(85, 95)]), Ports.of([(443, 443), (8000, 8001)])]
ADDRESSES = [ip_address(f"2001:db8:1::{host:x}") for host in range(1, 9)]
NETWORKS = (ip_network("198.51.100.0/24"),)


@st.composite
def services_of(draw: st.DrawFn) -> tuple[Service, ...]:
    """Some services, none of them twice."""
    drawn = draw(
        st.sets(
            st.builds(
                ServiceKey, st.sampled_from(VIPS), st.sampled_from(PORTS), st.sampled_from(Protocol)
            ),
            max_size=5,
        )
    )
    keys: list[ServiceKey] = []
    for key in sorted(drawn, key=lambda key: key.order):
        if not any(key.shared(other) for other in keys):
            keys.append(key)
    backends = st.dictionaries(
        st.sampled_from(ADDRESSES),
        st.tuples(st.integers(0, 3), st.sampled_from(BackendState)),
        max_size=5,
    )
    ids = st.sampled_from([(), (), (7,), (7, 9)])
    return tuple(
        Service(
            f"service-{number}",
            *key[:3],
            backends=tuple(
                Backend(address, *each, server_id=draw(ids))
                for address, each in draw(backends).items()
            ),
            table_size=draw(st.sampled_from([251, 257])),
            flow_table=draw(st.booleans()),
            scope=key.scope,
        )
        for number, key in enumerate(keys)
    )


def datapath_with(services: tuple[Service, ...]) -> Datapath:
    """A datapath that does what is given, through a plan."""
    datapath = Datapath()
    for step in plan((), services).steps:
        datapath.carry_out(step)
    return datapath


@given(services_of(), services_of())
def test_steps_lead_from_observed_to_desired(
    observed: tuple[Service, ...], desired: tuple[Service, ...]
) -> None:
    """Carried out in order, never leaving anything dangling, they do what is desired."""
    datapath = datapath_with(observed)
    datapath.assert_is(observed)
    for step in plan(observed, desired).steps:
        datapath.carry_out(step)
    datapath.assert_is(desired)
    assert not plan(datapath.observed(), desired).steps


@given(services_of(), services_of(), st.data())
def test_planning_again_after_a_crash_leads_to_the_same(
    observed: tuple[Service, ...], desired: tuple[Service, ...], data: st.DataObject
) -> None:
    """A process may die after any step."""
    datapath = datapath_with(observed)
    todo = plan(observed, desired).steps
    for step in todo[: data.draw(st.integers(0, len(todo)))]:
        datapath.carry_out(step)
    datapath.recover()
    for key, stay in stays(observed, desired).items():
        assert stay <= datapath.rooms[key].backends.keys()
        assert not stay & datapath.rooms[key].fresh
    for step in plan(datapath.observed(), desired).steps:
        datapath.carry_out(step)
    datapath.assert_is(desired)


def stays(
    observed: tuple[Service, ...], desired: tuple[Service, ...]
) -> dict[ServiceKey, set[Address]]:
    """The backends of each service that are there before and after, not down: flows go on."""
    before, after = (
        {
            each.key: {backend.address for backend in each.backends if backend.state != "down"}
            for each in services
        }
        for services in (observed, desired)
    )
    return {key: before[key] & after[key] for key in before.keys() & after.keys()}


@given(services_of(), services_of())
def test_services_that_stay_are_never_withdrawn(
    observed: tuple[Service, ...], desired: tuple[Service, ...]
) -> None:
    """No change of backends, options or names interrupts a service."""
    stay = {service.key for service in observed} & {service.key for service in desired}
    interrupting = steps.WithdrawService | steps.DiscardService | steps.CreateService
    found = plan(observed, desired).steps
    assert not [step for step in found if isinstance(step, interrupting) and step.key in stay]


@given(services_of(), st.randoms(use_true_random=False))
def test_order_and_names_make_no_steps(
    services: tuple[Service, ...], chance: random.Random
) -> None:
    """The same services in another order, of other names, need nothing done."""
    others = [
        replace(
            service,
            name=f"other-{service.name}",
            backends=tuple(chance.sample(service.backends, len(service.backends))),
        )
        for service in services
    ]
    chance.shuffle(others)
    found = plan(services, others)
    assert found.steps == ()
    assert found.plan.moved == 0
    assert [change.fields for change in found.plan.changes] == [("name",)] * len(services)
    assert plan(services, services) == Transition()
    assert plan(services, services).plan.empty


@given(services_of(), st.sampled_from(PORTS))
def test_a_service_that_gets_other_ports_keeps_all_else(
    services: tuple[Service, ...], ports: int | Ports
) -> None:
    """One step, which withdraws nothing; under another name too, if a port stays."""
    for service in services:
        others = [each for each in services if each is not service]
        changed = replace(service, port=ports)
        key = changed.key
        if key == service.key or any(key == o.key or key.shared(o.key) for o in others):
            continue
        found = plan(services, [*others, changed])
        assert found.steps == (steps.MoveService(service.key, key),)
        (change,) = found.plan.changes
        assert (change.fields, change.moved) == (("port",), 0)
        unnamed = plan(services, [*others, replace(changed, name="somebody")])
        stays = service.key.ports.overlap(key.ports)
        assert (unnamed.steps == found.steps) == (stays is not None)


def web(*weights: int, name: str = "web", table_size: int = 257, **options: Any) -> Service:
    """A service with backends of these weights, the first at ADDRESSES[0]."""
    return Service(
        name,
        VIPS[0],
        80,
        backends=tuple(Backend(*each) for each in zip(ADDRESSES, weights, strict=False)),
        table_size=table_size,
        **options,
    )


KEY = web().key


def test_addition_in_order() -> None:
    """Backends, then the table, then the service."""
    (first, second) = web(1, 2).backends
    found = plan((), [web(1, 2)])
    assert found.steps == (
        steps.CreateService(web(1, 2)),
        steps.AddBackends(KEY, (first, second)),
        steps.SetTable(KEY, (first, second)),
        steps.PublishService(KEY),
    )
    (change,) = found.plan.of("add")
    assert change.service == ServiceName.of(web(1, 2))
    assert found.changes == (Change(None, web(1, 2)),)
    assert change.backends_added == (first.address, second.address)
    assert change.moved == found.plan.moved == 0


def test_removal_in_order() -> None:
    """The service, then the table, then backends."""
    found = plan([web(1)], ())
    assert found.steps == (
        steps.WithdrawService(KEY),
        steps.SetTable(KEY, ()),
        steps.RemoveBackend(KEY, ADDRESSES[0]),
        steps.DiscardService(KEY),
    )
    (change,) = found.plan.of("remove")
    assert (change.service.key, change.backends_removed) == (KEY, (ADDRESSES[0],))
    assert change.moved == found.plan.moved == 1


def test_change_in_order() -> None:
    """New backends before the table, gone ones after it."""
    before = web(1, 1)
    new = Backend(ADDRESSES[7], 3)
    after = replace(before, backends=(Backend(ADDRESSES[1], 2), new), flow_table=False)
    found = plan([before], [after])
    assert found.steps == (
        steps.SetOptions(KEY, Options(257, flow_table=False)),
        steps.AddBackends(KEY, (new,)),
        steps.SetBackend(KEY, Backend(ADDRESSES[1], 2)),
        steps.SetTable(KEY, after.backends),
        steps.RemoveBackend(KEY, ADDRESSES[0]),
    )
    (change,) = found.plan.of("change")
    assert change.fields == ("flow_table",)
    assert change.backends_added == (new.address,)
    assert change.backends_reweighted == (ADDRESSES[1],)
    assert change.backends_removed == (ADDRESSES[0],)


def test_a_weight_from_zero_is_noted_last() -> None:
    """A backend that drained keeps its flows, whenever the process dies."""
    after = web(2, 3)
    assert plan([web(1, 0)], [after]).steps == (
        steps.SetBackend(KEY, after.backends[0]),
        steps.SetTable(KEY, after.backends),
        steps.SetBackend(KEY, after.backends[1]),
    )


def test_a_port_is_noted_and_no_table_made() -> None:
    """The same backends have the same shares."""
    before = web(1, 1)
    changed = replace(before.backends[1], port=8080)
    after = replace(before, backends=(before.backends[0], changed))
    for old, new in ((before, after), (after, before)):
        found = plan([old], [new])
        (change,) = found.plan.changes
        assert change.backends_redirected == (new.backends[1].address,)
        assert (change.backends_restated, change.backends_reweighted) == ((), ())
        assert change.moved == 0
        assert found.steps == (steps.SetBackend(KEY, new.backends[1]),)


def test_ids_are_given_on_before_anything_else() -> None:
    """All at once; whoever has nothing else that differs is not noted again."""
    one, other, gone = (
        Backend(address, server_id=ids)
        for address, ids in zip(ADDRESSES, [(1, 2), (3,), (4,)], strict=False)
    )
    before = replace(web(), protocol=Protocol.UDP, backends=(one, other, gone))
    heir = replace(one, server_id=(3, 4))
    drained = replace(other, state=BackendState.DRAINING, server_id=(2,))
    new = Backend(ADDRESSES[7], server_id=(1,))
    after = replace(before, backends=(heir, drained, new))
    found = plan([before], [after])
    assert found.steps == (
        steps.AddBackends(before.key, (new,)),
        steps.SetServerIds(before.key, (heir, drained)),
        steps.SetBackend(before.key, drained),
        steps.SetTable(before.key, after.backends),
        steps.RemoveBackend(before.key, gone.address),
    )
    (change,) = found.plan.changes
    assert change.backends_reidentified == (one.address, other.address)
    more = replace(before, backends=(replace(one, server_id=(1, 2, 5)), other, gone))
    for old, new_ in ((before, more), (more, before)):
        named = steps.SetServerIds(before.key, new_.backends[:1])
        found = plan([old], [new_])
        assert (found.steps, found.plan.moved) == ((named,), 0)


def restated(service: Service, **states: BackendState) -> Service:
    """The service with other states of its backends: `first`, `second`."""
    numbers = {"first": 0, "second": 1}
    backends = list(service.backends)
    for name, state in states.items():
        backends[numbers[name]] = replace(backends[numbers[name]], state=state)
    return replace(service, backends=tuple(backends))


def test_states_are_noted_in_order() -> None:
    """A backend leaves the table with its state noted, comes back noted last."""
    before = web(1, 1)
    after = restated(before, second=BackendState.DRAINING)
    found = plan([before], [after])
    (change,) = found.plan.changes
    assert change.backends_restated == (after.backends[1].address,)
    assert change.backends_reweighted == ()
    assert change.moved == pytest.approx(0.5, abs=0.01)
    noted = steps.SetBackend(KEY, after.backends[1])
    assert found.steps == (noted, steps.SetTable(KEY, after.backends))
    noted = steps.SetBackend(KEY, before.backends[1])
    assert plan([after], [before]).steps == (steps.SetTable(KEY, before.backends), noted)


def test_a_backend_goes_down_when_no_table_has_it() -> None:
    """Its flows then go where the table says, and none comes back to it."""
    before = web(1, 1)
    after = restated(before, first=BackendState.DOWN)
    noted = steps.SetBackend(KEY, after.backends[0])
    assert plan([before], [after]).steps == (steps.SetTable(KEY, after.backends), noted)
    drained = restated(before, first=BackendState.DRAINING)
    assert plan([drained], [after]).steps == (noted,)


def test_a_wish_and_a_finding_make_the_same_table() -> None:
    """Between draining and quarantined only the note changes."""
    drained, ill = (
        restated(web(1, 1), first=state)
        for state in (BackendState.DRAINING, BackendState.QUARANTINED)
    )
    assert plan([drained], [ill]).steps == (steps.SetBackend(KEY, ill.backends[0]),)


def test_backends_gone() -> None:
    """Those that services lose which stay, under another name or other ports too."""
    before = web(1, 1)
    after = replace(web(1), name="other", port=Ports.of([(80, 81)]))
    gone = Service("gone", VIPS[1], 80, backends=before.backends)
    assert backends_gone([before, gone], [after]) == ((before, after, before.backends[1]),)
    assert backends_gone([after], [before]) == ()
    assert backends_gone([before], [before]) == ()


def test_backends_without_weight_need_no_table() -> None:
    """To add or remove one that gets no flows leaves the table as it is."""
    found = plan([web(1)], [web(1, 0)])
    assert found.steps == (steps.AddBackends(KEY, (Backend(ADDRESSES[1], 0),)),)
    assert found.plan.moved == 0
    assert plan([web(1, 0)], [web(1)]).steps == (steps.RemoveBackend(KEY, ADDRESSES[1]),)


def test_options_that_no_table_depends_on_need_no_table() -> None:
    """The flow table is switched by itself."""
    found = plan([web(1)], [web(1, flow_table=False)])
    assert found.steps == (steps.SetOptions(KEY, Options(257, flow_table=False)),)


def test_options_are_fields_of_the_same_names() -> None:
    """All of a service but its name, what it is for, its backends, their health, and its routes."""
    others = {"name", "vip", "port", "protocol", "scope", "backends", "health", "route_from"}
    assert set(FIELDS) == set(Service.__slots__) - others
    each = web(1, flow_table=False, forwarding="l2", affinity=Affinity(9), allow_from=NETWORKS)
    assert replace(web(1), **Options.of(each).fields()) == each


@pytest.mark.parametrize(
    "changed",
    [{"forwarding": "l2"}, {"affinity": Affinity(600)}, {"allow_from": NETWORKS}],
    ids=lambda each: next(iter(each)),
)
def test_options_change_in_one_step(changed: dict[str, Any]) -> None:
    """There and back, and flows keep their backends."""
    before, after = web(1, 1), web(1, 1, **changed)
    for one, other in ((before, after), (after, before)):
        found = plan([one], [other])
        assert found.steps == (steps.SetOptions(KEY, Options.of(other)),)
        (change,) = found.plan.changes
        assert change.fields == tuple(changed)


def test_the_same_sources_in_other_words_are_no_step() -> None:
    """Two halves are the whole, and what is within another adds nothing."""
    texts = ("198.51.100.128/25", "198.51.100.0/25", "198.51.100.7/32")
    other = web(1, allow_from=tuple(map(ip_network, texts)))
    assert plan([web(1, allow_from=NETWORKS)], [other]).steps == ()


def test_share_moved_when_clients_are_hashed_instead_of_flows() -> None:
    """Another hash: a flow stays by chance only, as often as the weights have it."""
    one, other = web(1, 3), web(1, 3, affinity=Affinity())
    for before, after in ((one, other), (other, one)):
        assert plan([before], [after]).plan.moved == pytest.approx(1 - (1 / 16 + 9 / 16))
    assert plan([other], [web(1, 3, affinity=Affinity(5))]).plan.moved == 0
    assert plan([web()], [web(affinity=Affinity())]).plan.moved == 0


def test_a_vip_that_moves_to_another_name_stays_up() -> None:
    """Two services that swap their VIPs swap backends; no VIP is withdrawn."""
    one = web(1)
    other = Service("other", VIPS[1], 80, backends=(Backend(ADDRESSES[5]),), table_size=257)
    swapped = [replace(one, vip=other.vip), replace(other, vip=one.vip)]
    found = plan([one, other], swapped)
    assert [change.fields for change in found.plan.changes] == [("name",), ("name",)]
    assert {type(step) for step in found.steps} == {
        steps.AddBackends,
        steps.SetTable,
        steps.RemoveBackend,
    }
    assert found.plan.moved == 1


def test_share_moved_is_that_of_the_tables() -> None:
    """One of two backends leaves: half of the flows move; the overall share is weighed."""
    idle = Service("idle", VIPS[1], 80, backends=(Backend(ADDRESSES[0]),), table_size=257)
    found = plan([web(1, 1), idle], [web(1), idle])
    (change,) = found.plan.changes
    assert change.moved == pytest.approx(0.5, abs=0.01)
    assert found.plan.moved == pytest.approx(change.moved / 2)
    busy = plan([web(1, 1), idle], [web(1), idle], traffic={KEY: 3.0, idle.key: 1.0})
    assert busy.plan.moved == pytest.approx(change.moved * 3 / 4)


def test_another_table_size_moves_flows() -> None:
    """The share is of flows, not of slots: sizes may differ."""
    (change,) = plan([web(1, 1)], [web(1, 1, table_size=251)]).plan.changes
    assert 0 < change.moved < 1
    (change,) = plan([web(1)], [web(1, table_size=251)]).plan.changes
    assert change.moved == 0


def test_removals_make_room_first() -> None:
    """What goes away goes before anything new comes."""
    gone, new = web(1), Service("new", VIPS[1], 80)
    assert [change.action for change in plan([gone], [new]).plan.changes] == ["remove", "add"]


def test_a_service_given_twice_is_refused() -> None:
    """Two services for the same packets can't both be right."""
    with pytest.raises(ValueError, match=r"203\.0\.113\.10:80/tcp is given twice"):
        plan((), [web(1), web(2, name="again")])


@pytest.mark.parametrize("others", [0, 100])
def test_one_beside_a_service_that_stays_is_refused_too(others: int) -> None:
    """A service that stays as it is counts as given."""
    stays = web(1)
    more = [Service(f"s{port}", VIPS[1], port) for port in range(1, others + 1)]
    with pytest.raises(ValueError, match="is given twice"):
        plan([stays], [stays, web(2, name="again"), *more])
    with pytest.raises(ValueError, match="is given twice"):
        plan([stays], [stays, stays])
