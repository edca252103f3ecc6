# SPDX-License-Identifier: Apache-2.0
"""What is served at each event that a real control plane's watches told."""

from __future__ import annotations

import pytest
from tests.unit.core.kubernetes.harness_recorded import RECORDED, Replay

NAMES = sorted(each.stem for each in RECORDED.glob("*.jsonl"))
MOST_BYTES = 100_000
LATE = [("", 0.0), ("Service", 0.012), ("Service", 0.05), ("EndpointSlice", 0.05)]
"""Which watch comes later, by how many seconds."""


def test_they_are_small() -> None:
    """Whoever clones this gets them."""
    assert NAMES == ["order", "ports", "reuse", "selector"]
    for name in NAMES:
        assert (RECORDED / f"{name}.jsonl").stat().st_size < MOST_BYTES


@pytest.mark.parametrize(("late", "seconds"), LATE)
def test_a_change_of_ports(late: str, seconds: float) -> None:
    """Endpoints are in no slice for a while, or in two: each is served all the time, once."""
    replay = Replay("ports", late, seconds)
    missing = twice = 0
    disagree = False
    for _ in replay.steps():
        ready, listed, served = replay.ready(), replay.listed(), replay.served()
        if not missing and not twice and not disagree and len(served) < len(ready):
            continue  # slices are made
        disagree |= len(replay.slice_ports()) > 1
        missing = max(missing, len(ready - listed.keys()))
        twice = max(twice, sum(number > 1 for number in listed.values()))
        assert set(served) == ready
        assert set(served.values()) <= {8080, 9090}
    assert disagree
    assert missing > 5
    assert twice > 5
    assert set(replay.served().values()) == {9090}
    assert replay.cluster.held() == 0


def test_a_selector_that_is_taken_away() -> None:
    """Slices freeze and are mirrored: who is in two counts once, and nobody is lost."""
    replay = Replay("selector")
    twice = whole = False
    dead: set[str] = set()
    for event in replay.steps():
        found = event["object"]
        if found["kind"] == "Pod" and event["type"] == "DELETED":
            dead.add(found["status"]["podIPs"][0]["ip"])
        served = replay.served()
        whole |= len(served) == 50
        if whole:
            assert len(served) == 50
            assert replay.ready() <= set(served)
        twice |= any(number > 1 for number in replay.listed().values())
    assert twice
    # Nobody says that it is dead: neither does kube-proxy know.
    assert dead
    assert dead <= set(replay.served())


def test_an_address_that_is_used_again() -> None:
    """It is listed as terminating and as ready: it gets connections from when it is ready."""
    replay = Replay("reuse")
    both = 0
    before: set[str] = set()
    for _ in replay.steps():
        served = set(replay.served())
        listed = replay.listed()
        assert served == set(listed)
        ended = {
            address
            for (kind, _), found in replay.there.items()
            if kind == "EndpointSlice"
            for each in found["endpoints"] or ()
            if each["conditions"].get("terminating")
            for address in each["addresses"]
        }
        both = max(both, len(ended & served))
        before |= served
    assert both
    assert set(replay.served()) == before == replay.ready()


@pytest.mark.parametrize(("late", "seconds"), LATE)
def test_events_of_two_kinds_in_any_order(late: str, seconds: float) -> None:
    """A slice may come before its Service, or go before it; one made anew has its own only."""
    replay = Replay("order", late, seconds)
    of_another = early = 0
    for event in replay.steps():
        found = event["object"]
        for (kind, name), service in list(replay.there.items()):
            if kind != "Service":
                continue
            uid = service["metadata"]["uid"]
            mine = {
                address
                for (of, _), each in replay.there.items()
                if of == "EndpointSlice" and each["metadata"]["ownerReferences"][0]["uid"] == uid
                for endpoint in each["endpoints"] or ()
                for address in endpoint["addresses"]
            }
            assert set(replay.served(name)) == mine
        if found["kind"] == "EndpointSlice":
            owner = found["metadata"]["labels"]["kubernetes.io/service-name"]
            current = replay.there.get(("Service", owner))
            uid = found["metadata"]["ownerReferences"][0]["uid"]
            of_another += current is not None and current["metadata"]["uid"] != uid
            early += event["type"] == "ADDED" and current is None
    assert of_another or early
    services = [name for kind, name in replay.there if kind == "Service"]
    assert len(services) == 10
    assert len(replay.known) == 10
    for name in services:
        assert set(replay.served(name)) == replay.ready()


@pytest.mark.parametrize("name", NAMES)
def test_whoever_begins_late_comes_to_the_same(name: str) -> None:
    """By a list of what is there at any time, and all that follows."""
    replay = Replay(name)
    list(replay.steps())
    for first in range(0, len(replay.events), 7):
        late = Replay(name)
        told, late.events = late.events, late.events[first:]
        there = {}
        for event in told[:first]:
            key = (event["object"]["kind"], event["object"]["metadata"]["name"])
            there[key] = event
            if event["type"] == "DELETED":
                del there[key]
        late.events = [*there.values(), *told[first:]]
        list(late.steps())
        assert plain(late) == plain(replay)


def plain(replay: Replay) -> dict[str, object]:
    """What is served in the end."""
    return {name: set(each.backends) for name, each in replay.known.items()}
