# SPDX-License-Identifier: Apache-2.0
"""What of an object can't be served, or isn't believed."""

from __future__ import annotations

from typing import NamedTuple


class Refusal(NamedTuple):
    """Something of an object that isn't in force, for an Event and the source's status."""

    kind: str
    namespace: str
    name: str
    reason: str
    """In CamelCase, as Events have it."""
    message: str

    def __str__(self) -> str:
        where = f"{self.namespace}/{self.name}" if self.namespace else self.name
        return f"{self.kind} {where}: {self.message}"
