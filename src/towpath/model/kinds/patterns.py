# SPDX-License-Identifier: Apache-2.0
"""Lists of devices by name, or by how their names begin."""

from __future__ import annotations

from typing import Any

from towpath.model.kinds.base import FieldError, Kind, shown
from towpath.model.kinds.names import DeviceName


def matches(pattern: str, name: str) -> bool:
    """Whether a device's name is what a pattern says: itself, or begins like ``veth*``."""
    if pattern.endswith("*"):
        return name.startswith(pattern[:-1])
    return name == pattern


def may_match_both(one: str, other: str) -> bool:
    """Whether there can be a device that both patterns match."""
    if one.endswith("*") and other.endswith("*"):
        return one.startswith(other[:-1]) or other.startswith(one[:-1])
    return matches(one, other.rstrip("*")) or matches(other, one.rstrip("*"))


class DevicePatterns(Kind):
    """A list of devices; ``*`` at the end of a name stands for whatever follows."""

    allowed = "a list of devices' names, such as [cni0, veth*], each with a * at its end at most"

    def parse(self, raw: object) -> tuple[str, ...]:
        """Return the patterns in the order given; one by itself is a list too."""
        items = raw if isinstance(raw, list | tuple) else [raw]
        if not items or raw is None:
            raise FieldError(f"no device is named; allowed: {self.allowed}")
        return tuple(self._pattern(item) for item in items)

    def _pattern(self, item: object) -> str:
        if not isinstance(item, str):
            raise FieldError(f"{shown(item)} is no device's name; allowed: {self.allowed}")
        stem = item.removesuffix("*")
        if "*" in stem:
            raise FieldError(f"{shown(item)} has a * before its end; allowed: {self.allowed}")
        if stem or item != "*":
            DeviceName().parse(stem)
        return item

    def schema(self) -> dict[str, Any]:
        """Return a list of texts as JSON schema."""
        return {"type": "array", "items": {"type": "string"}, "description": self.allowed}
