# SPDX-License-Identifier: Apache-2.0
"""Lists of prefixes."""

from __future__ import annotations

from ipaddress import collapse_addresses
from typing import TYPE_CHECKING, Any

from towpath.model.kinds.addresses import Prefix, prefix_of
from towpath.model.kinds.base import FieldError, Kind, shown

if TYPE_CHECKING:
    from collections.abc import Iterable


def fewest(prefixes: Iterable[Prefix]) -> tuple[Prefix, ...]:
    """Return the fewest prefixes that have the same addresses, in order, IPv4 first."""
    by_version: dict[int, list[Any]] = {4: [], 6: []}
    for prefix in prefixes:
        by_version[prefix.version].append(prefix)
    return (*collapse_addresses(by_version[4]), *collapse_addresses(by_version[6]))


class Prefixes(Kind):
    """A list of prefixes or addresses of either family; None: there is no such list."""

    allowed = "a list of prefixes or addresses, such as [198.51.100.0/24, 2001:db8::/32, 192.0.2.7]"

    def parse(self, raw: object) -> tuple[Prefix, ...] | None:
        """Return the fewest prefixes that have the same addresses, in order."""
        if raw is None:
            return None
        if isinstance(raw, str):
            raw = raw.split(",")
        if not isinstance(raw, list | tuple):
            raise FieldError(f"{shown(raw)} is not a list; allowed: {self.allowed}")
        if not raw:
            raise FieldError(
                f"an empty list has no address at all; allowed: {self.allowed}, "
                "or no list for everyone"
            )
        return fewest(self._prefix(item) for item in raw)

    def _prefix(self, raw: object) -> Prefix:
        if isinstance(raw, Prefix):
            return raw
        if not isinstance(raw, str):
            raise FieldError(f"{shown(raw)} is not a prefix; allowed: {self.allowed}")
        return prefix_of(raw.strip(), f"allowed: {self.allowed}")

    def schema(self) -> dict[str, Any]:
        """Return an optional list of texts as JSON schema."""
        item = {"type": "string", "examples": ["198.51.100.0/24", "2001:db8::/32"]}
        listed = {"type": "array", "items": item, "minItems": 1}
        return {"anyOf": [listed, {"type": "null"}], "description": self.allowed}


class SourcePrefixes(Prefixes):
    """A list of prefixes that has to be there."""

    def parse(self, raw: object) -> tuple[Prefix, ...]:
        """Return the prefixes as they are: which one is the longest matters."""
        if isinstance(raw, str):
            raw = raw.split(",")
        if not isinstance(raw, list | tuple):
            raise FieldError(f"{shown(raw)} is not a list; allowed: {self.allowed}")
        if not raw:
            raise FieldError(f"an empty list has no address at all; allowed: {self.allowed}")
        return tuple(self._prefix(item) for item in raw)

    def schema(self) -> dict[str, Any]:
        """Return a list of texts as JSON schema."""
        listed: dict[str, Any] = super().schema()["anyOf"][0]
        return listed | {"description": self.allowed}
