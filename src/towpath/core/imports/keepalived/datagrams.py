# SPDX-License-Identifier: Apache-2.0
"""Checkers that send a datagram: DNS_CHECK, UDP_CHECK (keepalived's check_dns.c, check_udp.c)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from towpath.core.imports.imported import Remark
from towpath.core.imports.keepalived.values import WrongValueError, whole, word
from towpath.model.kinds import DomainName, FieldError, shown

if TYPE_CHECKING:
    from towpath.core.imports.keepalived.blocks import Directive
    from towpath.core.imports.keepalived.settings import Settings

_TYPES = ("A", "NS", "CNAME", "SOA", "MX", "TXT", "AAAA")
_USUAL = "SOA"
_ROOT = "."
_HEX = re.compile(r"[0-9a-fA-F]*", re.ASCII)
_MAX_LENGTH = 65535


def question(settings: Settings, defaults: object) -> dict[str, Any]:
    """What a DNS_CHECK asks."""
    del defaults
    name, kind = settings.get("name", word, _ROOT), settings.get("type", _type, _USUAL)
    asked = "NS" if name == _ROOT else "A"
    what = f"DNS_CHECK of {kind} {name}"
    why = "NXDOMAIN is an answer, too"
    if kind != asked:
        why = f"the name is asked for with type {asked}; {why}"
    remarks = [Remark(what, why, settings.directive.place)]
    try:
        return {"query": DomainName().parse(name), "remarks": remarks}
    except FieldError as error:
        return {"unusable": f"name: {error}", "remarks": remarks}


def _type(directive: Directive) -> str:
    given = word(directive).upper()
    if given not in _TYPES:
        allowed = ", ".join(_TYPES)
        raise WrongValueError(f"type {shown(word(directive))} is not known; allowed: {allowed}")
    return given


def datagram(settings: Settings, defaults: object) -> dict[str, Any]:
    """What a UDP_CHECK sends, and what must come back."""
    del defaults
    sent = settings.get("payload", _bytes, "")
    reply = settings.one("require_reply")
    lengths = [
        Remark(f"{name} {length}", "an answer of any length is good", settings.directive.place)
        for name in ("min_reply_length", "max_reply_length")
        if (length := settings.get(name, lambda each: whole(each, 0, _MAX_LENGTH), None))
        is not None
    ]
    if not sent:
        return {"unusable": "a check has a payload"}
    if reply is None:
        why = "without require_reply silence is health; here an answer is"
        return {"unusable": why}
    if (expected := _digits(reply)) is None:
        return {"unusable": "bits of a reply that don't matter can't be told"}
    if expected:
        why = "an answer may have these bytes anywhere, and must have all of them"
        lengths.append(Remark("require_reply", why, reply.place))
    return {"send": sent, "expect": expected, "remarks": lengths}


def _bytes(directive: Directive) -> str:
    """A payload, as the model has it."""
    if not (found := _digits(directive)):
        given = shown(" ".join(directive.values))
        allowed = "pairs of hexadecimal digits, such as 0d0a"
        raise WrongValueError(f"{directive.name} {given} is no payload; allowed: {allowed}")
    return found


def _digits(directive: Directive) -> str | None:
    """Bytes in hexadecimal as the model has them, empty if there are none; None: anything else."""
    digits = "".join(directive.values)
    if not _HEX.fullmatch(digits) or len(digits) % 2:
        return None
    return f"hex:{digits.lower()}" if digits else ""
