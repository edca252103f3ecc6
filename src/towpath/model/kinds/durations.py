# SPDX-License-Identifier: Apache-2.0
"""Lengths of time."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from towpath.model.kinds.base import FieldError, Kind, shown

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_NUMBER = "0|[1-9][0-9]{0,8}"
_TEXT = re.compile("".join(rf"(?:({_NUMBER}){unit})?" for unit in "dhms"))


@dataclass(frozen=True)
class Duration(Kind):
    """Whole seconds from ``least`` to ``most``, written as a number or such as 90s, 10m, 1h30m."""

    least: int
    most: int

    def parse(self, raw: object) -> int:
        """Return the seconds."""
        seconds = self._seconds(raw)
        if not self.least <= seconds <= self.most:
            raise FieldError(f"{shown(raw)} is out of range; allowed: {self.allowed}")
        return seconds

    def _seconds(self, raw: object) -> int:
        if isinstance(raw, int) and not isinstance(raw, bool):
            return raw
        if isinstance(raw, str) and re.fullmatch(_NUMBER, raw):
            return int(raw)
        match = _TEXT.fullmatch(raw) if isinstance(raw, str) else None
        if not raw or match is None:
            raise FieldError(f"{shown(raw)} is not a length of time; allowed: {self.allowed}")
        counts = zip(match.groups(), reversed(_SECONDS.values()), strict=True)
        return sum(int(count or 0) * unit for count, unit in counts)

    @property
    def allowed(self) -> str:
        """What an error says is allowed."""
        examples = "seconds as a number, or with units such as 90s, 10m, 3h, 1h30m"
        return f"{examples}; {written(self.least)} to {written(self.most)}"

    def schema(self) -> dict[str, Any]:
        """Return a number or a text as JSON schema."""
        number = {"type": "integer", "minimum": self.least, "maximum": self.most}
        text = {"type": "string", "examples": ["90s", "10m", "3h", "1h30m"]}
        return {"anyOf": [number, text], "description": self.allowed}


def written(seconds: int) -> str:
    """Return seconds as people write them: 5400 is 1h30m."""
    parts = []
    for unit, size in reversed(_SECONDS.items()):
        count, seconds = divmod(seconds, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"
