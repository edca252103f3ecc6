# SPDX-License-Identifier: Apache-2.0
"""Which cgroup's processes programs of cgroups are for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path  # noqa: TC003 -- read by dataclasses' users
from typing import Annotated, Any, ClassVar

from towpath.model.kinds import AbsolutePath, OrNone
from towpath.model.service import PYDANTIC


@dataclass(frozen=True, slots=True)
class Section:
    """Where programs of cgroups are attached. ``cgroup`` in the configuration."""

    __pydantic_config__: ClassVar[Any] = PYDANTIC

    path: Annotated[Path | None, OrNone(AbsolutePath())] = None
    """The cgroup of version 2 whose processes they are for. null: the node's, which is found."""
