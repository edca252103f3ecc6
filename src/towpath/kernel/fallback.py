# SPDX-License-Identifier: Apache-2.0
"""What is done another way because this kernel lacks something: the log says so, once."""

from __future__ import annotations

import logging
from functools import cache

log = logging.getLogger(__name__)


@cache
def fall_back(lacks: str, instead: str) -> None:
    """Say what there is not, and what is done instead."""
    log.info("no %s: %s", lacks, instead)
