# SPDX-License-Identifier: Apache-2.0
"""Tables, JSON and YAML; traces and plans in words."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest
import yaml

from towpath.api.documents import Plan, ServiceChange, ServiceName, Trace
from towpath.cli.output import Format, count, emit, percent, print_table
from towpath.cli.plans import done, show_plan
from towpath.cli.trace import VERDICTS, steps
from towpath.kernel.bpf.object import BpfObject
from towpath.model import Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

Captured = pytest.CaptureFixture[str]
NAME = ServiceName("web", ip_address("2001:db8::10"), 80, Protocol.TCP)


def test_a_number_of_things_is_grouped() -> None:
    """Ports are no numbers of things."""
    assert count(1234567) == "1,234,567"


@pytest.mark.parametrize(
    ("share", "text"), [(0, "0 %"), (1, "100 %"), (0.5, "50.00 %"), (0.00012, "0.01 %")]
)
def test_a_share_is_a_percentage(share: float, text: str) -> None:
    """Nothing and everything without digits."""
    assert percent(share) == text


def test_a_table_in_a_pipe_is_never_cut(capsys: Captured) -> None:
    """However long its cells: a program reads them."""
    print_table(("name", "n"), [("x" * 500, 7), (None, True)], numbers=("n",))
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split() == ["x" * 500, "7"]
    assert lines[3].split() == ["-", "yes"]


@pytest.mark.parametrize(("form", "read"), [("json", json.loads), ("yaml", yaml.safe_load)])
def test_programs_get_all_of_it(
    capsys: Captured, form: Format, read: Callable[[str], object]
) -> None:
    """And no table."""
    data = {"b": [1, None, "é"], "a": True}
    emit(data, form, lambda: pytest.fail("a table was printed"))
    out = capsys.readouterr().out
    assert read(out) == data
    assert out.index("b") < out.index("a"), "order is as given"


PLAN = Plan(
    (
        ServiceChange("remove", NAME, backends_removed=(ip_address("192.0.2.1"),), moved=1.0),
        ServiceChange(
            "change",
            NAME,
            ("flow_table",),
            (ip_address("192.0.2.2"),),
            (ip_address("192.0.2.3"),),
            (ip_address("192.0.2.4"),),
            0.125,
        ),
        ServiceChange("add", NAME),
    ),
    steps=9,
    moved=0.5,
)


def test_a_plan_says_what_changes_and_what_moves(capsys: Captured) -> None:
    """For each service."""
    show_plan(PLAN, "table")
    text = capsys.readouterr().out
    lines = [line.split() for line in text.splitlines()]
    assert ["-", "web", "[2001:db8::10]:80/tcp", "-", "192.0.2.1", "100", "%"] in lines
    assert ["~", "web", "[2001:db8::10]:80/tcp", "flow_table", "12.50", "%"] in lines
    assert ["+", "192.0.2.2"] in lines
    assert ["-", "192.0.2.3"] in lines
    assert ["~", "weight", "of", "192.0.2.4"] in lines
    assert "9 steps; 50.00 % of all services' new flows move." in text


def test_a_plan_of_nothing_is_said_to_be(capsys: Captured) -> None:
    """In words and in one line."""
    show_plan(Plan(), "table")
    done(Plan())
    assert capsys.readouterr().out == "No change.\nNo change.\n"


def test_a_change_is_told_in_one_line(capsys: Captured) -> None:
    """Signs as in the plan."""
    done(PLAN)
    text = "-web ~web +web: 9 steps; 50.00 % of all services' new flows move\n"
    assert capsys.readouterr().out == text


def test_every_verdict_has_words() -> None:
    """Those of the program, no more and no fewer."""
    with BpfObject.packaged("lb") as program:
        names = program.btf.enum("verdict").__members__
    known = {name.removeprefix("VERDICT_").lower() for name in names} - {"max"}
    assert set(VERDICTS) == known


def test_a_trace_tells_of_affinity_and_of_a_packet_that_stays_as_it_came() -> None:
    """And of a source that is refused nothing but that."""
    trace = Trace(
        flow="198.51.100.7:40000 -> 203.0.113.10:80 tcp",
        device="eth0",
        verdict="tx",
        service=NAME,
        flow_hit=False,
        client_hit=True,
        backend=ip_address("192.0.2.11"),
        forwarding="l2",
    )
    told = dict(steps(trace))
    assert told["affinity"] == "hit: the client keeps the backend it has"
    assert told["forwarding"] == "l2: the packet as it came, to the backend's MAC address"
    assert "encapsulation" not in told
    told = dict(steps(replace(trace, client_hit=False)))
    assert told["affinity"] == "no hit: the client's address alone is hashed"
    refused = Trace(trace.flow, "eth0", "drop_source", NAME)
    assert [step for step, _ in steps(refused)] == ["packet", "service", "verdict"]


def test_a_trace_tells_every_decision_in_order() -> None:
    """From the packet to its verdict."""
    trace = Trace(
        flow="198.51.100.7:40000 -> [2001:db8::10]:80 tcp",
        device="eth0",
        verdict="redirect",
        service=NAME,
        hash=0xABC,
        flow_hit=False,
        slot=17,
        table_size=251,
        backend=ip_address("2001:db8::1"),
        encapsulation="ip6ip6",
        outer_source=ip_address("2001:db8::2"),
        fib_result="success",
        egress="eth1",
        vlan=7,
        source_mac="02:00:00:00:00:01",
        next_hop_mac="02:00:00:00:00:02",
        mtu=1500,
    )
    assert list(steps(trace)) == [
        ("packet", "198.51.100.7:40000 -> [2001:db8::10]:80 tcp, comes in on eth0"),
        ("service", "web: 2001:db8::10 port 80/tcp"),
        ("flow table", "no hit: a new flow, or one that has ended or been forgotten"),
        ("Maglev", "hash 0x00000abc, slot 17 of 251"),
        ("backend", "2001:db8::1"),
        ("encapsulation", "ip6ip6, 2001:db8::2 -> 2001:db8::1"),
        ("next hop", "success, 02:00:00:00:00:02"),
        ("leaves by", "eth1, VLAN 7, from 02:00:00:00:00:01, MTU 1500"),
        ("verdict", "redirect: sent out of another device"),
    ]


def test_a_trace_of_a_stranger_is_short() -> None:
    """What was not decided is not told."""
    told = list(steps(Trace("a -> b tcp", "eth0", "pass_no_vip")))
    assert [step for step, _ in told] == ["packet", "service", "verdict"]
    assert told[1] == ("service", "none: the destination is no VIP")


def test_a_known_flow_is_not_hashed() -> None:
    """The flow table answers before Maglev is asked."""
    trace = Trace("a -> b tcp", "eth0", "tx", NAME, flow_hit=True)
    told = list(steps(trace))
    assert ("flow table", "hit: the flow keeps the backend it has") in told
    assert "Maglev" not in [step for step, _ in told]
