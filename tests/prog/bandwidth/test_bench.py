# SPDX-License-Identifier: Apache-2.0
"""The benchmark of what a limit costs, and limits by the hundred."""

from __future__ import annotations

import pytest

from towpath.bench.bandwidth_cost import SCENARIOS, measure_cost
from towpath.datapath.bandwidth.limits import Limit, row
from towpath.datapath.bandwidth.program import BandwidthProgram
from towpath.datapath.bandwidth.tables import Numbers
from towpath.datapath.bandwidth.wanted import Aggregate
from towpath.kernel.bpf import probe

SLOW, FAST = Limit(egress=1_000_000), Limit(egress=2_000_000)


def test_each_scenario_is_timed() -> None:
    """Packets go the way that they are said to, which is looked at."""
    if not probe.test_run_context():
        pytest.skip("this kernel runs no program as if its packet had come in by a device")
    found = measure_cost(runs=1)
    assert [each.name for each in found.scenarios] == [each.name for each in SCENARIOS]
    assert all(each.p50_ns > 0 for each in (found.floor, *found.scenarios))


def test_many_limits_are_set_and_their_numbers_begin_anew() -> None:
    """Names, limits and groups are in the rows; what another has had of a number is gone."""
    with BandwidthProgram(300) as program:
        limits, states = program.maps["bw_limits"], program.maps["bw_states"]
        counts, names = program.maps["bw_counts"], program.maps["bw_names"]
        numbers = Numbers(program)
        group = Aggregate("group", FAST, is_group=True)
        numbers.sync([group, *(Aggregate(f"pod-{i}", SLOW, group="group") for i in range(299))])
        assert len(set(numbers.by_name.values())) == 300
        number, kept = numbers.by_name["pod-7"], numbers.by_name["pod-8"]
        expected = row(program, SLOW, numbers.by_name["group"])
        assert limits.lookup(number).tobytes() == expected.tobytes()
        for each in (number, kept):
            state, count = states.lookup(each), counts.lookup(each)
            state["next"], count["egress_bytes"] = 5, 7
            states.update(each, state)
            counts.update(each, count)

        stay = [Aggregate(f"pod-{i}", FAST) for i in range(299) if i != 7]
        numbers.sync([*stay, Aggregate("new", SLOW), Aggregate("other", SLOW)])
        assert {"new", "other"} <= numbers.by_name.keys()
        assert number in (numbers.by_name["new"], numbers.by_name["other"])
        assert numbers.by_name["pod-8"] == kept
        assert not any(states.lookup(number).tobytes())
        assert not any(counts.lookup(number).tobytes())
        assert int(states.lookup(kept)["next"]) == 5
        assert counts.lookup(kept)["egress_bytes"].any()
        assert limits.lookup(number).tobytes() == row(program, SLOW).tobytes()
        assert limits.lookup(kept).tobytes() == row(program, FAST).tobytes()
        assert Numbers(program).by_name == numbers.by_name

        numbers.sync([])
        assert not any(names.lookup(kept).tobytes())
        assert not any(limits.lookup(kept).tobytes())
