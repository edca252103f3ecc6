# SPDX-License-Identifier: Apache-2.0
"""What is told of ways to connect, from times that are made up."""

from __future__ import annotations

from towpath.bench.socket import IPVS, NFTABLES, NONE, TOWPATH, _Samples, _Taken
from towpath.bench.socket_stale import Moved

TIMES = {NONE: 10.0, TOWPATH: 11.0, NFTABLES: 14.0, IPVS: 9.0}
MOVED = Moved(*[0] * len(Moved._fields))


def samples(*ways: str) -> _Samples:
    """One run of these ways, over both families."""
    made = _Samples()
    made.add(
        {
            (way, 0 if way == NONE else 10, version): _Taken([TIMES[way]], [1.0], [1.0])
            for way in (NONE, *ways)
            for version in (4, 6)
        }
    )
    return made


def test_a_way_that_adds_nothing_has_no_ratio() -> None:
    """And takes nobody else's away."""
    report = samples(TOWPATH, NFTABLES, IPVS).report([10], {}, {}, {}, MOVED)
    told = report.as_json()
    assert told["added_ratio_to_nftables"] == {"10": 0.25}
    assert told["added_ratio_to_ipvs"] == {}
    assert {each["way"] for each in told["connect"]} == set(TIMES)


def test_a_way_that_is_left_out_is_told() -> None:
    """With its reason."""
    told = samples(TOWPATH, NFTABLES).report([10], {IPVS: "why"}, {}, {}, MOVED).as_json()
    assert told["left_out"] == {IPVS: "why"}
    assert told["added_ratio_to_nftables"] == {"10": 0.25}
    assert "added_ratio_to_ipvs" not in told
