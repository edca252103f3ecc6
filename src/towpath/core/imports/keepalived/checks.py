# SPDX-License-Identifier: Apache-2.0
"""Checkers of real servers, and the one check that a service has if they agree."""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import TYPE_CHECKING

from towpath.core.imports.imported import Remark
from towpath.core.imports.keepalived.checkers import CHECKERS, Check, Defaults, read_checks
from towpath.core.imports.lvs import Method
from towpath.model.health import MAX_RESULTS, MAX_SECONDS, AllFailed, CheckType, Health, OnDown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from towpath.core.imports.imported import Place
    from towpath.core.imports.lvs import RealServer
    from towpath.model.kinds import Address

__all__ = ["CHECKERS", "Check", "Defaults", "agreed", "read_checks"]

_LEAST_INTERVAL, _LEAST_TIMEOUT = 0.1, 0.05
_BACKEND = '"$TOWPATH_BACKEND"'
_NO_CHECK = "the service has no check"

Checked = tuple["RealServer", "Sequence[Check]"]


def agreed(
    checked: Sequence[Checked], port: int, remarks: list[Remark], place: Place, *, keep: bool
) -> Health | None:
    """Return a service's check, if those of all its real servers come to the same.

    ``port``: the service's, 0 for any. ``keep``: flows of a server that is down stay.
    """
    if not any(checks for _, checks in checked):
        return None
    chosen = [(server, _chosen(checks, remarks)) for server, checks in checked]
    found = [(server, check) for server, check in chosen if check is not None]
    if len(found) < len(chosen):
        if found:
            why = f"real servers without a check that can be carried over; {_NO_CHECK}"
            remarks.append(Remark("checks of some real servers", why, place))
        return None
    healths = _alike(found, port)
    first = found[0][1]
    other = next((at for at, each in enumerate(healths) if each != healths[0]), None)
    if other is not None:
        why = f"differs from that of {found[0][0].address}: a service has one check; {_NO_CHECK}"
        what = f"{found[other][1].kind} of {found[other][0].address}"
        remarks.append(Remark(what, why, found[other][1].place))
        return None
    _add(remarks, first.remarks)
    return _within(healths[0], keep=keep, check=first, remarks=remarks)


def _chosen(checks: Sequence[Check], remarks: list[Remark]) -> Check | None:
    """The one that says most of a server's checks; what is said of the others is added."""
    usable = [each for each in checks if not each.unusable]
    for each in checks:
        if each.unusable:
            rest = "" if usable else f"; {_NO_CHECK}"
            _add(remarks, [Remark(each.kind, each.unusable + rest, each.place)])
    asked = [each for each in usable if each.type in {CheckType.HTTP, CheckType.HTTPS}]
    ports = {each.port for each in asked}
    # Whoever asks has connected.
    usable = [each for each in usable if each.type is not CheckType.TCP or each.port not in ports]
    for each in usable[1:]:
        why = f"a service has one check, which is {usable[0].kind}"
        _add(remarks, [Remark(each.kind, why, each.place)])
    return usable[0] if usable else None


def _add(remarks: list[Remark], more: Sequence[Remark]) -> None:
    """What many servers have is said once."""
    said = {(each.what, each.why) for each in remarks}
    remarks += [each for each in more if (each.what, each.why) not in said]


# ---- The same check ------------------------------------------------------------------------------


def _alike(found: Sequence[tuple[RealServer, Check]], port: int) -> list[Health]:
    commands = _commands([(server.address, check.command) for server, check in found])
    return [
        replace(_health(server, check, port), command=command)
        for (server, check), command in zip(found, commands, strict=True)
    ]


def _health(server: RealServer, check: Check, port: int) -> Health:
    """What a check is as a service's, without its command."""
    return Health(
        check.type,
        interval=check.interval,
        timeout=check.timeout,
        rise=1,
        fall=check.retry + 1,
        port=_port(server, check, port),
        path=check.path,
        host=check.host,
        status=check.status,
        send=check.send,
        expect=check.expect,
        query=check.query,
        on_all_failed=AllFailed.CLOSED,
    )


def _port(server: RealServer, check: Check, port: int) -> int | None:
    """None where it is the one that is checked anyway."""
    if check.type is CheckType.COMMAND:
        return None
    usual = server.port or port if server.method is Method.NAT else port
    wanted = check.port or server.port or port
    return None if wanted == usual else wanted


def _commands(given: Sequence[tuple[Address, tuple[str, ...]]]) -> list[tuple[str, ...]]:
    """Commands that differ by nothing but the server's own address are one, which is told that."""
    commands = [command for _, command in given]
    shapes = {tuple(word.replace(str(address), "\0") for word in words) for address, words in given}
    if len(set(commands)) == 1 or len(shapes) > 1:
        return commands
    (shape,) = shapes
    words = (_BACKEND.join(map(_quoted, word.split("\0"))) for word in shape)
    return [("/bin/sh", "-c", f"exec {' '.join(words)}")] * len(commands)


def _quoted(text: str) -> str:
    return shlex.quote(text) if text else ""


def _within(health: Health, *, keep: bool, check: Check, remarks: list[Remark]) -> Health:
    """A check within what one may be."""
    made = replace(
        health,
        interval=min(max(health.interval, _LEAST_INTERVAL), MAX_SECONDS),
        timeout=min(max(health.timeout, _LEAST_TIMEOUT), MAX_SECONDS),
        fall=min(health.fall, MAX_RESULTS),
        on_down=OnDown.KEEP if keep else None,
    )
    for name in ("interval", "timeout", "fall"):
        was, now = getattr(health, name), getattr(made, name)
        if was != now:
            why = f"{now:g} is the nearest that there is"
            _add(remarks, [Remark(f"{name} of {was:g}", why, check.place)])
    return made
