# SPDX-License-Identifier: Apache-2.0
"""What stands behind a directive: numbers, times, switches, addresses with ports."""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import TYPE_CHECKING

from towpath.errors import Error
from towpath.model.kinds import shown

if TYPE_CHECKING:
    from towpath.core.imports.keepalived.blocks import Directive
    from towpath.model.kinds import Address

_TRUE, _FALSE = ("on", "true", "yes"), ("off", "false", "no")
_NUMBER = re.compile(r"[0-9]{1,10}", re.ASCII)
_SECONDS = re.compile(r"[0-9]{1,9}(?:\.[0-9]{0,9})?|\.[0-9]{1,9}", re.ASCII)
MAX_PORT = 65535
MAX_NUMBER = (1 << 32) - 1


class WrongValueError(Error):
    """What is wrong with a directive's values, and what is allowed."""


def word(directive: Directive) -> str:
    """Return the first value."""
    if not directive.values:
        raise WrongValueError(f"{directive.name} has no value; allowed: one")
    return directive.values[0]


def whole(directive: Directive, least: int = 0, most: int = MAX_NUMBER) -> int:
    """Return a whole number."""
    return number(directive.name, word(directive), least, most)


def number(name: str, text: str, least: int, most: int) -> int:
    """Return what a text says."""
    if not _NUMBER.fullmatch(text) or not least <= int(text) <= most:
        message = f"{name} {shown(text)} is not a number; allowed: {least} to {most}"
        raise WrongValueError(message)
    return int(text)


def seconds(directive: Directive) -> float:
    """Return a time, which may have a fraction."""
    text = word(directive)
    if not _SECONDS.fullmatch(text):
        message = (
            f"{directive.name} {shown(text)} is not a time; allowed: seconds, such as 3 or 0.5"
        )
        raise WrongValueError(message)
    return float(text)


def switch(directive: Directive) -> bool:
    """Return whether it is on, as it is without a value."""
    text = directive.values[0] if directive.values else "on"
    if text not in (*_TRUE, *_FALSE):
        allowed = ", ".join((*_TRUE, *_FALSE))
        raise WrongValueError(f"{directive.name} {shown(text)}; allowed: nothing, {allowed}")
    return text in _TRUE


def end(name: str, values: list[str]) -> tuple[Address, int]:
    """Return address and port, 0 if there is none."""
    try:
        address = ip_address(values[0])
    except (ValueError, IndexError):
        given = shown(values[0]) if values else "nothing"
        message = f"{name} {given} is not an address; allowed: ADDRESS, or ADDRESS PORT"
        raise WrongValueError(message) from None
    return address, number(f"port of {name}", values[1], 0, MAX_PORT) if len(values) > 1 else 0
