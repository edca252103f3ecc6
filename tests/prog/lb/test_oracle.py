# SPDX-License-Identifier: Apache-2.0
"""The harness notices: whatever the oracle says wrong, or is done besides, fails a check."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from tests.prog.lb.frames import VIPS, frame
from tests.prog.lb.harness import Rig, service
from tests.prog.lb.network import IN, NEAR, NEAR_UNRESOLVED
from tests.prog.lb.oracle import HANDOFF, NO_VIP, TX, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable

    from towpath.kernel.bpf.programs import TestRun

FAMILIES = [4, 6]


@pytest.fixture(autouse=True)
def served(rig: Rig) -> None:
    """A service of each family, with flows that are known."""
    rig.serve(*(service(VIPS[family], *NEAR[family]) for family in FAMILIES))
    for family in FAMILIES:
        rig.expect(frame(family), TX)


def judging(rig: Rig, monkeypatch: pytest.MonkeyPatch, wrong: Callable[[Outcome], Outcome]) -> None:
    """Let the oracle say something else."""
    right = type(rig.world).judge

    def judge(world: Any, made: bytes, ifindex: int) -> Outcome:
        return wrong(right(world, made, ifindex))

    monkeypatch.setattr(type(rig.world), "judge", judge)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_bit_that_comes_out_is_compared(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, family: int
) -> None:
    """The frame's length too."""
    right = rig.expect(frame(family), TX).frame
    flipped = (
        right[:at] + bytes((right[at] ^ 1 << at % 8,)) + right[at + 1 :] for at in range(len(right))
    )
    for wrong in (right[:-1], right + b"\0", *flipped):
        with monkeypatch.context() as patch:
            judging(rig, patch, lambda outcome, wrong=wrong: replace(outcome, frame=wrong))  # type: ignore[misc]
            with pytest.raises(AssertionError):
                rig.check(frame(family))
    rig.expect(frame(family), TX)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "wrong",
    [
        {"verdict": "redirect"},
        {"verdict": HANDOFF},
        {"verdict": "drop_mtu"},
        {"length": 46},
        {"fresh": True},
        {"key": None},
        {"key": (VIPS[4], 81, 6)},
        {"backend": NEAR_UNRESOLVED[4]},
    ],
    ids=str,
)
def test_every_counter_is_compared(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, family: int, wrong: dict[str, Any]
) -> None:
    """Verdict, service, backend, bytes and flows."""
    judging(rig, monkeypatch, lambda outcome: replace(outcome, **wrong))
    with pytest.raises(AssertionError):
        rig.check(frame(family))


@pytest.mark.parametrize(
    ("table", "field"),
    [
        ("verdict_cpus", "packets"),
        ("service_cpus", "packets"),
        ("service_cpus", "dropped"),
        ("backend_cpus", "bytes"),
        ("backend_flows", ...),
    ],
)
def test_any_other_counter_that_moves_is_noticed(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, table: str, field: Any
) -> None:
    """Also those of indexes that nobody uses, on any CPU."""
    really = rig.run
    rows = rig.tables[table]
    for at in range(0, len(rows), 7):

        def run(made: bytes, device: str = IN, *, at: int = at) -> TestRun:
            rows[field][at] += 1
            return really(made, device)

        with monkeypatch.context() as patch:
            patch.setattr(rig, "run", run)
            with pytest.raises(AssertionError):
                rig.check(frame(4))
    rig.expect(frame(4), TX)


def test_a_frame_that_is_balanced_twice_is_noticed(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Same bytes and action, double counts."""
    really = rig.run

    def run(made: bytes, device: str = IN) -> TestRun:
        really(made, device)
        return really(made, device)

    monkeypatch.setattr(rig, "run", run)
    with pytest.raises(AssertionError):
        rig.check(frame(4))


def test_another_hash_is_noticed(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most flows then go elsewhere, and all have another label."""
    monkeypatch.setattr(rig.world, "seed", rig.world.seed + 1)
    rig.expect(frame(6, dport=81), NO_VIP)
    with pytest.raises(AssertionError):
        rig.check(frame(6))


def test_a_service_that_the_oracle_does_not_know_is_noticed(rig: Rig) -> None:
    """What the load balancer serves is not taken from what it says itself."""
    rig.balancer.apply([service(VIPS[4], *NEAR[4][:1])])
    with pytest.raises(AssertionError):
        rig.check(frame(6))
