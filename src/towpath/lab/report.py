# SPDX-License-Identifier: Apache-2.0
"""What the demo shows: a table, a plot and a summary, all from the same figures."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from towpath.lab.errors import LabError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from towpath.lab.traffic import Answers

FAMILIES = ("ipv4", "ipv6")


@dataclass(slots=True)
class Distribution:
    """Who answered, by family, and who was expected to: shares of 0..1 by backend."""

    weights: Mapping[str, int]
    answers: Mapping[str, Answers]

    @property
    def requests(self) -> int:
        """Requests sent, both families."""
        return sum(one.requests for one in self.answers.values())

    @property
    def answered(self) -> int:
        """Requests answered, both families."""
        return sum(one.answers for one in self.answers.values())

    def expected(self, backend: str) -> float:
        """The share of flows that a backend's weight makes its own."""
        return self.weights[backend] / sum(self.weights.values())

    def served(self, family: str, backend: str) -> int:
        """Requests that a backend answered."""
        return self.answers[family].by_backend[backend]

    def share(self, family: str, backend: str) -> float:
        """The share of answers that a backend gave."""
        return self.served(family, backend) / (self.answers[family].answers or 1)

    def spread(self, family: str, backend: str) -> float:
        """Twice the standard deviation of the share that chance alone would cause."""
        expected = self.expected(backend)
        return 2 * math.sqrt(expected * (1 - expected) / (self.answers[family].requests or 1))

    def summary(self) -> dict[str, Any]:
        """The figures, as JSON has them."""
        return {
            "requests": self.requests,
            "answers": self.answered,
            "families": {
                family: {"requests": one.requests, "answers": one.answers}
                for family, one in self.answers.items()
            },
            "backends": {
                backend: {
                    "weight": self.weights[backend],
                    "expected_share": round(self.expected(backend), 6),
                    **{family: self.served(family, backend) for family in FAMILIES},
                }
                for backend in self.weights
            },
        }


def table(distribution: Distribution, title: str) -> Table:
    """Who answered how many, beside the share expected."""
    made = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    made.add_column("backend")
    for heading in ("weight", "expected", "IPv4", "share", "IPv6", "share"):
        made.add_column(heading, justify="right")
    for backend, weight in distribution.weights.items():
        cells = [backend, str(weight), f"{distribution.expected(backend):.1%}"]
        for family in FAMILIES:
            cells.append(str(distribution.served(family, backend)))
            cells.append(f"{distribution.share(family, backend):.1%}")
        made.add_row(*cells)
    made.add_section()
    totals = (distribution.answers[family] for family in FAMILIES)
    made.add_row(
        "answered",
        "",
        "",
        *(cell for one in totals for cell in (f"{one.answers}/{one.requests}", "")),
    )
    return made


def check_plotting() -> None:
    """Raise LabError, before anything is built, if plots cannot be drawn."""
    try:
        import matplotlib as _  # noqa: F401, PLC0415, ICN001  imported only to see whether it is there
    except ImportError:
        raise LabError("the demo's plot needs matplotlib: pip install 'towpath[demo]'") from None


def plot(distribution: Distribution, path: Path) -> None:
    """Draw the shares beside the expected ones as a PNG file, one picture for each family."""
    import matplotlib as mpl  # noqa: PLC0415  takes a second and only the demo needs it

    mpl.use("agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415  as above

    figure, all_axes = plt.subplots(1, len(FAMILIES), figsize=(10, 4.4), sharey=True, dpi=120)
    for axes, family in zip(all_axes, FAMILIES, strict=True):
        _draw(axes, distribution, family)
    all_axes[0].set_ylabel("share of answers, %")
    handles, labels = all_axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=len(handles), frameon=False)
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    figure.savefig(path)
    plt.close(figure)


def _draw(axes: Any, distribution: Distribution, family: str) -> None:
    backends = list(distribution.weights)
    served = [100 * distribution.share(family, backend) for backend in backends]
    expected = [100 * distribution.expected(backend) for backend in backends]
    spread = [100 * distribution.spread(family, backend) for backend in backends]
    bars = axes.bar(backends, served, color="#4c78a8", width=0.6, label="answered")
    counts = [str(distribution.served(family, one)) for one in backends]
    axes.bar_label(bars, counts, label_type="center", color="white")
    axes.errorbar(
        backends,
        expected,
        yerr=spread,
        fmt="_",
        color="#e45756",
        markersize=24,
        capsize=4,
        label="expected by weight, ±2 sd of chance",
    )
    answers = distribution.answers[family]
    name = {"ipv4": "IPv4", "ipv6": "IPv6"}[family]
    axes.set_title(f"{name}: {answers.answers} of {answers.requests} requests answered")
