# SPDX-License-Identifier: Apache-2.0
"""Draws what a socket that paces itself sends over time, with its stamps kept and without."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

NAME = "bandwidth-stamps.svg"
_MEGA = 1e6


def draw(results: Path, kernels: Sequence[str]) -> Path:
    """Draw a picture of what is in the results of these kernels; where it is."""
    import matplotlib as mpl  # noqa: PLC0415 - takes a second

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = NAME  # the same picture from the same results
    from matplotlib import pyplot as plt  # noqa: PLC0415 - as above

    figure, every = plt.subplots(1, len(kernels), figsize=(10, 3.6), sharey=True)
    for axes, kernel in zip(every, kernels, strict=True):
        _draw(axes, json.loads((results / f"bandwidth-{kernel}.json").read_text())["stamps"])
    every[0].set_ylabel("Mbit/s")
    handles, labels = every[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=len(handles), frameon=False)
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    path = results / NAME
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    return path


def _draw(axes: Any, stamps: dict[str, Any]) -> None:
    rates = [each / _MEGA for each in stamps["rates"]]
    axes.plot(stamps["times"], rates, color="#4c78a8", linewidth=1, label="arrived, each 10 ms")
    axes.axhline(stamps["pace"] / _MEGA, color="#54a24b", linestyle="--", label="the socket's pace")
    axes.axhline(stamps["limit"] / _MEGA, color="#e45756", linestyle=":", label="the pod's limit")
    series = ".".join(stamps["kernel"].split(".")[:2])
    axes.set_title(f"Linux {series}: stamps {'kept' if stamps['kept'] else 'reset'}")
    axes.set_xlabel("seconds")
    axes.set_ylim(bottom=0)
