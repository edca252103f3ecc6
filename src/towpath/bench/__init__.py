# SPDX-License-Identifier: Apache-2.0
"""Nanoseconds per packet, measured inside the kernel.

``wrapper`` times any XDP program; ``loadbalancer`` builds a network namespace with a load
balancer in it and times that, scenario by scenario.
"""

from __future__ import annotations

from towpath.bench.errors import BenchError
from towpath.bench.loadbalancer import measure
from towpath.bench.report import Report, Timing
from towpath.bench.scenarios import SCENARIOS, Scenario
from towpath.bench.wrapper import Stimulus, Wrapper

__all__ = [
    "SCENARIOS",
    "BenchError",
    "Report",
    "Scenario",
    "Stimulus",
    "Timing",
    "Wrapper",
    "measure",
]
