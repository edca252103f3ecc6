# SPDX-License-Identifier: Apache-2.0
"""Which packets are counted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from towpath.model.kinds import DeviceName, Integer

if TYPE_CHECKING:
    from towpath.model.decode import Findings, Tree
    from towpath.model.problems import FieldPath


@dataclass(frozen=True, slots=True)
class Section:
    """UDP packets over IPv4 that come in on a device. ``packets`` in the configuration."""

    device: Annotated[str, DeviceName()]
    """As ``ip link`` shows it."""
    first: Annotated[int, Integer(1, 65535)] = 1
    """The lowest destination port."""
    last: Annotated[int, Integer(1, 65535)] = 65535
    """The highest."""


def check(section: Tree, path: FieldPath, found: Findings) -> None:
    """Note what no field shows by itself. A field that is wrong already is not there."""
    first, last = section.get("first"), section.get("last")
    if first and last and first > last:
        found.add((*path, "last"), f"{last} is below first; allowed: {first} to 65535")
