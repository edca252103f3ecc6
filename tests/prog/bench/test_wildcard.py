# SPDX-License-Identifier: Apache-2.0
"""The wildcard benchmark compares what it says, and notices when ways disagree."""

from __future__ import annotations

import json
from ipaddress import IPv4Address

import pytest
from click.testing import CliRunner
from tests.unit.wildcard.oracle_wildcard import Oracle

from towpath.bench import BenchError
from towpath.bench.flavours import FLAVOURS
from towpath.bench.rulesets import columns, generate, matching_packets
from towpath.bench.wildcard import _check_agreement, measure
from towpath.bench.wildcard_rig import WAYS, WildcardRig, rules_of
from towpath.cli.main import cli
from towpath.wildcard import Packet

pytestmark = pytest.mark.host


def test_all_ways_find_what_the_oracle_says() -> None:
    """Table, list of masks and scan; and a rule that one of them lacks is noticed."""
    generated = generate(FLAVOURS["ipc"], 500, seed=4)
    packets = matching_packets(generated, 256, seed=4)
    with WildcardRig(4, 500, 256, others=True) as rig:
        oracle = Oracle()
        rules = rules_of(generated, 4)
        numbers, _ = rig.fill(rules)
        assert rig.fill_others() > 100
        oracle.rules = dict(zip(numbers, rules, strict=True))
        rig.ask(packets)
        expected = [
            oracle.lookup(
                Packet(IPv4Address(source[1]), IPv4Address(destination[1]), sport, dport, protocol)
            )[0]
            for source, destination, sport, dport, protocol in columns(packets)
        ]
        for way in WAYS:
            assert rig.answers(way, 256).tolist() == expected, way
        rig.table.delete(expected[0])
        with pytest.raises(
            BenchError, match=f"packet 0: rules finds rule .*, masks finds {expected[0]}"
        ):
            _check_agreement(rig, WAYS)


def test_a_report_has_every_way_and_kind_of_packet() -> None:
    """IPv4 with the other ways, IPv6 without; figures are in order."""
    (report,) = measure(["fw"], [300], runs=1).sets
    assert [(each.way, each.trace) for each in report.lookups] == [
        (way, trace) for trace in ("matching", "local", "random") for way in WAYS
    ]
    (report,) = measure(["fw"], [300], version=6, runs=2).sets
    assert [each.way for each in report.lookups] == ["rules"] * 3
    for each in report.lookups:
        assert 0 < each.timing.min_ns <= each.timing.p50_ns <= each.timing.max_ns
        assert each.cost is not None
        assert each.cost.mean_tuples <= each.cost.most
    assert report.floor_ns < report.lookups[0].timing.p50_ns
    assert report.changes.p50_us <= report.changes.p99_us <= report.changes.most_us


def test_the_command() -> None:
    """A table for people, JSON for programs, wrong usage told."""
    arguments = ["bench", "wildcard", "--set", "acl", "--rules", "200", "--runs", "1", "--alone"]
    shown = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert shown.exit_code == 0
    assert "matching" in shown.stdout
    assert "changes/s" in shown.stdout
    told = CliRunner().invoke(cli, [*arguments, "--json"], catch_exceptions=False)
    (only,) = json.loads(told.stdout)["sets"]
    assert (only["flavour"], only["rules"], only["masks"]) == ("acl", 200, 0)
    wrong = CliRunner().invoke(cli, ["bench", "wildcard", "--set", "nat"])
    assert wrong.exit_code == 2
    assert "'acl', 'fw', 'ipc'" in wrong.output
