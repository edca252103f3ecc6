# SPDX-License-Identifier: Apache-2.0
"""What is told of ways to connect, from times that are made up."""

from __future__ import annotations

from typing import Any

import pytest

from towpath.bench.errors import BenchError
from towpath.bench.socket import (
    IPVS,
    NFTABLES,
    NONE,
    TOWPATH,
    _check_backends,
    _check_carried,
    _Samples,
    _Taken,
    _Way,
)
from towpath.bench.socket_ipvs import connections_of
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


class Told:
    """A process that answers what it is told to."""

    def __init__(self, **answers: dict[str, Any]) -> None:
        self._answers = answers

    def ask(self, what: str, **_: Any) -> dict[str, Any]:
        """What was given for it."""
        return self._answers[what]


def way(carried: int, **answers: dict[str, Any]) -> _Way:
    """IPVS, which has carried so many connections."""
    return _Way(IPVS, 10, Told(**answers), carried=lambda: carried)  # type: ignore[arg-type]


@pytest.mark.parametrize("carried", [0, 99])
def test_a_way_that_has_not_carried_all_is_not_reported(carried: int) -> None:
    """By its own count."""
    made = {"connections": 100}
    with pytest.raises(BenchError, match=f"ipvs, 10 services: 100 .* has carried {carried}$"):
        _check_carried(way(carried, connected=made))
    _check_carried(way(100, connected=made))
    _check_carried(_Way(NFTABLES, 10, Told()))  # type: ignore[arg-type]


def test_a_way_that_leads_elsewhere_is_not_reported() -> None:
    """By the word of who has answered."""
    with pytest.raises(BenchError, match=r"is answered by 198\.18\.64\.6, which is no backend"):
        _check_backends(way(1, served_by={"backend": "198.18.64.6"}))


def test_connections_are_those_of_all_cpus() -> None:
    """Not the line for all of them, which is two seconds behind, nor rates."""
    told = """       Total Incoming Outgoing         Incoming         Outgoing
CPU    Conns  Packets  Packets            Bytes            Bytes
  0       1F        2        0              114                0
  1        2        0        0                0                0
  ~        5        2        0              114                0

     Conns/s   Pkts/s   Pkts/s          Bytes/s          Bytes/s
          77        0        0                0                0
"""
    assert connections_of(told) == 0x21
