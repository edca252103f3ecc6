# SPDX-License-Identifier: Apache-2.0
"""What can go wrong when the wished-for state is written to the kernel."""

from __future__ import annotations

from towpath.errors import ConflictError


class DatapathError(ConflictError):
    """The datapath can't do what was asked; nothing was changed."""


class CapacityError(DatapathError):
    """A table is full. ``what`` names it, ``limit`` is its size, ``needed`` what was asked.

    ``setting``: which of the limits makes it larger, "" if none does.
    """

    def __init__(self, what: str, needed: int, limit: int, setting: str = "") -> None:
        self.what = what
        self.needed = needed
        self.limit = limit
        self.setting = setting
        remedy = f"; raise limits.{setting} and restart" if setting else ""
        super().__init__(f"{what}: {needed} needed, {limit} at most{remedy}")
