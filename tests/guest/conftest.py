# SPDX-License-Identifier: Apache-2.0
"""Tests that need devices and queueing disciplines which not every kernel has.

They run in the guests of `make kernels`, whose kernels have them: what is missing there
is a failure. Elsewhere only those are collected that find out what there is.
"""

from __future__ import annotations

import os
from pathlib import Path

ANYWHERE = {"test_degrade.py"}

collect_ignore = [
    path.name
    for path in Path(__file__).parent.glob("test_*.py")
    if path.name not in ANYWHERE and not os.environ.get("TOWPATH_GUEST")
]
