# SPDX-License-Identifier: Apache-2.0
"""Wildcard rules for BPF programs: prefixes, port ranges, priorities, changed in place.

``bpf/wildcard/wildcard.h`` looks packets up, :class:`WildcardTable` writes the rules. Nothing else
of Towpath is needed; ``docs/wildcard.md`` is the tutorial.
"""

from __future__ import annotations

from towpath.wildcard.errors import FullError, NoSuchRuleError, TooComplexError, WildcardError
from towpath.wildcard.maps import INCLUDE, pin, resize, reuse
from towpath.wildcard.rule import Packet, Rule
from towpath.wildcard.table import Match, Statistics, WildcardTable

__all__ = [
    "INCLUDE",
    "FullError",
    "Match",
    "NoSuchRuleError",
    "Packet",
    "Rule",
    "Statistics",
    "TooComplexError",
    "WildcardError",
    "WildcardTable",
    "pin",
    "resize",
    "reuse",
]
