# SPDX-License-Identifier: Apache-2.0
"""How late removed endpoints are still reached, from what slices and servers tell."""

from __future__ import annotations

import time
from typing import Any

from tools.kubernetes.churn_late import Listed, Syn, lateness, reached

A, B = "10.244.1.1", "10.244.1.2"


def event(kind: str, *ready: str, other: str | None = None) -> dict[str, Any]:
    """What a watch says of the one slice; ``other`` is terminating."""
    endpoints = [{"addresses": [each], "conditions": {"ready": True}} for each in ready]
    if other:
        endpoints.append({"addresses": [other], "conditions": {"ready": False}})
    return {"type": kind, "object": {"metadata": {"name": "web-1"}, "endpoints": endpoints}}


def test_who_is_late() -> None:
    """The last connection counts that came after an address had gone, and before it was back."""
    listed, began = Listed(), time.monotonic()
    for told in (event("ADDED", A, B), event("MODIFIED", B, other=A), event("MODIFIED", A, B)):
        listed.told(told)
    ((gone, back),) = listed.gone[A]
    assert began < gone < back < time.monotonic()
    assert not listed.gone[B]
    middle = (gone + back) / 2
    asked = {
        A: [
            Syn(gone - 1, 1, first=gone - 1),
            Syn(gone, 2, first=gone),
            Syn(middle, 3, "C", gone - 1),
            Syn(back + 1, 4, first=back + 1),
        ],
        B: [Syn(middle, 5)],
    }
    late = round(1000 * (middle - gone), 1)
    assert lateness(listed, asked, began) == {
        "removals": 1,
        **dict.fromkeys(("p50_ms", "p99_ms", "max_ms"), late),
        **dict.fromkeys(("begun_p99_ms", "begun_max_ms"), 0.0),
        "latest": [f"{A} from C 3 after {late:.0f} ms, asked for first after -1000 ms"],
    }
    assert lateness(listed, asked, back) == {"removals": 0}
    (told,) = reached(listed, asked, [(middle, middle, "refused", 3)])
    assert told["came_to"] == [f"{A} after 0.0 ms: gone for {1000 * (middle - gone):.0f} ms"]
    (told,) = reached(listed, asked, [(middle, middle, "refused", 99)])
    assert [each.split()[0] for each in told["came_to"]] == [A, A, B]
    (told,) = reached(listed, asked, [(middle, middle, "slow", 99)], sure=True)
    assert told["came_to"] == []


def test_who_comes_for_the_next_pod_is_not_late() -> None:
    """Slices may tell this later than who serves them."""
    listed, began = Listed(), time.monotonic()
    listed.told(event("ADDED", A, B))
    listed.told(event("MODIFIED", B))
    ((gone, _),) = listed.gone[A]
    listed.made(A)
    ((_, made),) = listed.spans(A)
    asked = {A: [Syn(gone, 1, first=gone), Syn(made, 2, first=made)]}
    assert lateness(listed, asked, began)["max_ms"] == 0
    assert listed.when(A, made).startswith("gone for")
    listed.told(event("MODIFIED", A, B))
    assert [*listed.spans(A)] == [(gone, made)]


def test_without_a_slice_nobody_is_there() -> None:
    """As when the Service is deleted."""
    listed = Listed()
    listed.told(event("ADDED", A))
    listed.told(event("DELETED", A))
    assert listed.now == frozenset()
    assert listed.when(A, time.monotonic()).startswith("gone for")
    assert listed.when(B, time.monotonic()) == "there"
