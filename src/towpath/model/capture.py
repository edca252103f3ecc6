# SPDX-License-Identifier: Apache-2.0
"""What is to be captured: filters as people write them, and how much of what they match."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from typing import Annotated, Any, ClassVar, NamedTuple

from towpath.model.decode import Findings, Tree, build, decode
from towpath.model.kinds import (
    ANY_PORT,
    FieldError,
    Flag,
    Integer,
    Kind,
    Name,
    PortRange,
    Prefix,
    Word,
    prefix_of,
    shown,
)
from towpath.model.kinds.base import text
from towpath.model.problems import MORE, ConfigError, Problem, field_path
from towpath.model.service import PYDANTIC

MAX_SNAPLEN = 65535
MIN_KEEP, MAX_KEEP = 1 << 17, 1 << 30
MAX_FILTERS = 10_000
_MAX_TEXT = 65535
_MAX_COUNT = (1 << 63) - 1
_MAX_SECONDS = 10_000_000
_MAX_SAMPLE = 1 << 31
_LAST_PORT = 65535
_LAST_PROTOCOL = 255
_ANY = {"0", "any"}
_EXAMPLE = (
    "SOURCE PORT DESTINATION PORT PROTOCOL, such as '0.0.0.0/0 0 203.0.113.10/32 80 tcp', "
    "0 or any for what may be anything"
)
PROTOCOLS = {
    "icmp": 1,
    "igmp": 2,
    "ipip": 4,
    "tcp": 6,
    "udp": 17,
    "ipv6": 41,
    "gre": 47,
    "esp": 50,
    "ah": 51,
    "icmpv6": 58,
    "sctp": 132,
}
_NAMES = {number: name for name, number in PROTOCOLS.items()}
_EVERY_PORT = ANY_PORT.ranges[0]
_LINE = 1000


class Filter(NamedTuple):
    """Packets that have all of this; None is anything. Prefixes are of one family."""

    source: Prefix | None
    source_ports: PortRange
    destination: Prefix | None
    destination_ports: PortRange
    protocol: int | None

    @classmethod
    def parse(cls, line: str) -> "Filter":
        """Read ``SOURCE PORT DESTINATION PORT PROTOCOL``.

        Raises FieldError that says which part is wrong and what is allowed.
        """
        parts = line.split()
        if len(parts) != len(cls._fields):
            raise FieldError(f"{shown(line)} has {len(parts)} parts; allowed: {_EXAMPLE}")
        source = _part("source", parts[0], _prefix)
        destination = _part("destination", parts[2], _prefix)
        if source and destination and source.version != destination.version:
            raise FieldError(
                f"source {source} is IPv{source.version}, destination {destination} is "
                f"IPv{destination.version}; allowed: both of one family"
            )
        return cls(
            source,
            _part("source port", parts[1], _ports),
            destination,
            _part("destination port", parts[3], _ports),
            _part("protocol", parts[4], _protocol),
        )

    def __str__(self) -> str:
        protocol = "any" if self.protocol is None else _NAMES.get(self.protocol, self.protocol)
        ends = ((self.source, self.source_ports), (self.destination, self.destination_ports))
        words = [
            word
            for prefix, ports in ends
            for word in (prefix or "any", "0" if ports == _EVERY_PORT else ports)
        ]
        return " ".join(map(str, (*words, protocol)))


def _part(which: str, word: str, parse: Any) -> Any:
    try:
        return parse(word)
    except FieldError as error:
        raise FieldError(f"{which}: {error}") from None


def _prefix(word: str) -> IPv4Network | IPv6Network | None:
    if word.lower() in _ANY:
        return None
    return prefix_of(word, "allowed: a prefix such as 192.0.2.0/24 or 2001:db8::/32, an address, 0")


def _ports(word: str) -> PortRange:
    if word.lower() in _ANY:
        return _EVERY_PORT
    match = re.fullmatch(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", word)
    allowed = f"allowed: 1 to {_LAST_PORT}, a range such as 8000-8999, 0 or any for every port"
    if match is None:
        raise FieldError(f"{shown(word)} is neither a port nor a range; {allowed}")
    first, last = int(match[1]), int(match[2] or match[1])
    if first > last:
        raise FieldError(f"{shown(word)} ends before it begins; allowed: {last}-{first}")
    if last > _LAST_PORT:
        raise FieldError(f"{shown(word)} is out of range; {allowed}")
    return PortRange(first, last)


def _protocol(word: str) -> int | None:
    if word.lower() in _ANY:
        return None
    if word.isdecimal() and int(word) <= _LAST_PROTOCOL:
        return int(word)
    number = PROTOCOLS.get(word.lower())
    if number is None:
        raise FieldError(
            f"{shown(word)} is not known; allowed: {', '.join(PROTOCOLS)}, a number up to "
            f"{_LAST_PROTOCOL}, 0 or any for every protocol"
        )
    return number


class FilterText(Kind):
    """A filter, as text."""

    def parse(self, raw: object) -> str:
        """Return the filter as it is always written."""
        return str(Filter.parse(text(raw, _EXAMPLE)))

    def schema(self) -> dict[str, Any]:
        """Return a text's JSON schema."""
        return {"type": "string", "examples": ["0.0.0.0/0 0 203.0.113.10/32 80 tcp"]}


@dataclass(frozen=True)
class Line(Kind):
    """A text, which may be empty."""

    def parse(self, raw: object) -> str:
        """Return the text."""
        found = text(raw, "text")
        if len(found) > _MAX_TEXT or "\0" in found:
            raise FieldError(f"{shown(found)}; allowed: {_MAX_TEXT} characters, none of them 0")
        return found

    def schema(self) -> dict[str, Any]:
        """Return a text's JSON schema."""
        return {"type": "string", "maxLength": _MAX_TEXT}


@dataclass(frozen=True)
class Texts(Kind):
    """A list of texts of one kind."""

    kind: Kind

    def parse(self, raw: object) -> tuple[str, ...]:
        """Return them."""
        if not isinstance(raw, list | tuple):
            raise FieldError(f"{shown(raw)} is not a list; allowed: a list of texts")
        if len(raw) > MAX_FILTERS:
            raise FieldError(f"{len(raw)} are too many; allowed: {MAX_FILTERS}")
        return tuple(self.kind.parse(each) for each in raw)

    def schema(self) -> dict[str, Any]:
        """Return a list's JSON schema."""
        return {"type": "array", "items": self.kind.schema(), "maxItems": MAX_FILTERS}


@dataclass(frozen=True, slots=True)
class Capture:
    """Packets to capture: those that any filter or service matches; all, if there is none.

    Of these only the ones that the expression matches, if there is one.
    """

    __pydantic_config__: ClassVar[Any] = PYDANTIC

    filters: Annotated[tuple[str, ...], Texts(FilterText())] = ()
    """SOURCE PORT DESTINATION PORT PROTOCOL each; 0 or any is anything, ports may be n-m."""
    services: Annotated[tuple[str, ...], Texts(Name())] = ()
    """Names of services: packets of clients to them, as they are configured when it begins."""
    expression: Annotated[str, Line()] = ""
    """A filter in tcpdump's language, such as ``tcp and portrange 8000-8100``."""
    direction: Annotated[str, Word("distinct", "both", "in", "out")] = "distinct"
    """in: packets as they come in; out: as they are sent on, encapsulated; both; distinct: as they
    come in, and as they are sent on where that has other addresses or ports."""
    snaplen: Annotated[int, Integer(1, MAX_SNAPLEN)] = MAX_SNAPLEN
    """Bytes of each frame that are kept. The file has the original length all the same."""
    sample: Annotated[int, Integer(1, _MAX_SAMPLE)] = 1
    """Keep one packet of so many, at random."""
    packets: Annotated[int, Integer(0, _MAX_COUNT)] = 0
    """End after so many packets; 0: don't. What came in and what was sent on are one."""
    bytes: Annotated[int, Integer(0, _MAX_COUNT)] = 0
    """End when so many bytes of frames have been captured; 0: don't."""
    seconds: Annotated[int, Integer(0, _MAX_SECONDS)] = 0
    """End after so long; 0: don't."""
    keep: Annotated[int, Integer(0, MAX_KEEP)] = 0
    """Keep the last so many bytes of what is captured, and give the file when it ends; 0: give it
    as it comes. On this node's memory it takes twice as much, to a power of two."""
    on_down: Annotated[bool, Flag()] = False
    """With keep: end when a backend is found down, of these services if it is for some."""
    on_drops: Annotated[int, Integer(0, _MAX_COUNT)] = 0
    """With keep: end when so many packets have been dropped within a second, of these services if
    it is for some. 0: don't."""


def parse_capture(raw: Mapping[str, Any] | Capture) -> Capture:
    """Make a capture of plain data, such as JSON, or check one. Raises ConfigError."""
    found = Findings()
    tree = found.within(lambda: decode(Capture, raw, (), found))
    if tree is not None:
        _check(tree, found)
    if tree is None or found.items:
        problems = [Problem(message, field_path(path)) for path, message in found.items]
        raise ConfigError([*problems, MORE] if found.more else problems)
    return build(Capture, tree)


def _check(tree: Tree, found: Findings) -> None:
    """What is only for a capture that keeps, and what isn't."""
    keep = tree.get("keep") or 0
    if 0 < keep < MIN_KEEP:
        found.add(("keep",), f"{keep} is out of range; allowed: {MIN_KEEP} to {MAX_KEEP}, or 0")
    for name in ("on_down", "on_drops"):
        if tree.get(name) and not keep:
            found.add((name,), "is for a capture that keeps what was last; allowed: with keep")
    for name in ("packets", "bytes"):
        if tree.get(name) and keep:
            found.add(
                (name,), "would end with what came first; allowed: 0, or a capture without keep"
            )


def filter_text(capture: Capture) -> str:
    """Return what a capture is for, in one line; nothing if it is for everything."""
    line = " or ".join([*capture.filters, *(f"service {name}" for name in capture.services)])
    if capture.expression:
        line = f"({line}) and ({capture.expression})" if line else capture.expression
    return line if len(line) <= _LINE else f"{line[: _LINE - 3]}..."
