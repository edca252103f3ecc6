# SPDX-License-Identifier: Apache-2.0
"""Fields of health checks: durations, status codes, paths of URLs, commands."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from towpath.model.kinds.base import FieldError, Kind, shown, text

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0}
_DURATION = re.compile(r"\s*((?:0|[1-9][0-9]{0,8})(?:\.[0-9]{1,9})?)\s*(ms|s|m)\s*")


@dataclass(frozen=True)
class Seconds(Kind):
    """A time of ``least`` to ``most`` seconds."""

    least: float
    most: float

    def parse(self, raw: object) -> float:
        """Return seconds, of a number of them or of a text such as 500ms, 5s, 1m."""
        if isinstance(raw, int | float) and not isinstance(raw, bool):
            seconds = float(raw)
        elif isinstance(raw, str) and (match := _DURATION.fullmatch(raw)):
            seconds = float(match[1]) * _UNITS[match[2]]
        else:
            raise FieldError(f"{shown(raw)} is not a duration; {self.allowed}")
        if not self.least <= seconds <= self.most:  # nor is nan, which is no number at all
            raise FieldError(f"{shown(raw)} is out of range; {self.allowed}")
        return seconds

    @property
    def allowed(self) -> str:
        """What an error says is allowed."""
        limits = f"{_written(self.least)} to {_written(self.most)}"
        return f"allowed: {limits}, such as 500ms, 5s or a number of seconds"

    def schema(self) -> dict[str, Any]:
        """Return a number's or a text's JSON schema."""
        number = {"type": "number", "minimum": self.least, "maximum": self.most}
        return {"anyOf": [number, {"type": "string", "examples": ["500ms", "5s"]}]}


def _written(seconds: float) -> str:
    return f"{seconds:g}s" if seconds >= 1 else f"{seconds * 1000:g}ms"


_STATUS = re.compile(r"\s*([1-5][0-9][0-9])\s*(?:-\s*([1-5][0-9][0-9])\s*)?")


class StatusCodes(Kind):
    """HTTP status codes: one, a range such as 200-399, or a list of both."""

    allowed = "a status code (100 to 599), a range such as 200-399, or a list of both"

    def parse(self, raw: object) -> str:
        """Return the codes as text, such as 200-299,404."""
        if isinstance(raw, str):
            raw = raw.split(",")
        items = list(raw) if isinstance(raw, list | tuple) else [raw]
        if not items:
            raise FieldError(f"an empty list has no status code; allowed: {self.allowed}")
        return ",".join(map(self._one, items))

    def _one(self, raw: object) -> str:
        whole = isinstance(raw, int) and not isinstance(raw, bool)
        match = _STATUS.fullmatch(str(raw)) if whole or isinstance(raw, str) else None
        if match is None:
            raise FieldError(f"{shown(raw)} is not a status code; allowed: {self.allowed}")
        first, last = match[1], match[2] or match[1]
        if first > last:
            raise FieldError(f"{shown(raw)} ends before it begins; allowed: {last}-{first}")
        return first if first == last else f"{first}-{last}"

    def schema(self) -> dict[str, Any]:
        """Return a number's, a text's or a list's JSON schema."""
        code = {"type": "integer", "minimum": 100, "maximum": 599}
        one = {"anyOf": [code, {"type": "string", "examples": ["200-399"]}]}
        return {"anyOf": [*one["anyOf"], {"type": "array", "items": one, "minItems": 1}]}


def has_status(codes: str, status: int) -> bool:
    """Whether a status code is among those that :class:`StatusCodes` made a text of."""
    ranges = (each.partition("-") for each in codes.split(","))
    return any(int(first) <= status <= int(last or first) for first, _, last in ranges)


@dataclass(frozen=True)
class UrlPath(Kind):
    """Path and query of a URL, as a request has it."""

    most: int = 2048
    allowed = "a path that starts with /, of printable ASCII without white space and #"

    def parse(self, raw: object) -> str:
        """Return the path."""
        path = text(raw, self.allowed)
        if not re.fullmatch(r"/[!-\"$-~]*", path) or len(path) > self.most:
            raise FieldError(f"{shown(path)} is not a URL's path; allowed: {self.allowed}")
        return path

    def schema(self) -> dict[str, Any]:
        """Return the pattern as JSON schema."""
        return {"type": "string", "pattern": "^/", "maxLength": self.most}


class HostName(Kind):
    """The host that a request names; None: the VIP."""

    allowed = "a host name of letters, digits, . and -, or an address"

    def parse(self, raw: object) -> str | None:
        """Return the name."""
        if raw is None:
            return None
        name = text(raw, self.allowed)
        if not re.fullmatch(r"[A-Za-z0-9_](?:[A-Za-z0-9._:-]{0,251}[A-Za-z0-9_])?", name):
            raise FieldError(f"{shown(name)} is not a host's name; allowed: {self.allowed}")
        return name

    def schema(self) -> dict[str, Any]:
        """Return an optional text's JSON schema."""
        return {"anyOf": [{"type": "string", "maxLength": 253}, {"type": "null"}]}


@dataclass(frozen=True)
class Payload(Kind):
    """What a datagram has in it, as text; see `payload`."""

    most: int = 1024
    allowed = "text, or hex: and pairs of hexadecimal digits, such as hex:0d0a; 1024 bytes at most"

    def parse(self, raw: object) -> str:
        """Return the text."""
        written = text(raw, self.allowed)
        try:
            size = len(payload(written))
        except ValueError:
            raise FieldError(
                f"{shown(written)} has no such digits; allowed: {self.allowed}"
            ) from None
        if size > self.most:
            raise FieldError(f"{size} bytes are too many; allowed: {self.allowed}")
        return written

    def schema(self) -> dict[str, Any]:
        """Return a text's JSON schema."""
        return {"type": "string", "maxLength": 2 * self.most + len(_HEX)}


_HEX = "hex:"
_MAX_NAME = 253  # RFC 1035, 3.1, as text


def payload(written: str) -> bytes:
    """Return the bytes that a text says: itself in UTF-8, or hex: and their digits. ValueError."""
    if written.startswith(_HEX):
        return bytes.fromhex(written.removeprefix(_HEX))
    return written.encode()


class DomainName(Kind):
    """A name that DNS is asked for."""

    allowed = "a domain name such as example.com, or . for the root"

    def parse(self, raw: object) -> str:
        """Return the name."""
        name = text(raw, self.allowed)
        labels = [] if name == "." else name.removesuffix(".").split(".")
        if len(name) > _MAX_NAME or not all(
            re.fullmatch(r"[!-\-/-~]{1,63}", each) for each in labels
        ):
            raise FieldError(f"{shown(name)} is not a domain name; allowed: {self.allowed}")
        return name

    def schema(self) -> dict[str, Any]:
        """Return a text's JSON schema."""
        return {"type": "string", "minLength": 1, "maxLength": 253}


@dataclass(frozen=True)
class GrpcName(Kind):
    """A service that gRPC's health protocol is asked for."""

    most: int = 127
    allowed = "a name such as example.v1.Shop, of 127 printable ASCII characters at most"

    def parse(self, raw: object) -> str:
        """Return the name."""
        name = text(raw, self.allowed)
        if len(name) > self.most or not re.fullmatch(r"[!-~]*", name):
            raise FieldError(f"{shown(name)} is not a service; allowed: {self.allowed}")
        return name

    def schema(self) -> dict[str, Any]:
        """Return a text's JSON schema."""
        return {"type": "string", "maxLength": self.most}


@dataclass(frozen=True)
class CommandLine(Kind):
    """A program and its arguments."""

    most: int = 64
    allowed = "a list of texts, the program's absolute path first, such as [/usr/bin/true]"

    def parse(self, raw: object) -> tuple[str, ...]:
        """Return program and arguments; nothing if there is none."""
        if not isinstance(raw, list | tuple):
            raise FieldError(f"{shown(raw)} is not a list; allowed: {self.allowed}")
        words = tuple(text(word, self.allowed) for word in raw)
        if len(words) > self.most:
            raise FieldError(f"{len(words)} words are too many; allowed: {self.most}")
        if any("\0" in word for word in words):
            raise FieldError(f"a zero byte can't be in a command; allowed: {self.allowed}")
        if words and not words[0].startswith("/"):
            raise FieldError(f"{shown(words[0])} is not an absolute path; allowed: {self.allowed}")
        return words

    def schema(self) -> dict[str, Any]:
        """Return a list of texts as JSON schema."""
        return {"type": "array", "items": {"type": "string"}, "maxItems": self.most}
