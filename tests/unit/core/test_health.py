# SPDX-License-Identifier: Apache-2.0
"""What results of checks make of a backend, and of its service."""

from __future__ import annotations

import random
from dataclasses import replace
from ipaddress import ip_address
from itertools import product
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from towpath.core.health import (
    TRANSITIONS,
    Event,
    Standing,
    State,
    carried,
    held,
    step,
    unable,
    verdicts,
)
from towpath.core.lb import states
from towpath.model import (
    AllFailed,
    Backend,
    BackendState,
    CheckType,
    Health,
    OnDown,
    Protocol,
    Service,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from towpath.core.health import Down

TCP = Health(CheckType.TCP)
ADDRESSES = [ip_address(f"192.0.2.{i}") for i in range(1, 5)]
WEB = Service(
    "web",
    ip_address("203.0.113.10"),
    80,
    backends=tuple(Backend(address, weight) for weight, address in enumerate(ADDRESSES, 1)),
    health=TCP,
)


def after(results: str, start: State = State.UNKNOWN, health: Health = TCP) -> Standing:
    """The standing after results, + for one that passed and - for one that failed."""
    standing = Standing(start, 0.0)
    for now, result in enumerate(results, 1):
        standing = step(standing, None if result == "+" else "refused", health, float(now))
    return standing


def test_the_table_is_whole() -> None:
    """Each state has an answer to each event, and leads to a state that is meant to be reached."""
    assert set(TRANSITIONS) == set(product(State, Event))
    assert set(TRANSITIONS.values()) == set(State) - {State.HELD}


@pytest.mark.parametrize(
    ("results", "state"),
    [
        ("", State.UNKNOWN),
        ("+", State.UP),
        ("-", State.UNKNOWN),
        ("--", State.UNKNOWN),
        ("---", State.DOWN),
        ("--+", State.UP),
        ("+-", State.FAILING),
        ("+--", State.FAILING),
        ("+---", State.DOWN),
        ("+--+--", State.FAILING),
        ("---+", State.RISING),
        ("---+-", State.DOWN),
        ("---+-+", State.RISING),
        ("---++", State.UP),
        ("---++-", State.FAILING),
    ],
)
def test_rise_2_and_fall_3(results: str, state: State) -> None:
    """Step by step, from a backend that was just added."""
    assert after(results).state is state


@pytest.mark.parametrize(("results", "state"), [("+", State.UP), ("-", State.DOWN)])
def test_one_result_decides_about_one_that_was_held(results: str, state: State) -> None:
    """It had no flows before: neither had anybody reason to think well of it."""
    assert after(results, State.HELD).state is state


def test_rise_1_and_fall_1_follow_every_result() -> None:
    """Without patience in either direction."""
    health = replace(TCP, rise=1, fall=1)
    assert [after("+-+-"[:n], health=health).state for n in range(1, 5)] == [
        State.UP,
        State.DOWN,
        State.UP,
        State.DOWN,
    ]


def test_which_states_get_flows() -> None:
    """Those of a backend that isn't known to be down."""
    assert {state for state in State if state.serves} == {State.UNKNOWN, State.UP, State.FAILING}


def test_a_flapping_backend_stays_as_it_is() -> None:
    """Fewer than three failures in a row, fewer than two passes in a row: no change."""
    up = after("+" + "--+" * 1000)
    assert up.state is State.UP
    assert all(after("+" + ("--+" * 3)[:n]).state.serves for n in range(10))
    down = after("---" + "+-" * 1000)
    assert down.state is State.DOWN
    assert not any(after("---" + ("+-" * 4)[:n]).state.serves for n in range(9))


@given(
    st.text("+-", max_size=60), st.integers(1, 5), st.integers(1, 5), st.sampled_from(list(State))
)
def test_a_change_takes_enough_results_in_a_row(
    results: str, rise: int, fall: int, start: State
) -> None:
    """By the plain meaning of rise and fall, whatever came before."""
    health = replace(TCP, rise=rise, fall=fall)
    standing, serves, fresh = Standing(start, 0.0), start.serves, start
    for n, result in enumerate(results, 1):
        before = standing
        standing = step(before, None if result == "+" else "no", health, float(n))
        first = fresh in {State.UNKNOWN, State.HELD} and before.state is fresh
        if results[:n].endswith("+" * rise) or (result == "+" and first):
            serves = True
        elif results[:n].endswith("-" * fall) or (result == "-" and before.state is State.HELD):
            serves = False
        assert standing.state.serves == serves
        assert (standing.error is None) == (result == "+")


def test_since_is_when_the_state_began() -> None:
    """And the last result has a time of its own."""
    standing = after("+++---")
    assert (standing.state, standing.since, standing.checked) == (State.DOWN, 6.0, 6.0)
    assert after("+++---" + "-" * 10).since == 6.0
    assert (after("++++").since, after("++++").checked, after("++++").streak) == (1.0, 4.0, 4)


def test_a_check_that_could_not_be_made_decides_nothing() -> None:
    """It is told, and neither counts as a failure nor ends a row of them."""
    before = after("+--")
    told = unable(before, "no ports left", 9.0)
    assert (told.state, told.streak, told.since) == (before.state, before.streak, before.since)
    assert (told.error, told.checked) == ("no ports left", 9.0)
    assert step(told, "refused", TCP, 10.0).state is State.DOWN


# What it means for services


def effective(services: Sequence[Service], down: Down) -> tuple[Service, ...]:
    """The services as the datapath gets them."""
    return states.effective(services, verdicts(services, down))


def takers(service: Service) -> list[int]:
    """Which backends get new flows, from 1 on; others are quarantined or have no weight."""
    for each in service.backends:
        assert each.state in {BackendState.ACTIVE, BackendState.QUARANTINED}
    return [at for at, backend in enumerate(service.backends, 1) if backend.takes_flows]


def test_what_is_down_is_quarantined() -> None:
    """The others are as they were, and a service without changes is the very same object."""
    other = replace(WEB, name="other", port=81)
    changed, same = effective([WEB, other], {WEB.key: {ADDRESSES[1], ADDRESSES[3]}})
    assert takers(changed) == [1, 3]
    assert replace(changed, backends=WEB.backends) == WEB
    assert same is other


@pytest.mark.parametrize(("wish", "left"), [(AllFailed.OPEN, [1, 2, 3, 4]), (AllFailed.CLOSED, [])])
def test_all_down(wish: AllFailed, left: list[int]) -> None:
    """All get flows as if they were up, or none."""
    service = replace(WEB, health=replace(TCP, on_all_failed=wish))
    (found,) = effective([service], {WEB.key: set(ADDRESSES)})
    assert takers(found) == left


def test_all_down_but_those_that_get_no_flows_anyway() -> None:
    """A drained backend doesn't count as one that is left, and stays drained."""
    backends = (replace(WEB.backends[0], weight=0), *WEB.backends[1:])
    (found,) = effective([replace(WEB, backends=backends)], {WEB.key: set(ADDRESSES[1:])})
    assert takers(found) == [2, 3, 4]


def test_without_a_check_nothing_is_down() -> None:
    """Also when a check has just been taken away."""
    service = replace(WEB, health=None)
    assert effective([service], {WEB.key: set(ADDRESSES[:2])}) == (service,)
    assert effective([service], {WEB.key: set(ADDRESSES[:2])})[0] is service


def test_unknown_services_and_backends_are_ignored() -> None:
    """A verdict may be about what is just being removed."""
    gone = ip_address("192.0.2.99")
    assert effective([WEB], {WEB.key: {gone}, WEB.key._replace(port=99): {gone}}) == (WEB,)


def test_what_the_kernel_gives_no_flows_is_held() -> None:
    """If it is to be checked, is wanted to have flows, and was there before."""
    (before,) = effective([WEB], {WEB.key: set(ADDRESSES[:2])})
    assert held([WEB], [before]) == {WEB.key: set(ADDRESSES[:2])}
    drained = replace(WEB, backends=(replace(WEB.backends[0], weight=0), *WEB.backends[1:]))
    assert held([drained], [before]) == {WEB.key: {ADDRESSES[1]}}
    assert held([replace(WEB, health=None)], [before]) == {}
    assert held([WEB], []) == {}


def test_what_had_no_flows_under_another_vip_is_held() -> None:
    """The kernel knows no names: what is gone may be what has come with other packets."""
    (before,) = effective([WEB], {WEB.key: set(ADDRESSES[:2])})
    for changed in (
        replace(WEB, vip=ip_address("203.0.113.99")),
        replace(WEB, port=8080),
        replace(WEB, vip=ip_address("203.0.113.99"), port=8080, name="other"),
    ):
        assert held([changed], [before]) == {changed.key: set(ADDRESSES[:2])}
        # Where it is still there it is itself.
        assert held([WEB, changed], [before]) == {WEB.key: set(ADDRESSES[:2])}
    other = replace(WEB, protocol=Protocol.UDP)
    assert held([other], [before]) == {}
    others = tuple(Backend(ip_address(f"192.0.2.{number}")) for number in range(91, 95))
    assert held([replace(WEB, port=81, backends=others)], [before]) == {}


# What is known of a service whose packets are others by now

ELSEWHERE = ip_address("203.0.113.99")
DOWN: Down = {WEB.key: frozenset(ADDRESSES[:2])}


@pytest.mark.parametrize(
    "after",
    [
        replace(WEB, vip=ELSEWHERE),
        replace(WEB, port=81),
        replace(WEB, protocol=Protocol.UDP),
        replace(WEB, vip=ELSEWHERE, port=81, forwarding="l2", table_size=509),
        replace(WEB, name="renamed"),
        replace(WEB, health=replace(TCP, interval=9.0)),
    ],
    ids=["vip", "port", "protocol", "all", "name", "check"],
)
def test_a_verdict_goes_along(after: Service) -> None:
    """With the service's name, or with its packets."""
    assert carried(DOWN, [WEB], [after]) == {after.key: set(ADDRESSES[:2])}


def test_a_verdict_is_of_backends_that_are_there() -> None:
    """And of services that are checked."""
    moved = replace(WEB, vip=ELSEWHERE)
    assert carried(DOWN, [WEB], [replace(moved, backends=WEB.backends[1:])]) == {
        moved.key: {ADDRESSES[1]}
    }
    assert carried(DOWN, [WEB], [replace(moved, backends=WEB.backends[2:])]) == {}
    assert carried(DOWN, [WEB], [replace(moved, health=None)]) == {}
    assert carried(DOWN, [WEB], []) == {}
    assert carried({}, [WEB], [moved]) == {}


def test_services_that_change_places() -> None:
    """Each takes along what is known of itself; who comes to where one was begins anew."""
    other = replace(WEB, name="other", vip=ELSEWHERE)
    down: Down = {WEB.key: {ADDRESSES[0]}, other.key: {ADDRESSES[3]}}
    swapped = [replace(WEB, vip=ELSEWHERE), replace(other, vip=WEB.vip)]
    assert carried(down, [WEB, other], swapped) == {
        other.key: {ADDRESSES[0]},
        WEB.key: {ADDRESSES[3]},
    }
    new = replace(WEB, name="new")
    assert carried(DOWN, [WEB], [replace(WEB, vip=ELSEWHERE), new]) == {
        other.key: set(ADDRESSES[:2])
    }
    assert carried(DOWN, [WEB], [new]) == {new.key: set(ADDRESSES[:2])}


# What becomes of flows

UDP_WEB = replace(WEB, protocol=Protocol.UDP)


@pytest.mark.parametrize(
    ("service", "wish", "state"),
    [
        (WEB, None, BackendState.QUARANTINED),
        (WEB, OnDown.KEEP, BackendState.QUARANTINED),
        (WEB, OnDown.MOVE, BackendState.DOWN),
        (UDP_WEB, None, BackendState.DOWN),
        (UDP_WEB, OnDown.KEEP, BackendState.QUARANTINED),
        (UDP_WEB, OnDown.MOVE, BackendState.DOWN),
    ],
)
def test_flows_of_what_is_down(service: Service, wish: OnDown | None, state: BackendState) -> None:
    """They stay or go, as the service says, and where it doesn't as its protocol does."""
    assert service.health is not None
    service = replace(service, health=replace(service.health, on_down=wish))
    (found,) = effective([service], {service.key: {ADDRESSES[1]}})
    assert [each.state for each in found.backends] == [
        BackendState.ACTIVE,
        state,
        BackendState.ACTIVE,
        BackendState.ACTIVE,
    ]
    assert held([service], [found]) == {service.key: {ADDRESSES[1]}}


def test_a_wish_and_a_finding() -> None:
    """Who drains and is found down loses its flows where they are to go, else it keeps them."""
    draining = (replace(UDP_WEB.backends[0], state=BackendState.DRAINING), *UDP_WEB.backends[1:])
    for wish, state in ((OnDown.MOVE, BackendState.DOWN), (OnDown.KEEP, BackendState.DRAINING)):
        assert UDP_WEB.health is not None
        health = replace(UDP_WEB.health, on_down=wish)
        service = replace(UDP_WEB, backends=draining, health=health)
        (found,) = effective([service], {service.key: {ADDRESSES[0]}})
        assert found.backends[0].state is state


def test_held_backends_stay_without_flows_across_a_restart() -> None:
    """What is put into force at the start is what the kernel had."""
    generator = random.Random(7)  # noqa: S311 -- the same every time
    for _ in range(100):
        gone = {address for address in ADDRESSES if generator.random() < 0.5}
        before = effective([WEB], {WEB.key: gone})
        assert effective([WEB], held([WEB], before)) == before
