# SPDX-License-Identifier: Apache-2.0
"""Commands of ``katran_goclient``, as a script has them: what they come to, in their order."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING

from towpath.core.imports.imported import NoteKind, Place
from towpath.core.imports.katran_table import (
    MAX_PORT,
    MAX_WEIGHT,
    REAL_FLAGS,
    VIP_FLAGS,
    Key,
    Named,
    Real,
    Table,
    Vip,
    WrongLineError,
    address_of,
    flags_of,
    id_of,
    number_of,
)
from towpath.model.kinds import shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from towpath.core.imports.imported import Collected

_SWITCHES = (
    *("A", "E", "D", "a", "e", "d", "s", "sum", "lru", "icmp", "l", "unset", "del_hc", "list_hc"),
    *("list_mac", "C", "list_qm", "del_qm"),
)
_VALUES = (
    "t",
    "u",
    "r",
    "w",
    "vf",
    "rf",
    "new_hc",
    "somark",
    "change_mac",
    "quic_mapping",
    "server",
)
# What one command does is decided in this order, whatever else stands there.
_ORDER = (
    *("change_mac", "list_mac", "A", "l", "D", "E", "a", "e", "d", "del_qm", "quic_mapping"),
    *("list_qm", "C", "new_hc", "del_hc", "list_hc", "s"),
)
_READING = ("list_mac", "l", "list_qm", "list_hc", "s")
_ELSEWHERE = {
    "change_mac": "the next hop is the kernel's: its routes and neighbours are followed",
    "new_hc": "checks are a service's own and take the way of its packets: health: tcp; sockets of"
    " other programs do so by marks: checks.foreign",
    "del_hc": "checks are a service's own and take the way of its packets: health: tcp",
}
_CLIENT = re.compile(r"(?:.*/)?(?:katran_goclient|katranc|main)")
_ASSIGNED = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=.*")
_END = re.compile(r"(?:\[(.*?)\]|([^:]*)):(.*)")
_ALLOWED = "allowed: commands of katran_goclient, one a line, and comments"
_TRUE = ("1", "t", "T", "true", "TRUE", "True")


def read_script(text: str, file: str, into: Collected) -> Table:
    """Carry out a script's commands; the VIPs and ids that there are in the end.

    What is wrong is refused.
    """
    found = Table()
    for number, line in _logical_lines(text):
        place = Place(file, number)
        try:
            words = shlex.split(line, comments=True)
            _carry_out(words, place, found, into)
        except (WrongLineError, ValueError) as error:
            into.refuse(place, str(error))
    return found


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines with those that a backslash continues, by the number of the first."""
    begin, kept = 1, ""
    for number, line in enumerate(text.splitlines(), 1):
        if not kept:
            begin = number
        if line.endswith("\\"):
            kept += f"{line[:-1]} "
            continue
        yield begin, kept + line
        kept = ""
    if kept:
        yield begin, kept


def _carry_out(words: list[str], place: Place, found: Table, into: Collected) -> None:
    words = _command(words)
    if not words:
        return
    options = _options(words)
    action = next((each for each in _ORDER if each in options), None)
    if action is None or action in _READING:
        return
    if action in _ELSEWHERE:
        into.note(NoteKind.ELSEWHERE, f"-{action}", _ELSEWHERE[action], place)
    elif action == "C":
        found.vips.clear()
    elif action in {"del_qm", "quic_mapping"}:
        _change_id(options, place, found.ids)
    elif action in {"A", "E", "D"}:
        _change_vip(action, _key(options), options, place, found.vips)
    else:
        _change_real(action, _key(options), options, place, found.vips)


def _command(words: list[str]) -> list[str]:
    """The client's own words; none if a line does nothing to Katran."""
    while words and (words[0] in {"$", "+", "sudo"} or _ASSIGNED.fullmatch(words[0])):
        words = words[1:]
    if not words or words[0] in {"set", "exit"}:
        return []
    if not _CLIENT.fullmatch(words[0]):
        raise WrongLineError(f"{shown(words[0])} is not katran_goclient; {_ALLOWED}")
    return words[1:]


def _options(words: list[str]) -> dict[str, str]:
    """Flags as Go reads them: one dash or two, values behind = or as the next word."""
    found: dict[str, str] = {}
    waiting = list(reversed(words))
    while waiting:
        word = waiting.pop()
        name, equals, value = word.lstrip("-").partition("=")
        if not word.startswith("-") or name not in (*_SWITCHES, *_VALUES):
            known = ", ".join(f"-{each}" for each in (*_SWITCHES, *_VALUES))
            raise WrongLineError(f"{shown(word)} is no option of katran_goclient; allowed: {known}")
        if name in _SWITCHES:
            if not equals or value in _TRUE:
                found[name] = ""
        elif equals or waiting:
            found[name] = value if equals else waiting.pop()
        else:
            raise WrongLineError(f"{word} has no value; allowed: one behind it")
    return found


def _key(options: dict[str, str]) -> Key:
    """Of -t and -u the first one counts, as there."""
    name = "t" if options.get("t") else "u"
    given = options.get(name, "")
    match = _END.fullmatch(given)
    if match is None:
        message = f"{shown(given)} is no VIP; allowed: -t or -u ADDRESS:PORT, IPv6 in brackets"
        raise WrongLineError(message)
    address = address_of(match[1] or match[2] or "", f"-{name}")
    port = number_of(match[3], "port", MAX_PORT)
    return Key(address, port, "tcp" if name == "t" else "udp")


def _change_vip(
    action: str, key: Key, options: dict[str, str], place: Place, found: dict[Key, Vip]
) -> None:
    if action == "A":
        if key in found:
            raise WrongLineError(f"{key} is there already, since line {found[key].place.line}")
        found[key] = Vip(key, place)
    vip = _known(key, found)
    if action == "D":
        del found[key]
        return
    flags = flags_of(filter(None, [options.get("vf", "")]), VIP_FLAGS, place)
    if action == "E" and "unset" in options:
        vip.flags = {each: where for each, where in vip.flags.items() if each not in flags}
    else:
        vip.flags = flags | vip.flags


def _change_real(
    action: str, key: Key, options: dict[str, str], place: Place, found: dict[Key, Vip]
) -> None:
    vip = _known(key, found)
    address = address_of(options.get("r", ""), "-r")
    weight = number_of(options.get("w", "1"), "-w", MAX_WEIGHT)
    flags = flags_of(filter(None, [options.get("rf", "")]), REAL_FLAGS, place)
    if action != "d":
        # Adding one that is there changes it, and changing one that isn't adds it.
        vip.reals[address] = Real(address, weight, flags)
    elif vip.reals.pop(address, None) is None:
        there = ", ".join(map(str, vip.reals)) or "none"
        raise WrongLineError(f"{address} is no real of {vip} before this line; it has: {there}")


def _change_id(options: dict[str, str], place: Place, ids: dict[int, Named]) -> None:
    """Take one away only from whom it names, as there."""
    given = options.get("quic_mapping", "")
    address, equals, number = given.partition("=")
    if not equals:
        raise WrongLineError(f"{shown(given)} is no mapping; allowed: ADDRESS=ID")
    named = Named(address_of(address, "-quic_mapping"), place)
    server_id = id_of(number)
    if "del_qm" not in options:
        ids[server_id] = named
    elif server_id in ids and ids[server_id].address == named.address:
        del ids[server_id]


def _known(key: Key, found: dict[Key, Vip]) -> Vip:
    if key not in found:
        there = ", ".join(map(str, found)) or "none"
        raise WrongLineError(f"there is no VIP {key} before this line; there is: {there[:500]}")
    return found[key]
