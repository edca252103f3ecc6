# SPDX-License-Identifier: Apache-2.0
"""Commands of ipvsadm, as ``ipvsadm -Sn`` prints them and ``ipvsadm -R`` reads them."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, ip_address
from typing import TYPE_CHECKING, Any, NamedTuple

from towpath.core.imports.imported import NoteKind, Place
from towpath.core.imports.lvs import (
    FLAGS,
    TUNNELS,
    UDP_TIMEOUT,
    Method,
    RealServer,
    ServerTunnel,
    VirtualServer,
)
from towpath.errors import Error
from towpath.model.kinds import shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from towpath.core.imports.imported import Collected
    from towpath.model.kinds import Address

PERSISTENCE = 300
"""Seconds, where -p has none."""
_MAX_PORT, _MAX_WEIGHT, _MAX_SECONDS = 65535, (1 << 31) - 1, 31 * 86400
_FORWARDING = {"-g": Method.ROUTE, "-i": Method.TUNNEL, "-m": Method.NAT}
_SECONDS = re.compile(r"[0-9]{1,10}", re.ASCII)

_COMMANDS = {
    "-A": "--add-service",
    "-E": "--edit-service",
    "-D": "--delete-service",
    "-a": "--add-server",
    "-e": "--edit-server",
    "-d": "--delete-server",
    "-C": "--clear",
    "-Z": "--zero",
    "--set": "--set",
    "--start-daemon": "--start-daemon",
    "--stop-daemon": "--stop-daemon",
}
_WITH_VALUE = {
    "-t": "--tcp-service",
    "-u": "--udp-service",
    "--sctp-service": "--sctp-service",
    "-f": "--fwmark-service",
    "-s": "--scheduler",
    "-M": "--netmask",
    "--pe": "--pe",
    "-b": "--sched-flags",
    "-r": "--real-server",
    "--tun-type": "--tun-type",
    "--tun-port": "--tun-port",
    "-w": "--weight",
    "-x": "--u-threshold",
    "-y": "--l-threshold",
}
_MAYBE_VALUE = {"-p": "--persistent"}
_WITHOUT_VALUE = {
    "-g": "--gatewaying",
    "-i": "--ipip",
    "-m": "--masquerading",
    "-o": "--ops",
    "-6": "--ipv6",
    "-n": "--numeric",
    "--tun-nocsum": "--tun-nocsum",
    "--tun-csum": "--tun-csum",
    "--tun-remcsum": "--tun-remcsum",
}
_SHORT = {
    long: short
    for table in (_COMMANDS, _WITH_VALUE, _MAYBE_VALUE, _WITHOUT_VALUE)
    for short, long in table.items()
}
_PROTOCOLS = {"-t": "tcp", "-u": "udp", "--sctp-service": "sctp"}
_ALLOWED = "allowed: what `ipvsadm -Sn` prints"


class WrongLineError(Error):
    """A command that can't be carried out: what is wrong, and what is allowed."""


class _Key(NamedTuple):
    """What identifies a virtual server."""

    protocol: str
    vip: Address | None
    port: int
    mark: int
    family: int

    def __str__(self) -> str:
        return str(
            VirtualServer(protocol=self.protocol, vip=self.vip, port=self.port, mark=self.mark)
        )


@dataclass
class _Table:
    servers: dict[_Key, VirtualServer] = field(default_factory=dict)
    udp_timeout: int = UDP_TIMEOUT


def read_commands(text: str, file: str, into: Collected) -> tuple[list[VirtualServer], int]:
    """Carry out commands in their order; the virtual servers, and the timeout of UDP in seconds.

    What is wrong is refused.
    """
    table = _Table()
    for number, line in enumerate(text.splitlines(), 1):
        place = Place(file, number)
        try:
            _carry_out(line, place, table, into)
        except WrongLineError as error:
            into.refuse(place, str(error))
    return list(table.servers.values()), table.udp_timeout


def _carry_out(line: str, place: Place, table: _Table, into: Collected) -> None:
    try:
        words = shlex.split(line, comments=True)
    except ValueError as error:
        raise WrongLineError(f"{str(error).lower()}; {_ALLOWED}") from None
    words = without_program(words)
    if not words:
        return
    command, *more = _normal(words[0])
    if command not in _COMMANDS:
        known = ", ".join(_COMMANDS)
        raise WrongLineError(f"{shown(words[0])} is no command of ipvsadm; allowed: {known}")
    words = [*more, *words[1:]]
    if command in {"-C", "-Z"}:
        if command == "-C":
            table.servers.clear()
    elif command == "--set":
        table.udp_timeout = _udp_timeout(words, table.udp_timeout)
    elif command.endswith("-daemon"):
        why = (
            "connections needn't be told to another load balancer: each chooses the same backend "
            "for a flow, from the same services"
        )
        into.once(NoteKind.ELSEWHERE, "synchronization daemon", why, place)
    else:
        _change(command, dict(_options(words)), place, table)


def without_program(words: list[str]) -> list[str]:
    """Return a command's words behind ``ipvsadm``, which -R reads with or without."""
    if words[:1] == ["sudo"]:
        words = words[1:]
    return words[1:] if words and words[0].rpartition("/")[2] == "ipvsadm" else words


def _udp_timeout(words: list[str], before: int) -> int:
    if len(words) != 3:  # noqa: PLR2004 - of TCP, of TCP after FIN, of UDP
        raise WrongLineError("--set has three times; allowed: --set TCP TCPFIN UDP, in seconds")
    *_, seconds = (_number("--set", word, 0, _MAX_SECONDS) for word in words)
    return seconds or before


# ---- Words ---------------------------------------------------------------------------------------


def _normal(word: str) -> list[str]:
    """An option by its short name, and its value if that is in the same word."""
    name, equals, value = word.partition("=")
    if word.startswith("--"):
        return [_SHORT.get(name, name), *([value] if equals else [])]
    short = word[:2]
    if len(word) > 2 and short in {*_WITH_VALUE, *_MAYBE_VALUE}:  # noqa: PLR2004 - a dash, a letter
        return [short, word[2:].removeprefix("=")]
    return [word]


def _options(words: list[str]) -> Iterator[tuple[str, str]]:
    """Options by their short names, with their values."""
    waiting = list(reversed(words))
    while waiting:
        word = waiting.pop()
        name, *value = _normal(word)
        if name in _WITHOUT_VALUE and not value:
            yield name, ""
        elif name in _MAYBE_VALUE:
            if not value and waiting and _SECONDS.fullmatch(waiting[-1]):
                value = [waiting.pop()]
            yield name, (value or [str(PERSISTENCE)])[0]
        elif name in _WITH_VALUE and (value or waiting):
            yield name, (value or [waiting.pop()])[0]
        elif name in _WITH_VALUE:
            raise WrongLineError(f"{word} has no value; {_ALLOWED}")
        else:
            known = ", ".join((*_WITH_VALUE, *_MAYBE_VALUE, *_WITHOUT_VALUE))
            raise WrongLineError(f"{shown(word)} is no option of ipvsadm; allowed: {known}")


def _number(option: str, word: str, least: int, most: int) -> int:
    if not re.fullmatch(r"[0-9]{1,10}", word, re.ASCII) or not least <= int(word) <= most:
        message = f"{option} {shown(word)} is not a number from {least} to {most}"
        raise WrongLineError(message)
    return int(word)


def _end(option: str, word: str) -> tuple[Address, int]:
    """An address and a port, 0 if there is none. Names are not looked up."""
    match = re.fullmatch(r"(?:\[([^]]*)\]|([^:]*))(?::([^:]*))?", word)
    host, port = (word, None) if match is None else (match[1] or match[2] or "", match[3])
    try:
        return ip_address(host), _number(option, port or "0", 0, _MAX_PORT)
    except (ValueError, WrongLineError):
        raise WrongLineError(
            f"{option} {shown(word)} is not an address and a port in numbers; allowed: such as "
            "192.0.2.11:80 or [2001:db8::11]:80, as `ipvsadm -S -n` prints them (without -n it "
            "prints names)"
        ) from None


# ---- What they do --------------------------------------------------------------------------------


def _change(command: str, options: dict[str, str], place: Place, table: _Table) -> None:
    key = _key(options)
    known = table.servers.get(key)
    if command == "-A":
        if known is not None:
            raise WrongLineError(f"{key} is there already, since line {known.place.line}")
        table.servers[key] = _virtual(key, options, place)
    elif known is None:
        there = ", ".join(map(str, table.servers)) or "none"
        raise WrongLineError(f"there is no service {key} before this line; there is: {there[:500]}")
    elif command == "-E":
        made = _virtual(key, options, place)
        table.servers[key] = replace(made, reals=known.reals)
    elif command == "-D":
        del table.servers[key]
    else:
        table.servers[key] = replace(known, reals=_reals(command, known, options, place))


def _key(options: dict[str, str]) -> _Key:
    named = [name for name in (*_PROTOCOLS, "-f") if name in options]
    if len(named) != 1:
        allowed = ", ".join((*_PROTOCOLS, "-f"))
        raise WrongLineError(f"names no service, or several; allowed: one of {allowed}")
    (name,) = named
    if name == "-f":
        mark = _number("-f", options["-f"], 1, (1 << 32) - 1)
        return _Key("", None, 0, mark, 6 if "-6" in options else 4)
    vip, port = _end(name, options[name])
    return _Key(_PROTOCOLS[name], vip, port, 0, vip.version)


def _virtual(key: _Key, options: dict[str, str], place: Place) -> VirtualServer:
    more: dict[str, Any] = {}
    if "-s" in options:
        more["scheduler"] = options["-s"]
    if "-p" in options:
        more["persistence"] = _number("-p", options["-p"], 1, _MAX_SECONDS)
        more["granularity"] = _granularity(key, options.get("-M"))
    return VirtualServer(
        place=place,
        protocol=key.protocol,
        vip=key.vip,
        port=key.port,
        mark=key.mark,
        flags=_flags(options.get("-b", "")),
        engine=options.get("--pe", ""),
        one_packet="-o" in options,
        **more,
    )


def _granularity(key: _Key, mask: str | None) -> str:
    if mask is None:
        return ""
    if key.family == 6:  # noqa: PLR2004 - IPv6
        length = _number("-M", mask, 1, 128)
        return "" if length == 128 else f"/{length}"  # noqa: PLR2004 - all of an address
    try:
        address = IPv4Address(mask)
    except ValueError:
        message = f"-M {shown(mask)} is not a netmask; allowed: such as 255.255.255.0"
        raise WrongLineError(message) from None
    return "" if address == IPv4Address("255.255.255.255") else mask


def _flags(names: str) -> frozenset[int]:
    wrong = [each for each in filter(None, names.split(",")) if each not in FLAGS]
    if wrong:
        raise WrongLineError(f"-b {shown(wrong[0])} is no flag; allowed: {', '.join(FLAGS)}")
    return frozenset(FLAGS[each] for each in filter(None, names.split(",")))


def _reals(
    command: str, virtual: VirtualServer, options: dict[str, str], place: Place
) -> tuple[RealServer, ...]:
    if "-r" not in options:
        raise WrongLineError(f"{command} without -r; allowed: -r ADDRESS:PORT")
    address, port = _end("-r", options["-r"])
    port = port or virtual.port
    others = tuple(each for each in virtual.reals if (each.address, each.port) != (address, port))
    known = len(others) < len(virtual.reals)
    if known == (command == "-a"):
        there = "is there already" if known else "is not there before this line"
        raise WrongLineError(f"{options['-r']} {there}, as a server of {virtual}")
    if command == "-d":
        return others
    made = _real(address, port, options, place)
    if command == "-a":
        return (*others, made)
    return tuple(
        made if (each.address, each.port) == (address, port) else each for each in virtual.reals
    )


def _real(address: Address, port: int, options: dict[str, str], place: Place) -> RealServer:
    methods = [_FORWARDING[name] for name in _FORWARDING if name in options]
    if len(methods) > 1:
        raise WrongLineError(f"several ways to a server; allowed: one of {', '.join(_FORWARDING)}")
    tunnel = options.get("--tun-type", "ipip")
    if tunnel not in TUNNELS:
        allowed = ", ".join(TUNNELS)
        raise WrongLineError(f"--tun-type {shown(tunnel)} is not known; allowed: {allowed}")
    tunnel_port = _number("--tun-port", options.get("--tun-port", "0"), 0, _MAX_PORT)
    return RealServer(
        address=address,
        port=port,
        method=methods[0] if methods else Method.ROUTE,
        weight=_number("-w", options.get("-w", "1"), 0, _MAX_WEIGHT),
        tunnel=ServerTunnel(tunnel, tunnel_port, "--tun-remcsum" in options),
        upper=_number("-x", options.get("-x", "0"), 0, (1 << 32) - 1),
        lower=_number("-y", options.get("-y", "0"), 0, (1 << 32) - 1),
        place=place,
    )
