# SPDX-License-Identifier: Apache-2.0
"""Bits a second as annotations of pods have them, taken and refused as the runtime does.

containerd reads them as the API's quantities are read, and makes no sandbox for a pod whose values
it refuses.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction

LEAST, MOST = 1000, 10**15
"""Bits a second that a runtime takes."""
_TEXT = re.compile(
    r"([+-]?)(?=\.?\d)(\d*)(?:\.(\d*))?(?:([KMGTPE])i|([numkMGTPE])|[eE]([+-]?\d{1,18}))?",
    re.ASCII,
)
_BINARY = {"K": 10, "M": 20, "G": 30, "T": 40, "P": 50, "E": 60}
_DECIMAL = {"n": -9, "u": -6, "m": -3, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_LONGEST = 64
"""Characters; what has more is no rate, whatever it is."""
_FAR = 60
"""Powers of ten beyond which the exact number makes no difference."""


def rate(text: str) -> int:
    """Return bits a second, rounded up. ValueError: a runtime refuses it."""
    found = _number(text)
    if found < LEAST:
        raise ValueError(f"{text!r} is unreasonably small (< 1kbit)")
    if found > MOST:
        raise ValueError(f"{text!r} is unreasonably large (> 1Pbit)")
    return found


def _number(text: str) -> int:
    match = _TEXT.fullmatch(text) if len(text) <= _LONGEST else None
    if match is None:
        raise ValueError(f"{text[:_LONGEST]!r} is no quantity; allowed: such as 10M, 1.5G or 64Mi")
    sign, whole, part, binary, decimal, exponent = match.groups()
    found = Fraction(int(whole + (part or "")), 10 ** len(part or ""))
    if binary:
        found *= 2 ** _BINARY[binary]
    elif decimal or exponent:
        power = _DECIMAL[decimal] if decimal else int(exponent)
        found *= Fraction(10) ** max(-_FAR, min(power, _FAR))
    return math.ceil(-found if sign == "-" else found)
