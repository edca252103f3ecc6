# SPDX-License-Identifier: Apache-2.0
"""Families that are text already, beside those that the library encodes."""

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING

from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector, CollectorRegistry

from towpath.agent.http.exposition import Ready, Rendering, escaped

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from prometheus_client.core import Metric

VALUE = 'a"b\\c\nd\u202e'
MANY = 100_000


def encoded_by_the_library() -> list[Metric]:
    """Three families, in all kinds that there are."""
    counter = CounterMetricFamily("one", "A \\ counter\nof it.", labels=("name", "zone"))
    counter.add_metric((VALUE, "x"), 2**53)
    counter.add_metric(("second", "y"), 0)
    gauge = GaugeMetricFamily("two", "A gauge.", labels=("name",))
    return [counter, gauge, InfoMetricFamily("three", "Info.", value={"version": "1"})]


def ready() -> list[Metric]:
    """The same, of which two are text already."""
    lines = f'one_total{{name="{escaped(VALUE)}",zone="x"}} 9007199254740992.0\n'
    return [
        Ready(
            "one",
            "A \\ counter\nof it.",
            "counter",
            (lines, 'one_total{name="second",zone="y"} 0.0\n'),
        ),
        Ready("two", "A gauge.", "gauge", ()),
        encoded_by_the_library()[2],
    ]


class Given(Collector):
    """Families as a registry has them."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        """All of them."""
        return self._families


def test_it_is_what_the_library_makes() -> None:
    """Names, types, descriptions, labels and values."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Given(encoded_by_the_library()))
    expected = generate_latest(registry).decode()
    made = b"".join(Rendering(ready()).text()).decode()
    assert list(text_string_to_metric_families(made)) == list(
        text_string_to_metric_families(expected)
    )
    assert made.replace("9007199254740992.0", "9.007199254740992e+15") == expected


def test_it_is_kept_compressed() -> None:
    """And in small pieces, of which the text is made again."""
    taken = []

    def lines() -> Iterator[str]:
        for n in range(0, MANY, 1000):
            taken.append(n)
            yield "".join(f"many {n + k}.0\n" for k in range(1000))

    rendering = Rendering([Ready("many", "Many.", "gauge", lines())])
    assert len(taken) == MANY // 1000
    text = b"".join(rendering.text())
    assert b"".join(rendering.text()) == text
    assert gzip.decompress(b"".join(rendering.packed)) == text
    assert text == b"# HELP many Many.\n# TYPE many gauge\n" + b"".join(
        b"many %d.0\n" % n for n in range(MANY)
    )
    assert rendering.size == len(text)
    assert sum(map(len, rendering.packed)) < len(text) / 3
    assert max(map(len, rendering.text())) <= 1 << 16
