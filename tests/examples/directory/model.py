# SPDX-License-Identifier: Apache-2.0
"""Which directory has services."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path  # noqa: TC003 - read from the annotations
from typing import Annotated

from towpath.model.kinds import AbsolutePath


@dataclass(frozen=True, slots=True)
class Section:
    """``directory`` in the configuration."""

    path: Annotated[Path, AbsolutePath()]
    """Each of its files ending in .yaml is as ``towpath service apply`` takes it."""
