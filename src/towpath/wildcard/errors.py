# SPDX-License-Identifier: Apache-2.0
"""What a wildcard table refuses. Nothing has changed then."""

from __future__ import annotations

from towpath.errors import Error, NotFoundError


class WildcardError(Error):
    """A change that a wildcard table can't make; the message says why."""


class FullError(WildcardError):
    """There are as many rules as the table was made for, or devices as it has numbers for."""


class TooComplexError(WildcardError):
    """Too many rules for the same packets: a packet would have to be compared with all of them.

    A packet is compared with 1,024 rules at most, so that its cost has a bound.
    """


class NoSuchRuleError(WildcardError, NotFoundError):
    """There is no rule with that number."""
