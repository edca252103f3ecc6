# SPDX-License-Identifier: Apache-2.0
"""Whose ways differ, by what routes and rules there are."""

from __future__ import annotations

import pytest

from towpath.datapath.neigh.differences import Differ, Differences

TUNNEL, BACKEND, CLIENT = "tunnel", "backend", "client"


@pytest.mark.parametrize(
    ("why", "version", "vary", "expected"),
    [
        (Differences(), 4, True, set()),
        (Differences(fields=True), 4, False, {TUNNEL, BACKEND, CLIENT}),
        (Differences(sources=True), 4, False, {BACKEND, CLIENT}),
        (Differences(sources=True), 6, False, {BACKEND, CLIENT}),
        (Differences(sources=True), 4, True, {TUNNEL, BACKEND, CLIENT}),
        (Differences(backends=True), 4, False, {BACKEND}),
        (Differences(backends=True), 4, True, {TUNNEL, BACKEND}),
        (Differences(backends=True), 6, False, {TUNNEL, BACKEND}),
        (Differences(clients=True), 6, True, {CLIENT}),
    ],
)
def test_each_reason_has_its_own(
    why: Differences,
    version: int,
    vary: bool,  # noqa: FBT001 -- a case
    expected: set[str],
) -> None:
    """Where nothing can differ a next hop is kept for all."""
    differ = Differ.by(why, version, vary=vary)
    assert {name for name, so in differ._asdict().items() if so} == expected


@pytest.mark.parametrize(
    ("why", "expected"),
    [
        (Differences(), set()),
        (Differences(sources=True), {BACKEND, CLIENT}),
        (Differences(backends=True), {TUNNEL, BACKEND}),
    ],
)
def test_ports_of_udp_choose_among_next_hops(why: Differences, expected: set[str]) -> None:
    """Tunnels of UDP to one backend differ by flow, as outer sources may."""
    differ = Differ.by(why, 4, vary=False, ports=True)
    assert {name for name, so in differ._asdict().items() if so} == expected
