# SPDX-License-Identifier: Apache-2.0
"""Dashboard, alerts and documentation speak of the metrics that the agent has, and of all."""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from tests.unit.agent.http.test_metrics import every_metric, parsed
from tests.unit.agent.lb.test_metrics import scraped

if TYPE_CHECKING:
    from collections.abc import Iterable

ROOT = Path(__file__).parents[3]
DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "towpath.json").read_text())
RULES = yaml.safe_load((ROOT / "deploy" / "prometheus" / "towpath.rules.yaml").read_text())
DOCUMENT = (ROOT / "docs" / "observability.md").read_text()

# What Prometheus adds to every series.
ADDED = {"instance", "job"}
WIDTH = 24


def exported() -> dict[str, set[str]]:
    """Every metric with its labels."""
    return {
        name: {label for label, _ in labels} | ADDED
        for name, labels in scraped() | parsed(every_metric())
    }


def panels() -> list[dict[str, Any]]:
    """The panels that show something."""
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def alerts() -> list[dict[str, Any]]:
    """Every alert."""
    return [rule for group in RULES["groups"] for rule in group["rules"]]


def expressions() -> dict[str, str]:
    """Everything that is asked of Prometheus, by where it stands."""
    found = {
        f"{panel['title']} {target['refId']} {panel['id']}": target["expr"]
        for panel in panels()
        for target in panel["targets"]
    }
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            found[f"${variable['name']}"] = variable["query"]["query"]
    return found | {rule["alert"]: rule["expr"] for rule in alerts()}


EXPRESSIONS = expressions()


def metrics(expression: str) -> set[str]:
    """The metrics in an expression."""
    return set(re.findall(r"\btowpath_\w+", expression))


def labels(expression: str) -> set[str]:
    """The labels that an expression selects or groups by."""
    selected = re.findall(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"", expression)
    grouped = [
        name.strip()
        for each in re.findall(r"\bby \(([^)]*)\)", expression)
        for name in each.split(",")
    ]
    return {*selected, *grouped}


@pytest.mark.parametrize("where", EXPRESSIONS)
def test_what_is_asked_for_is_exported(where: str) -> None:
    """Metrics, and labels that all metrics of the expression have."""
    there, expression = exported(), EXPRESSIONS[where]
    assert metrics(expression) <= there.keys()
    for metric in metrics(expression):
        assert labels(expression) <= there[metric], metric


def test_the_dashboard_shows_every_metric() -> None:
    """None is exported for nobody."""
    shown = {name for panel in panels() for t in panel["targets"] for name in metrics(t["expr"])}
    assert shown == exported().keys()


def test_every_metric_is_documented() -> None:
    """With all its labels; and nothing is documented that isn't there."""
    rows = re.findall(r"^\| `(towpath_\w+)` \| ([^|]*) \|", DOCUMENT, re.MULTILINE)
    documented = {name: set(re.findall(r"`(\w+)`", column)) | ADDED for name, column in rows}
    assert documented == exported()


def test_legends_and_texts_have_labels_that_are_there() -> None:
    """An unknown one would be left empty without a word."""
    for panel in panels():
        for target in panel["targets"]:
            known = labels(target["expr"]) | ({"instance"} if "by" not in target["expr"] else set())
            used = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            assert used <= known, panel["title"]
    for rule in alerts():
        grouped = re.findall(r"\bby \(([^)]*)\)", rule["expr"])
        known = set.intersection(*(exported()[name] for name in metrics(rule["expr"])))
        if grouped:
            known = {name.strip() for name in grouped[0].split(",")}
        used = set(re.findall(r"\$labels\.(\w+)", json.dumps(rule["annotations"])))
        assert used <= known, rule["alert"]


def test_variables_are_declared() -> None:
    """Those of Grafana's own begin with two underscores."""
    declared = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?([a-z]\w*)", json.dumps(DASHBOARD)))
    assert used == declared


def test_panels_have_a_place_each() -> None:
    """On the grid, none on another; ids are unique."""
    every = DASHBOARD["panels"]
    assert len({panel["id"] for panel in every}) == len(every)
    for panel in every:
        place = panel["gridPos"]
        assert 0 <= place["x"] < place["x"] + place["w"] <= WIDTH
    for one, other in combinations(every, 2):
        assert not overlap(one["gridPos"], other["gridPos"]), (one["title"], other["title"])


def overlap(one: dict[str, int], other: dict[str, int]) -> bool:
    """Whether two places have a cell in common."""
    return all(
        one[at] < other[at] + other[size] and other[at] < one[at] + one[size]
        for at, size in (("x", "w"), ("y", "h"))
    )


def test_reasons_that_alerts_name_are_verdicts() -> None:
    """As the program calls them."""
    from tests.unit.datapath.harness_program import BTF  # noqa: PLC0415 - needs the object

    known: Iterable[str] = (name.lower() for name in BTF.enum("verdict").__members__)
    verdicts = {name.removeprefix("verdict_") for name in known}
    named = {n for rule in alerts() for n in re.findall(r'reason!?="(\w+)"', rule["expr"])}
    assert named
    assert named <= verdicts
