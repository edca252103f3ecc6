# SPDX-License-Identifier: Apache-2.0
"""A question about flows, checked."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from towpath.model.kinds import FieldError, UnicastAddress, Vip, prefix_of, shown, split_endpoint
from towpath.model.problems import ConfigError, Problem

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Unpack

    from towpath.model.fields import FlowFields
    from towpath.model.kinds import Address, Prefix

CLIENTS = "an address, or a prefix of addresses such as 198.51.100.0/24"
SOURCES = "an address, or address and port (1 to 65535) as 192.0.2.1:10533 or [2001:db8::1]:10533"


@dataclass(frozen=True, slots=True)
class FlowQuestion:
    """Which flows are asked for; None: whatever they have there."""

    service: str | None = None
    """Name of the service."""
    vip: Address | Prefix | None = None
    """The VIP, as the service has it."""
    backend: Address | None = None
    client: Prefix | None = None
    """Where the client's address is; an address is a prefix of its full length."""
    max_idle: float | None = None
    """Seconds: seen within this time."""
    translated: tuple[Address, int | None] | None = None
    """Address and perhaps port of ours that the backend sees: only translated flows have one."""
    expired: bool = False
    """Also translated flows whose time is over, and whose port no other has taken since."""

    @classmethod
    def of(cls, **fields: Unpack[FlowFields]) -> FlowQuestion:
        """Make a question of values that may be text. ConfigError: one isn't allowed."""
        return cls(
            service=fields.get("service"),
            vip=_made("vip", fields.get("vip"), Vip().parse),
            backend=_made("backend", fields.get("backend"), UnicastAddress().parse),
            client=_made("client", fields.get("client"), _client_prefix),
            max_idle=_made("max_idle", fields.get("max_idle"), _seconds),
            translated=_made("translated", fields.get("translated"), _translated_source),
            expired=bool(fields.get("expired")),
        )


def _made(field: str, raw: object, parse: Callable[[Any], Any]) -> Any:
    try:
        return None if raw is None else parse(raw)
    except ValueError as error:
        raise ConfigError([Problem(str(error), field)]) from error


def _client_prefix(raw: object) -> Prefix:
    """Return the clients that an address or prefix stands for. FieldError: it is neither."""
    return prefix_of(str(raw), f"allowed: {CLIENTS}")


def _seconds(raw: object) -> float:
    """Return a number of seconds. FieldError: it is none."""
    if isinstance(raw, bool) or not isinstance(raw, int | float) or not raw >= 0:
        raise FieldError(f"{shown(raw)} is no number of seconds; allowed: 0 or more")
    return float(raw)


def _translated_source(raw: object) -> tuple[Address, int | None]:
    """Return the address and perhaps port that a backend sees. FieldError: it is neither."""
    text = str(raw)
    try:
        if re.fullmatch(r".*\..*:.*|\[.*", text):
            address, port = split_endpoint(text)
            return UnicastAddress().parse(address), port
        return UnicastAddress().parse(text), None
    except FieldError as error:
        why = str(error).partition("; allowed")[0]
        raise FieldError(f"{why}; allowed: {SOURCES}") from None
