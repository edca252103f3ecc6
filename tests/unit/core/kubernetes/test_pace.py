# SPDX-License-Identifier: Apache-2.0
"""When Services that change again and again are looked at."""

from __future__ import annotations

import pytest
from tests.unit.core.kubernetes.harness_cluster import NAME, Told

from towpath.core.kubernetes.pace import EACH_SECONDS, MOST_SECONDS, Pace

WEB = ("default", "web")
MANY = tuple(f"10.244.{number >> 8}.{number & 255}" for number in range(1, 1001))


@pytest.fixture
def told() -> Told:
    """A Service with as many endpoints as make it rest for longest, which is known."""
    made = Told()
    made.node()
    made.service()
    made.slice("web-a", *MANY)
    made.take()
    return made


def test_what_has_not_changed_for_a_while_is_taken_at_once(told: Told) -> None:
    """However many endpoints it has."""
    told.now += MOST_SECONDS + 0.001
    told.slice("web-a", *MANY[1:])
    assert told.cluster.next_due(told.now) == 0
    (found,) = told.cluster.take_due(told.now).put
    assert len(found.backends) == len(MANY) - 1


def test_what_comes_right_after_is_taken_together(told: Told) -> None:
    """Once the rest is over, and as it is by then."""
    for gone in range(1, 6):
        told.slice("web-a", *MANY[gone:])
        nothing = told.cluster.take_due(told.now)
        assert (nothing.put, nothing.remove, nothing.names) == ((), (), frozenset())
    assert told.cluster.next_due(told.now) == pytest.approx(MOST_SECONDS)
    assert len(told.cluster.services()[NAME].backends) == len(MANY)
    told.now += MOST_SECONDS + 0.001
    changed = told.cluster.take_due(told.now)
    assert [len(each.backends) for each in changed.put] == [len(MANY) - 5]
    assert changed.names == {WEB}
    assert told.cluster.next_due(told.now) is None


def test_another_service_does_not_wait_for_one_that_rests(told: Told) -> None:
    """Each rests for itself."""
    told.slice("web-a", *MANY[1:])
    other = {"name": "other", "namespace": "default", "uid": "s2"}
    told.service(meta=other, clusterIP="10.96.0.11", clusterIPs=["10.96.0.11"])
    assert told.cluster.next_due(told.now) == 0
    assert told.cluster.take_due(told.now).names == {("default", "other")}
    assert told.cluster.next_due(told.now) == pytest.approx(MOST_SECONDS)


def test_all_can_be_taken_whatever_rests(told: Told) -> None:
    """As for a list, which is compared with what is in force."""
    told.slice("web-a", *MANY[1:])
    assert told.cluster.take(told.now).names == {WEB}


def test_a_service_that_is_gone_rests_too(told: Told) -> None:
    """Its endpoints are gone as late as those of one that stays, and it doesn't rest any more."""
    told.slice("web-a", *MANY[1:])
    told.now += MOST_SECONDS + 0.001
    told.cluster.take_due(told.now)
    told.no_slice("web-a")
    assert not told.cluster.take_due(told.now).names
    told.now += MOST_SECONDS + 0.001
    assert told.cluster.take_due(told.now).names == {WEB}
    assert told.cluster.next_due(told.now) is None


def test_few_backends_rest_for_less() -> None:
    """In proportion to them; who has none doesn't."""
    pace = Pace()
    pace.looked_at(("a", "few"), 10, 1.0)
    pace.looked_at(("a", "none"), 0, 1.0)
    assert pace.due([("a", "few"), ("a", "none")], 1.0) == {("a", "none")}
    assert pace.next_due([("a", "few")], 1.0) == pytest.approx(10 * EACH_SECONDS)
    assert pace.next_due([("a", "few"), ("a", "unknown")], 1.0) == 0
    assert pace.next_due([("a", "few")], 1.0 + 11 * EACH_SECONDS) == 0
    assert pace.next_due([], 1.0) is None


def test_what_is_in_force_later_rests_from_then_on(told: Told) -> None:
    """So that where changes take long others get their turn."""
    told.now += MOST_SECONDS + 0.001
    told.slice("web-a", *MANY[1:])
    told.cluster.take_due(told.now)
    told.slice("web-a", *MANY[2:])
    told.now += 0.03
    told.cluster.in_force(told.now)
    assert told.cluster.next_due(told.now) == pytest.approx(MOST_SECONDS)
    told.now += MOST_SECONDS + 0.001
    told.cluster.in_force(told.now)
    assert told.cluster.next_due(told.now) == 0, "once"
