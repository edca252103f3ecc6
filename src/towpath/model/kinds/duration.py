# SPDX-License-Identifier: Apache-2.0
"""Spans of time, as people write them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from towpath.model.kinds.base import FieldError, Kind, shown

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_TEXT = re.compile(r"(\d{1,9})([smhd])")


@dataclass(frozen=True)
class Duration(Kind):
    """Whole seconds from ``least`` to ``most``: a number, or text such as 90s, 10m, 1h, 2d."""

    least: int
    most: int

    def parse(self, raw: object) -> int:
        """Return the seconds."""
        seconds = raw
        if isinstance(raw, str) and (match := _TEXT.fullmatch(raw.strip())):
            seconds = int(match[1]) * _UNITS[match[2]]
        if isinstance(seconds, bool) or not isinstance(seconds, int):
            raise FieldError(f"{shown(raw)} is no span of time; {self._allowed}")
        if not self.least <= seconds <= self.most:
            raise FieldError(f"{shown(raw)} is out of range; {self._allowed}")
        return seconds

    @property
    def _allowed(self) -> str:
        return f"allowed: {self.least} to {self.most} seconds, or such as 90s, 10m, 1h, 2d"

    def schema(self) -> dict[str, Any]:
        """Return a JSON schema of both ways."""
        return {
            "anyOf": [
                {"type": "integer", "minimum": self.least, "maximum": self.most},
                {"type": "string", "pattern": f"^{_TEXT.pattern}$"},
            ]
        }
