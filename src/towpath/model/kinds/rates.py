# SPDX-License-Identifier: Apache-2.0
"""Rates and sizes, written as Kubernetes writes quantities: 10M, 1G, 1.5Gi, 2e6."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from towpath.model.kinds.base import FieldError, Kind, shown

_UNITS = {"": 0, "k": 1, "M": 2, "G": 3, "T": 4, "P": 5}
_TEXT = re.compile(
    r"((?:0|[1-9][0-9]{0,17})(?:\.[0-9]{1,9})?)(?:([kMGTP]|[KMGTP]i)?|e([1-9][0-9]?))"
)


def quantity(raw: object) -> int | None:
    """Return the whole number that is meant, None if it is none.

    k, M, G, T, P stand for powers of 1,000; with an i (Ki, Mi, ...) for powers of 1,024.
    """
    if isinstance(raw, int) and not isinstance(raw, bool):
        return raw
    match = _TEXT.fullmatch(raw) if isinstance(raw, str) else None
    if match is None:
        return None
    number, unit, exponent = match.groups()
    if exponent:
        scale = 10 ** int(exponent)
    elif unit and unit.endswith("i"):
        scale = 1024 ** _UNITS[unit[0].replace("K", "k")]
    else:
        scale = 1000 ** _UNITS[unit or ""]
    found = Decimal(number) * scale
    return int(found) if found == int(found) else None


def written(number: int) -> str:
    """Return a number with the largest unit of 1,000 in which it is whole: 50000000 is 50M."""
    for unit, power in reversed(_UNITS.items()):
        if number and number % 1000**power == 0:
            return f"{number // 1000**power}{unit}"
    return str(number)


@dataclass(frozen=True)
class Quantity(Kind):
    """A whole number from ``least`` to ``most`` with a unit. ``of``: what is counted."""

    least: int
    most: int
    of: str
    why: str = ""
    """Why there is nothing below ``least``."""

    def parse(self, raw: object) -> int:
        """Return the number."""
        number = quantity(raw)
        if number is None:
            hint = "; K is written k" if isinstance(raw, str) and raw.endswith("K") else ""
            raise FieldError(f"{shown(raw)} is not a number of {self.of}{hint}; {self.allowed}")
        if not self.least <= number <= self.most:
            why = f" ({self.why})" if number < self.least and self.why else ""
            raise FieldError(f"{shown(raw)} is out of range{why}; {self.allowed}")
        return number

    @property
    def allowed(self) -> str:
        """What an error says is allowed."""
        limits = f"{written(self.least)} to {written(self.most)}"
        return f"allowed: {self.of}, such as 10M, 1G or 1Gi, from {limits}"

    def schema(self) -> dict[str, Any]:
        """Return a number or a text as JSON schema."""
        number = {"type": "integer", "minimum": self.least, "maximum": self.most}
        text = {"type": "string", "examples": ["10M", "1G", "1Gi"]}
        return {"anyOf": [number, text], "description": self.allowed}
