# SPDX-License-Identifier: Apache-2.0
"""Lists of addresses of single hosts."""

from __future__ import annotations

from typing import Any

from towpath.model.kinds.addresses import Address, UnicastAddress
from towpath.model.kinds.base import FieldError, Kind, shown


class Hosts(Kind):
    """A list of unicast addresses, each once; None: there is no such list."""

    allowed = "a list of unicast addresses, such as [10.244.0.7, fd00::7]"

    def parse(self, raw: object) -> tuple[Address, ...] | None:
        """Return the addresses in the order given; one by itself is a list too."""
        if raw is None:
            return None
        items = raw if isinstance(raw, list | tuple) else [raw]
        if not items:
            raise FieldError(f"no address is named; allowed: {self.allowed}")
        found = tuple(UnicastAddress().parse(item) for item in items)
        twice = next((each for each in found if found.count(each) > 1), None)
        if twice is not None:
            raise FieldError(f"{shown(str(twice))} is there twice; allowed: {self.allowed}")
        return found

    def schema(self) -> dict[str, Any]:
        """Return a list of texts as JSON schema."""
        return {"type": "array", "items": {"type": "string"}, "description": self.allowed}
