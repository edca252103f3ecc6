# SPDX-License-Identifier: Apache-2.0
"""Where a service comes from, which is the only place it can be changed."""

from typing import Annotated, Any, TypeAlias

from towpath.capabilities import ORIGINS
from towpath.model.kinds import FieldError, Kind, shown


class SourceName(Kind):
    """The name of a source of services."""

    def parse(self, raw: object) -> str:
        """Return the name."""
        names = [each.name for each in ORIGINS]
        if not isinstance(raw, str) or raw not in names:
            allowed = " or ".join(map(repr, names))
            raise FieldError(f"{shown(raw)} is no source of services; allowed: {allowed}")
        return raw

    def schema(self) -> dict[str, Any]:
        """Return the names as JSON schema."""
        return {"type": "string", "enum": [each.name for each in ORIGINS]}


Owner: TypeAlias = Annotated[str, SourceName()]
